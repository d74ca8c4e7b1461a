"""Scratch twins: fresh databases on one scratch server, that lives as long as the proof."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.connection import SETTINGS, Session, parse_url
from dataflare_plugins.mysql.errors import driver
from dataflare_sdk import DestinationTwin, ExtractSpec, ScratchPlace, SourceTwin, code
from dataflare_sdk.fields import to_plain
from dataflare_sdk.scratch import BAD_SCRIPT, NO_SCRIPT
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


class _Server:
    """The scratch server of a proof, as `ScratchPlace.shared` keeps it."""

    def __init__(self) -> None:
        from dataflare_plugins.mysql.scratch.server import MariadbServer, installed

        driver()
        if not installed():
            raise NO_SERVER.error("neither mariadbd nor mariadb-install-db was found")
        self.server: MariadbServer = MariadbServer().start()
        self.databases: set[str] = set()

    def database(self, place: ScratchPlace, url: str) -> str:
        """Return the database that stands in for the one of `url` in this round; made when first asked for."""
        name = "d" + hashlib.sha256(f"{place.folder}\0{url}".encode()).hexdigest()[:12]
        if name not in self.databases:
            self.server.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
            self.databases.add(name)
        return name

    def drop(self, name: str) -> None:
        """Drop a database with whoever is still connected to it, once."""
        if name in self.databases:
            self.databases.discard(name)
            for (held,) in self.server.execute(f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{name}'"):
                self.server.execute(f"KILL {held}")
            self.server.execute(f"DROP DATABASE {name}")

    def close(self) -> None:
        """Stop the server and remove it."""
        self.server.remove()


class MysqlTwin(SourceTwin):
    """The database a source reads."""

    def __init__(self, config: dict[str, Any], server: _Server, name: str) -> None:
        super().__init__({**config, "url": server.server.url(name)})
        self._server = server
        self._name = name

    def database(self) -> str | None:
        """Return the database."""
        return self._name

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

    def close(self) -> None:
        """Drop the database."""
        self._server.drop(self._name)


class _Target(DestinationTwin):
    """The database a destination writes."""

    def __init__(self, config: dict[str, Any], server: _Server, name: str) -> None:
        super().__init__({**config, "url": server.server.url(name)})
        self._server = server
        self._name = name

    def close(self) -> None:
        """Drop the database."""
        self._server.drop(self._name)


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
    return _Target(to_plain(replace(config, table=_own(config.table, config.url))), server, server.database(place, config.url))


def _own(table: str, url: str) -> str:
    """Return a table's name without its database, which the URL has to name."""
    named = parse_url(url).database
    schema, name = catalog.split_name(table, named)
    if schema != named:
        raise OTHER_DATABASE.error(f"'{table}' is not in '{named}'", path="table")
    return name
