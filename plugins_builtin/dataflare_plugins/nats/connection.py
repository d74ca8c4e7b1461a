"""A connection to a NATS server in its text protocol, many messages at a time.

The library nats-py makes an object and wakes a task for every message, some 28 µs each; this reads what the socket has and
takes it apart in one loop, about 1 µs a message (both measured at 100 bytes a message).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dataflare_plugins.nats.errors import BAD_URL, LOST, NO_JETSTREAM, SERVER, UNREACHABLE, refused, told
from dataflare_sdk.records import field, record

CONNECT_TIMEOUT = 10.0
PATIENCE = 30.0
"""Seconds the server may take for an answer."""
READ = 1 << 20
"""Bytes asked of the socket at once."""
OPTIONS = ("ca", "cert", "key", "verify")
ANSWERS, PAGES, ACKS = b"1", b"2", b"3"
"""Subscriptions: answers of the API, messages asked for, and what came of messages that were published."""
FRAME = re.compile(rb"MSG (\S+) (\d+) +(?:([^\s\d]\S*) )?(\d+)\r\n|HMSG (\S+) (\d+) +(?:([^\s\d]\S*) )?(\d+) (\d+)\r\n")

Frame = tuple[bytes, bytes | None, bytes | None, bytes]
"""Subject, where to answer to, headers, payload."""


@record
class Url:
    """Where a server is and who connects.

    Attributes:
        servers: host and port of each server of a cluster.
        user: the user, or the token when there is no password.
        password: never shown.
        options: `ca`, `cert`, `key` (files), `verify` (`off`: whoever answers is believed).
        tls: TLS whether the server asks for it or not.
    """

    servers: tuple[tuple[str, int], ...]
    user: str = field(repr=False)
    password: str | None = field(repr=False)
    options: Mapping[str, str]
    tls: bool

    def __str__(self) -> str:
        """Return it without user and password."""
        return ("tls://" if self.tls else "nats://") + ",".join(f"{host}:{port}" for host, port in self.servers)


def parse_url(text: str) -> Url:
    """Return the parts of a URL; several servers of a cluster stand in one, with commas between.

    Raises:
        DataflareError: `nats.bad-url`; the message does not repeat the URL, there may be a password in it.
    """
    try:
        parts = urlsplit(text)
        credentials, _, places = parts.netloc.rpartition("@")
        servers = [urlsplit(f"//{place}") for place in places.split(",")]
        found = tuple(((s.hostname or "127.0.0.1"), s.port or 4222) for s in servers)
    except ValueError as error:
        raise BAD_URL.error("`url` cannot be read as a URL", path="url") from error
    if parts.scheme not in ("nats", "tls"):
        raise BAD_URL.error(f"`url` begins with '{parts.scheme}:' and not with 'nats:' or 'tls:'", path="url")
    options = dict(parse_qsl(parts.query))
    wrong = next((n for n, v in options.items() if n not in OPTIONS or (n == "verify" and v not in ("on", "off"))), None)
    if parts.path.strip("/") or parts.fragment:
        # It may be the rest of a password: not repeated.
        raise BAD_URL.error("`url` has a / or # behind the server; in a user or password they are written %2F and %23", path="url")
    if wrong is not None:
        raise BAD_URL.error(f"`url` has the option '{wrong}'; there are ca, cert, key, verify=on|off", path="url")
    user, colon, password = credentials.partition(":")
    return Url(found, unquote(user), unquote(password) if colon else None, options, parts.scheme == "tls")


class Link:
    """One connection, opened when it is first used; one thread uses it, `interrupt` comes from any.

    Args:
        url: the server.

    Attributes:
        pages: messages that were asked for and came.
        acks: what came of messages that were published.
        heard: when the server was last heard of, monotonic seconds.
        opened: how often it was connected: what was asked for over an earlier connection does not come any more.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self.pages: deque[Frame] = deque()
        self.acks: deque[Frame] = deque()
        self.info: dict[str, Any] = {}
        self._sock: Any = None
        self._rest = b""
        self._answers: dict[bytes, Frame] = {}
        self._asked = 0
        self.heard = 0.0
        self.opened = 0

    # -- life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, unless it is connected already.

        Raises:
            DataflareError: `nats.unreachable`, `nats.denied`, `nats.no-jetstream`.
        """
        if self._sock is not None:
            return
        failed: Exception | None = None
        for host, port in self.url.servers:
            try:
                self._connect(host, port)
                return
            except (OSError, EOFError, ValueError) as error:
                self.close()
                failed = error
        raise UNREACHABLE.retriable(f"{self.url} cannot be reached: {failed}", path="url") from failed

    def _connect(self, host: str, port: int) -> None:
        self._sock = sock = socket.create_connection((host, port), CONNECT_TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        first = b""
        while not first.endswith(b"\r\n"):  # not further: what follows may be TLS
            byte = sock.recv(1)
            if not byte:
                raise EOFError("the server closed the connection")
            first += byte
        if not first.startswith(b"INFO "):
            raise ValueError("what listens there is no NATS server")
        self.info = json.loads(first[5:])
        if self.url.tls or self.info.get("tls_required"):
            self._sock = sock = _tls(self.url).wrap_socket(sock, server_hostname=host)
        sock.settimeout(PATIENCE)
        self._inbox = b"_INBOX." + secrets.token_hex(8).encode()
        self._rest, self._answers = b"", {}
        self.pages.clear()
        self.acks.clear()
        hello = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "lang": "python",
            "version": "1",
            "protocol": 1,
        }
        if self.url.password is not None:
            hello |= {"user": self.url.user, "pass": self.url.password}
        elif self.url.user:
            hello["auth_token"] = self.url.user
        subscribed = b"".join(b"SUB %s.%s.* %s\r\n" % (self._inbox, sid, sid) for sid in (ANSWERS, PAGES, ACKS))
        sock.sendall(b"CONNECT %s\r\n%sPING\r\n" % (json.dumps(hello | {"name": "dataflare"}).encode(), subscribed))
        while not self._rest.endswith(b"PONG\r\n"):
            data = sock.recv(READ)
            if not data:
                raise EOFError("the server closed the connection")
            self._rest += data
            if b"-ERR" in self._rest and self._rest.endswith(b"\r\n"):
                text = self._rest[self._rest.index(b"-ERR") + 5 :].split(b"\r\n")[0].decode().strip("'")
                self.close()
                raise told(str(self.url), text)
        for line in self._rest.split(b"\r\n"):
            if line.startswith(b"INFO "):  # what is so for this user
                self.info |= json.loads(line[5:])
        self._rest, self.heard = b"", time.monotonic()
        self.opened += 1
        if not self.info.get("jetstream"):
            raise NO_JETSTREAM.error(f"{self.url} has no JetStream", path="url")

    @property
    def version(self) -> tuple[int, int]:
        """The server's version, two numbers."""
        major, minor = str(self.info["version"]).split(".")[:2]
        return int(major), int(minor)

    def interrupt(self) -> None:
        """Make a call on another thread return with an error; from any thread."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next use opens one anew."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    # -- sending -------------------------------------------------------------------------------------------

    def send(self, *pieces: Any) -> None:
        """Send protocol that is made already.

        Raises:
            RetriableError: `nats.connection-lost`.
        """
        self.open()
        try:
            for piece in pieces:
                self._sock.sendall(piece)
        except OSError as error:
            self.close()
            raise LOST.retriable(f"{self.url}: {error}") from error

    def inbox(self, sid: bytes, name: bytes) -> bytes:
        """Return a subject whose messages arrive at a subscription."""
        self.open()
        return b"%s.%s.%s" % (self._inbox, sid, name)

    def ask(self, subject: str, body: Mapping[str, Any] | None = None, path: str | None = None) -> dict[str, Any]:
        """Ask JetStream's API and return its answer; an error it names is in there, too.

        Raises:
            DataflareError: `nats.no-jetstream` where nobody answers, and others of this plugin.
        """
        return self.ask_all([(subject, body)], path)[0]

    def ask_all(self, questions: Sequence[tuple[str, Mapping[str, Any] | None]], path: str | None = None) -> list[dict[str, Any]]:
        """Ask several things at once and return the answers in the same order."""
        names = []
        sent = []
        for subject, body in questions:
            self._asked += 1
            names.append(self.inbox(ANSWERS, b"%d" % self._asked))
            raw = b"" if body is None else json.dumps(body).encode()
            sent.append(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), names[-1], len(raw), raw))
        self.send(b"".join(sent))
        return [self._answer(name, path) for name in names]

    def confirm(self, subject: bytes, payload: bytes) -> None:
        """Publish and wait for the empty answer."""
        self._asked += 1
        name = self.inbox(ANSWERS, b"%d" % self._asked)
        self.send(b"PUB %s %s %d\r\n%s\r\n" % (subject, name, len(payload), payload))
        self._awaited(name)

    def _answer(self, name: bytes, path: str | None) -> dict[str, Any]:
        _, _, headers, payload = self._awaited(name)
        if headers is not None and status(headers) == 503:
            raise NO_JETSTREAM.error(f"{self.url}: nobody answers for JetStream", path=path or "url")
        found: dict[str, Any] = json.loads(payload)
        return found

    def _awaited(self, name: bytes) -> Frame:
        until = time.monotonic() + PATIENCE
        while name not in self._answers:
            if time.monotonic() >= until:
                self.close()
                raise LOST.retriable(f"{self.url} does not answer")
            self.receive(until)
        return self._answers.pop(name)

    # -- receiving -----------------------------------------------------------------------------------------

    def receive(self, deadline: float) -> bool:
        """Take what the socket has, waiting for it until `deadline` (monotonic seconds); False when nothing came.

        Raises:
            DataflareError: `nats.connection-lost` and others of this plugin.
        """
        self.open()
        try:
            if not self._readable(deadline):
                return False
            data = self._sock.recv(READ)
        except (OSError, ValueError) as error:
            self.close()
            raise LOST.retriable(f"{self.url}: {error}") from error
        if not data:
            self.close()
            raise LOST.retriable(f"{self.url} closed the connection")
        self.heard = time.monotonic()
        self._take(self._rest + data if self._rest else data)
        return True

    def _readable(self, deadline: float) -> bool:
        pending = getattr(self._sock, "pending", None)
        if pending is not None and pending():
            return True
        wait = select.poll()  # `select` knows no descriptor above 1023
        wait.register(self._sock, select.POLLIN)
        return bool(wait.poll(max(0.0, min(deadline - time.monotonic(), PATIENCE)) * 1000))

    def _take(self, data: bytes) -> None:
        """Sort whole frames by their subscription; the beginning of one more waits for what follows it."""
        at, end, match = 0, len(data), FRAME.match
        pages, answers, acks = self.pages.append, self._answers, self.acks.append
        while True:
            found = match(data, at)
            if found is None:
                line = data.find(b"\r\n", at)
                if line < 0:
                    break
                self._control(data[at:line])
                at = line + 2
                continue
            subject, sid, reply, size, other, sid_h, reply_h, head, size_h = found.groups()
            start = found.end()
            if size is not None:
                stop = start + int(size)
                if stop + 2 > end:
                    break
                frame: Frame = (subject, reply, None, data[start:stop])
            else:
                stop, sid, body = start + int(size_h), sid_h, start + int(head)
                if stop + 2 > end:
                    break
                frame = (other, reply_h, data[start:body], data[body:stop])
            if sid == PAGES:
                pages(frame)
            elif sid == ACKS:
                acks(frame)
            else:
                answers[frame[0]] = frame
            at = stop + 2
        self._rest = data[at:]

    def _control(self, line: bytes) -> None:
        if line == b"PING":
            self.send(b"PONG\r\n")
        elif line.startswith(b"INFO "):
            self.info |= json.loads(line[5:])
        elif line.startswith(b"-ERR"):
            raise told(str(self.url), line[4:].decode().strip(" '"))
        elif line not in (b"PONG", b"+OK"):
            self.close()
            raise SERVER.error(f"{self.url} sent what is no NATS: {line[:60]!r}")


def expect(link: Link, answer: Mapping[str, Any], what: str, path: str | None = None) -> Mapping[str, Any]:
    """Return an answer of the API that is none of an error.

    Raises:
        DataflareError: `nats.no-stream` and others of this plugin.
    """
    if "error" in answer:
        raise refused(f"{link.url}: {what}", answer["error"], path)
    return answer


def status(headers: bytes) -> int:
    """Return the number in the first line of headers, `NATS/1.0 404 No Messages`; 0: it is a message."""
    number = headers[9:12]
    return int(number) if number.isdigit() else 0


def header(headers: bytes) -> dict[str, str]:
    """Return headers as a mapping; of those that come several times the last."""
    found = {}
    for line in headers.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return found


def _tls(url: Url) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=url.options.get("ca"))
    if url.options.get("verify") == "off":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "cert" in url.options:
        context.load_cert_chain(url.options["cert"], url.options.get("key"))
    return context
