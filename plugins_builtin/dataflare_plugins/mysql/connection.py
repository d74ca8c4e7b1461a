"""Connections: the URL, a session set up the one way that everything here relies on."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dataflare_plugins.mysql.errors import BAD_URL, driver, explained
from dataflare_sdk.records import field, record

CONNECT_TIMEOUT = 10
LOCK_WAIT = 50
"""Seconds a statement waits for somebody else's lock."""
PATIENCE = 86_400
"""Seconds the server waits for us while a slow destination holds us back."""
MODE = "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION"

SETTINGS = {
    "time_zone": "'+00:00'",
    "sql_mode": f"'{MODE}'",
    "lock_wait_timeout": LOCK_WAIT,
    "innodb_lock_wait_timeout": LOCK_WAIT,
    "net_write_timeout": PATIENCE,
    "wait_timeout": PATIENCE,
    "sql_auto_is_null": 0,
}
"""Of every session."""


@record
class Url:
    """Where a server is and who connects.

    Attributes:
        user: the user.
        password: the password, never shown.
        host: name or address.
        port: TCP port.
        database: the database.
        options: `ssl` (`off`, `required`, `verify`), `ssl_ca`, `unix_socket`.
    """

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    options: Mapping[str, str]

    def dataset(self, schema: str, table: str) -> tuple[str, str]:
        """Return the server, and database and table, as lineage systems know them."""
        return f"mysql://{self.options.get('unix_socket') or f'{self.host}:{self.port}'}", f"{schema}.{table}"

    def __str__(self) -> str:
        """Return it without the password."""
        return f"mysql://{self.user}@{self.options.get('unix_socket') or f'{self.host}:{self.port}'}/{self.database}"


def parse_url(text: str) -> Url:
    """Return the parts of a URL.

    Raises:
        DataflareError: `mysql.bad-url`; the message does not repeat the URL, there may be a password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or 3306
    except ValueError as error:
        raise BAD_URL.error("`url` cannot be read as a URL", path="url") from error
    if parts.scheme not in ("mysql", "mariadb"):
        raise BAD_URL.error(f"`url` begins with '{parts.scheme}:' and not with 'mysql:'", path="url")
    database, options = unquote(parts.path.strip("/")), dict(parse_qsl(parts.query))
    if not database or "/" in database:
        raise BAD_URL.error("`url` names no database", path="url")
    for name, value in options.items():
        if name not in ("ssl", "ssl_ca", "unix_socket") or (name == "ssl" and value not in ("off", "required", "verify")):
            raise BAD_URL.error(
                f"`url` has the option '{name}={value}'; there are ssl=off|required|verify, ssl_ca, unix_socket", path="url"
            )
    return Url(unquote(parts.username or ""), unquote(parts.password or ""), parts.hostname or "127.0.0.1", port, database, options)


class Session:
    """One connection, in UTC, strict, UTF-8; opened when it is first used.

    Args:
        url: the server.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self._db: Any = None
        self._variables: dict[str, str] = {}

    @property
    def db(self) -> Any:
        """The PyMySQL connection.

        Raises:
            DataflareError: `mysql.unreachable`, `mysql.denied`, `mysql.no-database`.
        """
        if self._db is None:
            self._db = self._connect()
        return self._db

    def _connect(self) -> Any:
        pymysql, url = driver(), self.url
        try:
            db = pymysql.connect(
                host=url.host,
                port=url.port,
                unix_socket=url.options.get("unix_socket"),
                user=url.user,
                password=url.password,
                database=url.database,
                charset="utf8mb4",
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT,
                ssl=_tls(url),
                ssl_disabled=url.options.get("ssl", "off" if _near(url) else "") == "off",
                program_name="dataflare",
                local_infile=False,
                init_command=f"SET {', '.join(f'{k} = {v}' for k, v in SETTINGS.items())}",
            )
        except (pymysql.MySQLError, OSError, RuntimeError) as error:
            raise explained(error, str(url)) from error
        with contextlib.suppress(OSError):
            db._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return db

    @contextlib.contextmanager
    def errors(self, path: str | None = None) -> Iterator[None]:
        """Turn the driver's errors into ours; a connection that failed is not used again."""
        pymysql = driver()
        try:
            yield
        except (pymysql.MySQLError, OSError, EOFError) as error:
            found = explained(error, str(self.url), path)
            if found.code in ("mysql.connection-lost", "mysql.unreachable"):
                self.close()
            raise found from error

    def query(self, sql: str, parameters: Sequence[Any] = (), path: str | None = None) -> list[tuple[Any, ...]]:
        """Run a statement with `%s` for parameters and return its rows."""
        with self.errors(path), self.db.cursor() as cursor:
            cursor.execute(sql, tuple(parameters) or None)
            return list(cursor.fetchall())

    def execute(self, sql: str, path: str | None = None) -> int:
        """Run a statement and return how many rows it changed."""
        with self.errors(path):
            return int(self.db.query(sql))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction; it is rolled back when the block fails."""
        self.execute("START TRANSACTION")
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self.db.rollback()
            raise
        self.execute("COMMIT")

    def variable(self, name: str) -> str:
        """Return a global variable of the server, empty when it has none of that name."""
        if name not in self._variables:
            rows = self.query("SHOW GLOBAL VARIABLES WHERE Variable_name = %s", (name,))
            self._variables[name] = str(rows[0][1]) if rows else ""
        return self._variables[name]

    @property
    def mariadb(self) -> bool:
        """Whether it is a MariaDB."""
        return "mariadb" in self.variable("version").lower()

    @property
    def version(self) -> tuple[int, int]:
        """The server's version, two numbers."""
        major, minor = self.variable("version").split(".")[:2]
        return int(major), int(minor)

    def interrupt(self) -> None:
        """Make a call on another thread return with an error; from any thread."""
        db = self._db
        sock = getattr(db, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next use opens one anew."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(Exception):
                db._force_close()


def _near(url: Url) -> bool:
    """Whether the server is on this machine: there is no wire to listen on."""
    return "unix_socket" in url.options or url.host in ("localhost", "127.0.0.1", "::1")


def _tls(url: Url) -> Any:
    wanted = url.options.get("ssl")
    if wanted not in ("required", "verify"):
        return None
    context = ssl.create_default_context(cafile=url.options.get("ssl_ca"))
    if wanted == "required":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def quote(name: str) -> str:
    """Return an identifier, quoted as MySQL quotes."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """Return a string literal; sessions have NO_BACKSLASH_ESCAPES."""
    return "'" + text.replace("'", "''") + "'"
