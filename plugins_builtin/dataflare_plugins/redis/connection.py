"""A connection to a server: commands in a pipeline, a transaction, replies as the driver's C parser makes them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dataflare_plugins.redis.errors import BAD_URL, driver, explained
from dataflare_sdk.records import field, record

CONNECT_TIMEOUT = 10.0
PATIENCE = 60.0
"""Seconds the server may take for an answer, beyond what it was asked to wait."""
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
"""What a URL may carry behind its question mark."""
Command = Sequence[Any]


@record
class Url:
    """Where a server is and who connects.

    Attributes:
        text: the whole URL, with the password: never shown.
        place: what may be shown: host, port and database, or the socket.
    """

    text: str = field(repr=False)
    place: str

    def __str__(self) -> str:
        """Return it without user and password."""
        return self.place


def parse_url(text: str) -> Url:
    """Check a URL and say what of it may be shown.

    Raises:
        DataflareError: `redis.bad-url`; the message does not repeat the URL, there may be a password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or 6379
    except ValueError as error:
        raise BAD_URL.error("`url` cannot be read as a URL", path="url") from error
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise BAD_URL.error(f"`url` begins with '{parts.scheme}:' and not with 'redis:', 'rediss:' or 'unix:'", path="url")
    unknown = next(
        (name for name, _ in parse_qsl(parts.query) if name not in (*OPTIONS, *(["db"] if parts.scheme == "unix" else []))), None
    )
    if unknown is not None:
        raise BAD_URL.error(f"`url` has the option '{unknown}'; there are {', '.join(OPTIONS)}", path="url")
    if parts.scheme == "unix":
        return Url(text, f"unix:{parts.path}")
    database = parts.path.strip("/") or "0"
    if not database.isdigit():
        raise BAD_URL.error("`url` names a database that is no number", path="url")
    return Url(text, f"{parts.scheme}://{(parts.hostname or 'localhost').lower()}:{port}/{database}")


class Session:
    """One connection, opened when it is first used; one thread uses it, `interrupt` comes from any.

    Args:
        url: the server.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self._made: Any = None
        self._ahead: tuple[Command, ...] = ()

    def _connection(self) -> Any:
        if self._made is None:
            redis = driver()
            settings = redis.connection.parse_url(self.url.text)
            kind = settings.pop("connection_class", redis.connection.Connection)
            more: dict[str, Any] = {"socket_keepalive": True} if kind is not redis.connection.UnixDomainSocketConnection else {}
            made = kind(
                **settings,
                **more,
                protocol=2,
                socket_connect_timeout=CONNECT_TIMEOUT,
                socket_timeout=PATIENCE,
                socket_read_size=1 << 18,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                client_name="dataflare",
            )
            try:
                made.connect()
            except (redis.RedisError, OSError, EOFError) as error:
                raise explained(error, self.url.place, connecting=True) from error
            self._made = made
        return self._made

    @contextlib.contextmanager
    def _errors(self, path: str | None = None) -> Iterator[None]:
        """Turn the driver's errors into ours; a connection in an unknown state is not used again."""
        redis = driver()
        try:
            yield
        except redis.ResponseError as error:
            raise explained(error, self.url.place, path=path) from error
        except (redis.RedisError, OSError, EOFError) as error:
            self.close()
            raise explained(error, self.url.place, path=path) from error
        except BaseException:
            self.close()
            raise

    def call(self, *command: Any, path: str | None = None) -> Any:
        """Run one command and return its reply, texts as bytes.

        Raises:
            DataflareError: of this plugin's codes.
        """
        with self._errors(path):
            connection = self._ready()
            connection.send_command(*command)
            return connection.read_response(disable_decoding=True)

    def wait(self, seconds: float, *command: Any) -> Any:
        """Run a command that waits at the server for up to `seconds`."""
        with self._errors():
            connection = self._ready()
            connection.send_command(*command)
            return connection.read_response(disable_decoding=True, timeout=seconds + PATIENCE)

    def ahead(self, commands: Sequence[Command]) -> None:
        """Send a transaction whose replies are wanted later: `transaction` with the same commands reads them.

        The server works on it meanwhile. If something else is asked of it first, they are read and dropped.
        """
        with self._errors():
            connection = self._ready()
            connection.send_packed_command(connection.pack_commands([("MULTI",), *commands, ("EXEC",)]))
            self._ahead = tuple(commands)

    def _ready(self) -> Any:
        """Return the connection with nothing left to read on it."""
        connection = self._connection()
        if self._ahead:
            self._answer()
        return connection

    def _answer(self) -> Any:
        """Read what came of a transaction that was sent ahead."""
        sent, self._ahead = self._ahead, ()
        for _ in range(1 + len(sent)):
            self._queued()
        return self._made.read_response(disable_decoding=True)

    def transaction(self, commands: Sequence[Command], packed: Iterable[tuple[Any, int]] = ()) -> Any:
        """Run commands as one transaction and return their replies; None when a key that is watched was changed.

        A reply may be an error of the driver: of a command that failed by itself, which keeps no other from its work.

        Args:
            commands: the commands.
            packed: commands as bytes with their number, run before the others; of their replies none is an error, or it raises.
        """
        redis = driver()
        if self._ahead and self._ahead == tuple(commands):
            with self._errors():
                return self._answer()
        with self._errors():
            connection = self._ready()
            ahead, begin = 0, [("MULTI",)]
            for piece, count in packed:
                connection.send_packed_command([*connection.pack_commands(begin), piece])
                for _ in range(count + len(begin)):
                    self._queued()
                ahead, begin = ahead + count, []
            connection.send_packed_command(connection.pack_commands([*begin, *commands, ("EXEC",)]))
            for _ in range(len(begin) + len(commands)):
                self._queued()
            replies = connection.read_response(disable_decoding=True)
        if replies is None:
            return None
        failed = next((r for r in replies[:ahead] if isinstance(r, redis.ResponseError)), None)
        if failed is not None:
            raise explained(failed, self.url.place)
        return replies[ahead:]

    def _queued(self) -> None:
        """Read that a command was taken into the transaction; with the connection the transaction is gone, if it was not."""
        try:
            self._made.read_response(disable_decoding=True)
        except driver().ResponseError:
            self.close()
            raise

    def interrupt(self) -> None:
        """Make a call on another thread return with an error; from any thread."""
        sock = getattr(self._made, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next use opens one anew."""
        made, self._made = self._made, None
        self._ahead = ()
        if made is not None:
            with contextlib.suppress(Exception):
                made.disconnect()


def flat(reply: Sequence[Any]) -> dict[str, Any]:
    """Return a reply of names and values in turn as a mapping."""
    return {reply[i].decode(): reply[i + 1] for i in range(0, len(reply), 2)}
