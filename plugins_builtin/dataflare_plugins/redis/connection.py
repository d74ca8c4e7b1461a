"""A connection to a server: commands in a pipeline, a transaction, replies as the driver's C parser makes them."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dataflare_plugins.redis.bulk import Columns, columns
from dataflare_plugins.redis.errors import BAD_URL, driver, explained
from dataflare_sdk.records import field, record

CONNECT_TIMEOUT = 10.0
PATIENCE = 60.0
"""Seconds the server may take for an answer, beyond what it was asked to wait."""
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
"""What a URL may carry behind its question mark."""
Command = Sequence[Any]
_TAKEN = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*"
"""How the reply to a transaction of two commands begins, if nothing is wrong."""


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
        self._end = b""
        self._buffer = bytearray(1 << 18)

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
            self._end = self._word_at_the_end(made)
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

    # -- entries -------------------------------------------------------------------------------------------

    def entries(self, commands: Sequence[Command]) -> tuple[Columns | None, list[Any]]:
        """Run a transaction of two commands, the first of which gives entries of a stream, the second is `XINFO STREAM`.

        Returns:
            The entries by the column and the reply to the second command; or None and both replies, where that cannot be.
        """
        with self._errors():
            if self._ahead != tuple(commands):
                self.ahead(commands)
            self._ahead = ()
            if not self._end:
                return None, self._answer(len(commands))
            raw = self._received(self._made)
            with raw:
                found = columns(raw) if raw[: len(_TAKEN)] == _TAKEN else None
                start = 0 if found is None else found.behind
                self._made._parser._reader.feed(self._buffer, start, len(raw) - start)
            replies = self._answer(len(commands)) if found is None else [self._made.read_response(disable_decoding=True)]
            with contextlib.suppress(driver().ResponseError):
                self._made.read_response(disable_decoding=True)  # the word at the end
            return found, replies

    def ahead(self, commands: Sequence[Command]) -> None:
        """Send a transaction whose replies are wanted later: `entries` with the same commands reads them.

        The server works on it meanwhile. If something else is asked of it first, they are read and dropped.
        """
        with self._errors():
            connection = self._ready()
            end = [("ECHO", self._end)] if self._end else []
            connection.send_packed_command(connection.pack_commands([("MULTI",), *commands, ("EXEC",), *end]))
            self._ahead = tuple(commands)

    def _ready(self) -> Any:
        """Return the connection with nothing left to read on it."""
        self._connection()
        if self._ahead:
            self.entries(self._ahead)
        return self._connection()

    def _word_at_the_end(self, connection: Any) -> bytes:
        """Return a word by whose echo the end of a long reply is known; none where bytes cannot be had, or the user may not ask for it."""
        if not hasattr(getattr(connection, "_parser", None), "_reader"):
            return b""  # the driver without its parser in C
        word = secrets.token_hex(8).encode()
        with self._errors():
            try:
                connection.send_command("ECHO", word)
                connection.read_response(disable_decoding=True)
            except driver().ResponseError:
                return b""
        return word

    def _received(self, connection: Any) -> memoryview:
        """Read to the word at the end, or to an error in the place of a reply; what comes lies in `_buffer` until the next time."""
        end, size = b"$%d\r\n%s\r\n" % (len(self._end), self._end), 0
        while True:
            with memoryview(self._buffer) as free:
                got = connection._sock.recv_into(free[size:])
            if not got:
                raise driver().ConnectionError("the server closed the connection")
            size += got
            if self._buffer[max(0, size - len(end)) : size] == end or (size >= len(_TAKEN) and not self._buffer.startswith(_TAKEN)):
                return memoryview(self._buffer)[:size]
            if size == len(self._buffer):
                self._buffer += bytes(size)

    def _answer(self, count: int) -> Any:
        """Read what came of a transaction of so many commands."""
        for _ in range(1 + count):
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
