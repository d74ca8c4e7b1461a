"""Connections to the state database, and what their failures mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dataflare_sdk import DataflareError, code
from dataflare_sdk.state_sql import UNUSABLE

if TYPE_CHECKING:
    import psycopg

MISSING_EXTRA = code(
    "state.missing-extra", 4, "The library that speaks to PostgreSQL is not installed.", "pip install 'dataflare[postgres]'"
)
BAD_URL = code("state.bad-url", 3, "`state.url` is no PostgreSQL URL.", "Write it as postgresql://user@host:port/database.")
LOST = code(
    "state.lost",
    4,
    "The connection to the state database cannot be made, or was lost.",
    "Check that the server runs and can be reached; the run tries again by itself.",
)
SCHEMA = "dataflare_state"
_SETTINGS = (
    f"SET search_path = {SCHEMA}",
    "SET synchronous_commit = on",  # whatever the server's default: a logged epoch is on disk
    "SET idle_in_transaction_session_timeout = '10s'",  # a stopped zombie does not hold its row for ever
    "SET client_min_messages = warning",
)
_OF_THE_MOMENT = ("08", "57P", "53300", "40", "55P03", "25P03")
"""Beginnings of SQLSTATEs that may pass: connection, shutdown, too many connections, serialization, lock, idle."""


class Session:
    """Opens connections to one database and explains what goes wrong with them.

    Args:
        url: the database; its password is never shown.
    """

    def __init__(self, url: str) -> None:
        self._driver = _driver()
        try:
            parts = self._driver.conninfo.conninfo_to_dict(url)
        except self._driver.Error:
            # The driver's own words would show the URL, and the password in it.
            raise BAD_URL.error("this is no PostgreSQL URL", path="url") from None
        self._url = url
        host = parts.get("host") or "the local socket"
        self.place = f"{host}{':' + str(parts['port']) if parts.get('port') else ''}/{parts.get('dbname') or ''}"

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """Open a connection that commits each statement, with `name` for the server's list of sessions.

        Raises:
            RetriableError: `state.lost`.
            DataflareError: `state.unusable`: it is refused, and will be again.
        """
        with self.explained():
            db: psycopg.Connection[Any] = self._driver.connect(
                self._url, autocommit=True, application_name=name, connect_timeout=10, keepalives_idle=30, keepalives_interval=10
            )
            try:
                for setting in _SETTINGS:
                    db.execute(setting)
            except BaseException:
                db.close()
                raise
            return db

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the driver's failures into errors with a code."""
        try:
            yield
        except self._driver.Error as error:
            raise self._error(error) from error

    def _error(self, error: psycopg.Error) -> DataflareError:
        state, text = error.sqlstate or "", " ".join(str(error).split())
        if not state and not _refused(text) and isinstance(error, (self._driver.OperationalError, self._driver.InterfaceError)):
            return LOST.retriable(f"the state database {self.place} cannot be reached: {text}")
        if state.startswith(_OF_THE_MOMENT):
            return LOST.retriable(f"the state database {self.place} gave up: {text}")
        return UNUSABLE.error(f"the state database {self.place} cannot be used: {text}")


def _refused(text: str) -> bool:
    """Whether a connection failed for good; the driver gives no SQLSTATE for these."""
    return any(words in text for words in ("authentication failed", "does not exist", "pg_hba.conf", "permission denied", "no password"))


def _driver() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MISSING_EXTRA.error(f"PostgreSQL as a state store needs psycopg: {error}") from None
    return psycopg
