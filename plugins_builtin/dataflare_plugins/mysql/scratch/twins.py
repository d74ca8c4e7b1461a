"""Scratch twins: fresh databases on one scratch server, that lives as long as the proof."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.connection import SETTINGS, Session, parse_url
from dataflare_plugins.mysql.errors import driver
from dataflare_sdk import DestinationTwin, ExtractSpec, ScratchPlace, code
from dataflare_sdk.fields import to_plain
from dataflare_sdk.scratch import BAD_SCRIPT, NO_SCRIPT, DatabaseTarget, DatabaseTwin, ScratchServer
from dataflare_sdk.seeded import TableShape, TableWriter, Together

if TYPE_CHECKING:
    from dataflare_plugins.mysql.scratch.server import MariadbServer

NO_SERVER = code(
    "mysql.no-scratch-server",
    4,
    "There is no MariaDB on this machine to start a scratch server from.",
    "Install one: your system's mariadb-server or mariadb-server-core package.",
)
OTHER_DATABASE = code(
    "mysql.other-database",
    3,
    "A table to be proven lies in another database than the one the URL names.",
    "Name its database in the URL; a scratch server has one database for each URL.",
)


class _Server(ScratchServer):
    """The scratch server of a proof, as `ScratchPlace.shared` keeps it."""

    def __init__(self) -> None:
        super().__init__()
        from dataflare_plugins.mysql.scratch.server import MariadbServer, installed

        driver()
        if not installed():
            raise NO_SERVER.error("neither mariadbd nor mariadb-install-db was found")
        self.server: MariadbServer = MariadbServer().start()

    def url(self, name: str) -> str:
        """Return the URL over TCP."""
        return self.server.url(name)

    def create(self, name: str) -> None:
        """Make a database."""
        self.server.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def remove(self, name: str) -> None:
        """Drop a database with whoever is still connected to it."""
        for (held,) in self.server.execute(f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{name}'"):
            self.server.execute(f"KILL {held}")
        self.server.execute(f"DROP DATABASE {name}")

    def close(self) -> None:
        """Stop the server and remove it."""
        self.server.remove()


class MysqlTwin(DatabaseTwin):
    """The database a source reads."""

    _server: _Server

    def load(self, sql: str) -> None:
        """Run the script's statements.

        Raises:
            DataflareError: `prove.bad-script`.
        """
        pymysql = driver()
        db = self._connect(client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS)
        try:
            with db.cursor() as cursor:
                cursor.execute(sql)
                while cursor.nextset():
                    pass
            db.commit()
        except pymysql.MySQLError as error:
            raise BAD_SCRIPT.error(f"MariaDB refuses it: {error.args[-1]}") from error
        finally:
            db.close()

    def writer(self, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> Together | None:
        """Return a writer over the tables that are read."""
        tables = self.config.get("tables") or [self.config.get("table")]
        made = [self._over(t, extract, seed + i, kinds) for i, t in enumerate(tables) if t]
        return Together(made, seed) if made else None

    def _connect(self, **more: Any) -> Any:
        # Names are quoted as the standard does, as whoever writes to any twin quotes them.
        settings = {**SETTINGS, "sql_mode": "'ANSI_QUOTES,STRICT_ALL_TABLES'"}
        told = f"SET {', '.join(f'{k} = {v}' for k, v in settings.items())}"
        return self._server.server.connect(self._name, autocommit=False, init_command=told, **more)

    def _over(self, table: str, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> TableWriter:
        session = Session(parse_url(self.config["url"]))
        found = catalog.table(session, self._name, table)
        foreign = session.query(
            "SELECT COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE "
            "WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND REFERENCED_TABLE_NAME IS NOT NULL",
            (self._name, table),
        )
        session.close()
        columns = tuple(c.name for c in found.columns if not c.generated)
        shape = TableShape(f'"{table}"', tuple(extract.key) or found.key, columns, extract.cursor, frozenset(r[0] for r in foreign))
        return TableWriter(self._connect(), shape, seed=seed, kinds=kinds, mark="%s", errors=driver().MySQLError)


def source_twin(config: Any, place: ScratchPlace) -> MysqlTwin:
    """Return an empty database for the workflow's script.

    Raises:
        DataflareError: `prove.no-script`, `mysql.no-scratch-server`, `mysql.other-database`.
    """
    if not place.scripted:
        raise NO_SCRIPT.error(f"the tables that '{place.node}' reads are not known")
    server = place.shared("mysql", lambda _folder: _Server())
    named = replace(
        config,
        table=None if config.table is None else _own(config.table, config.url),
        tables=None if config.tables is None else [_own(t, config.url) for t in config.tables],
    )
    return MysqlTwin(to_plain(named), server, server.database(place, config.url))


def destination_twin(config: Any, place: ScratchPlace) -> DestinationTwin:
    """Return a database to write.

    Raises:
        DataflareError: `mysql.no-scratch-server`, `mysql.other-database`.
    """
    server = place.shared("mysql", lambda _folder: _Server())
    return DatabaseTarget(to_plain(replace(config, table=_own(config.table, config.url))), server, server.database(place, config.url))


def _own(table: str, url: str) -> str:
    """Return a table's name without its database, which the URL has to name."""
    named = parse_url(url).database
    schema, name = catalog.split_name(table, named)
    if schema != named:
        raise OTHER_DATABASE.error(f"'{table}' is not in '{named}'", path="table")
    return name
