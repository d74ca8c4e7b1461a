"""Connections: from a URL to a session in a known state, and from the server's errors to codes with a mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from dataflare_sdk import CODES, DataflareError, ErrorCode, code

if TYPE_CHECKING:
    import psycopg

MISSING_EXTRA = code(
    "postgres.missing-extra", 4, "The library for PostgreSQL is not installed.", "Install it: pip install 'dataflare[postgres]'."
)
BAD_URL = code(
    "postgres.bad-url",
    3,
    "The URL of a PostgreSQL database is none.",
    "Write it as postgresql://user:password@host:5432/database; special characters are %-escaped.",
)
UNREACHABLE = code(
    "postgres.unreachable",
    4,
    "The PostgreSQL server cannot be reached.",
    "Check host and port of `url`, that the server runs and that the network lets you through.",
)
LOGIN = code(
    "postgres.login", 4, "The PostgreSQL server refuses the login.", "Check user and password in `url`, and the server's pg_hba.conf."
)
NO_DATABASE = code("postgres.no-database", 4, "The database does not exist on the server.", "Check the last part of `url`, or create it.")
LOST = code(
    "postgres.connection-lost",
    4,
    "The connection to the PostgreSQL server was lost.",
    "The run tries again by itself; see the server's log if it goes on.",
)
BUSY = code("postgres.busy", 4, "The PostgreSQL server cannot serve this now.", "The run tries again by itself; see who holds the lock.")
PERMISSION = code("postgres.permission", 4, "The user may not do this in the database.", "Grant it the right that the message names.")
READ_ONLY = code("postgres.read-only", 4, "The server takes no writes: it is a standby or read-only.", "Write to the primary server.")
FAILED = code("postgres.failed", 4, "The PostgreSQL server refuses a statement.", "See the server's message.")

_DEFAULTS = {
    "application_name": "dataflare",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "client_encoding": "UTF8",
}
_SESSION = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; "
    "SET standard_conforming_strings = on; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; "
    # A shared scan begins where another stands: rows would come in another order each time.
    "SET synchronize_seqscans = off"
)
"""What a session is set to, so that text, zones and timeouts do not depend on the role's or the server's settings."""


class Server:
    """A database by its URL. Opens no connection by itself; needs no library until it does.

    Args:
        url: `postgresql://user:password@host:port/database?sslmode=…`; a Unix socket as `?host=/folder`.

    Raises:
        DataflareError: `postgres.bad-url`.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(str(url))
            port = parts.port
        except ValueError as error:
            raise BAD_URL.error("the URL cannot be taken apart", path="url") from error
        if parts.scheme not in ("postgres", "postgresql"):
            raise BAD_URL.error("the URL does not begin with postgresql://", path="url")
        self._url = str(url)
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        self.host = query.get("host") or unquote(parts.hostname or "") or "localhost"
        self.port = int(query.get("port") or port or 5432)
        self.user = query.get("user") or unquote(parts.username or "")
        self.database = query.get("dbname") or unquote(parts.path.lstrip("/")) or self.user
        self._secrets = [s for s in {parts.password, unquote(parts.password or ""), query.get("password")} if s]
        self._given = set(query)

    @property
    def shown(self) -> str:
        """Return the database as people may see it: no password, no parameters."""
        who = f"{quote(self.user)}@" if self.user else ""
        host = self.host if not self.host.startswith("/") else quote(self.host, safe="")
        return f"postgresql://{who}{host}:{self.port}/{quote(self.database)}"

    def dataset(self, schema: str | None, table: str) -> tuple[str, str]:
        """Return the server, and database, schema and table, as lineage systems know them; without a schema it is `public`."""
        return f"postgres://{self.host}:{self.port}", f"{self.database}.{schema or 'public'}.{table}"

    @property
    def scope(self) -> str:
        """Return the name of what one transaction of this user spans."""
        host = "127.0.0.1" if self.host in ("localhost", "::1") else self.host.lower()
        return f"postgres:{self.user}@{host}:{self.port}/{self.database}"

    def connect(self, **more: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection in autocommit mode, in a known state.

        Args:
            more: parameters of libpq beside those of the URL (`replication="database"`).

        Raises:
            DataflareError: `postgres.missing-extra`, `postgres.login`, `postgres.no-database`; retriable
                `postgres.unreachable`, `postgres.busy`.
        """
        client = library()
        defaults = {k: v for k, v in _DEFAULTS.items() if k not in self._given}
        try:
            db: psycopg.Connection[tuple[Any, ...]] = client.connect(self._url, autocommit=True, **{**defaults, **more})
        except client.Error as error:
            raise self._refused(error) from None  # libpq's own text may show the URL
        db.prepare_threshold = None  # behind a pooler a prepared statement is somebody else's
        with self.explained():
            if "replication" not in more:
                db.execute(_SESSION)
        return db

    def _refused(self, error: psycopg.Error) -> DataflareError:
        """Say why a connection was not made; libpq gives most reasons as text only."""
        text = self.clean(error)
        lower = text.lower()
        if any(w in lower for w in ("password authentication", "no password supplied", "pg_hba.conf", "authentication failed")):
            return LOGIN.error(f"{self.shown} refuses the login: {text}", path="url")
        if 'role "' in lower and "does not exist" in lower:
            return LOGIN.error(f"{self.shown} does not know the user: {text}", path="url")
        if 'database "' in lower and "does not exist" in lower:
            return NO_DATABASE.error(f"{self.shown}: {text}", path="url")
        if "permission denied for database" in lower:
            return PERMISSION.error(f"{self.shown}: {text}", path="url")
        if "invalid" in lower and ("parameter" in lower or "option" in lower or "value" in lower):
            return BAD_URL.error(f"the URL has a parameter that is none: {text}", path="url")
        if any(
            w in lower for w in ("too many clients", "too many connections", "remaining connection slots", "starting up", "shutting down")
        ):
            return BUSY.retriable(f"{self.shown}: {text}", path="url")
        return UNREACHABLE.retriable(f"{self.shown} cannot be reached: {text}", path="url")

    def clean(self, error: BaseException) -> str:
        """Return an error's text on one line, without passwords."""
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextlib.contextmanager
    def explained(self, refused: ErrorCode | None = None, path: str | None = None) -> Iterator[None]:
        """Turn the library's errors into coded ones.

        Args:
            refused: code for what is not of the moment and has none of its own (a query that is wrong).
            path: where in the `with:` block to look then.
        """
        psycopg = library()
        try:
            yield
        except psycopg.Error as error:
            raise self.explain(error, refused, path) from error

    @contextlib.contextmanager
    def refusals(self, refused: ErrorCode) -> Iterator[None]:
        """Turn what the server says of a row (a constraint, a value that is none) into one error with its words."""
        psycopg = library()
        try:
            yield
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] in ("22", "23", "P0"):
                raise refused.error(f"{self.shown}: {self.clean(error)[:500]}") from error
            raise

    def explain(self, error: psycopg.Error, refused: ErrorCode | None = None, path: str | None = None) -> DataflareError:
        """Return the coded error for one of the library's, by its SQLSTATE."""
        psycopg = library()
        state, text = error.sqlstate or "", self.clean(error)
        message = f"{self.shown}: {text}"
        lost = isinstance(error, psycopg.OperationalError) and not state
        if lost or state.startswith(("08", "57P0")):
            return LOST.retriable(message)
        if state.startswith("40") or state in ("55P03", "53300", "53200", "57014"):
            return BUSY.retriable(message)
        if state == "53100":
            return CODES["world.disk-full"].error(message)
        if state == "42501":
            return PERMISSION.error(message, path=path)
        if state == "25006":
            return READ_ONLY.error(message, path="url")
        return (refused or FAILED).error(message, path=path)


def library() -> Any:
    """Return psycopg.

    Raises:
        DataflareError: `postgres.missing-extra`.
    """
    try:
        import psycopg
    except ImportError as error:
        raise MISSING_EXTRA.error(f"psycopg cannot be loaded: {error}") from error
    return psycopg
