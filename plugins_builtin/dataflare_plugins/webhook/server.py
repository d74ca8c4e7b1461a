"""The HTTP server: one thread, one loop, as many connections as are allowed; requests are answered in their order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from dataflare_plugins.webhook.bodies import Refused
from dataflare_plugins.webhook.intake import Intake, Request, Taken

MOST_HEAD = 32 << 10
"""Bytes of the request line and headers at most."""
PATIENCE, IDLE = 30.0, 75.0
"""Seconds that a request may take to arrive, and that a connection may do nothing."""
SWEEP = 2.0
RETRY_AFTER = 1
REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 411: "Length Required", 413: "Content Too Large", 415: "Unsupported Media Type",
    422: "Unprocessable Content", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Server:
    """Listens on a thread of its own until it is closed.

    Args:
        host: address.
        port: port; 0 takes a free one.
        path: path of the requests that are taken.
        status: of the answer to what was taken.
        most_body: bytes of a body at most.
        most_connections: connections at a time.
        intake: makes the intake, in the loop.
        tls: context of the certificate, or None.
        count: receives (name, value) of counters.

    Attributes:
        arriving: bytes of bodies that are not whole yet, of all connections; beyond `most_arriving` one more is put off.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        path: str,
        status: int,
        most_body: int,
        most_connections: int,
        intake: Callable[[], Intake],
        tls: ssl.SSLContext | None,
        count: Callable[[str, float], None],
    ) -> None:
        self.path = path
        self.status = status
        self.most_body = most_body
        self.most_connections = most_connections
        self.count = count
        self.connections: set[Connection] = set()
        self.arriving = 0
        self.most_arriving = max(8 * most_body, 64 << 20)
        self.tasks: set[asyncio.Task[None]] = set()
        self.port = port
        self._host = host
        self._make_intake = intake
        self._tls = tls
        self._ready = threading.Event()
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="dataflare-webhook", daemon=True)

    def start(self) -> None:
        """Listen; returns when it does.

        Raises:
            OSError: the address cannot be had.
        """
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed

    def close(self) -> None:
        """Stop listening, answer what was taken in, and end every connection."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.intake = self._make_intake()
        try:
            listening = await self.loop.create_server(lambda: Connection(self), self._host, self.port, ssl=self._tls, backlog=1024)
        except OSError as error:
            self._failed = error
            await self.intake.close()
            return
        finally:
            if self._failed is not None:
                self._ready.set()
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        sweeper = self.loop.create_task(self._sweep())
        try:
            await self._stop.wait()
        finally:
            listening.close()
            sweeper.cancel()
            if self.tasks:
                await asyncio.wait(self.tasks)
            await self.intake.close()
            for connection in list(self.connections):
                connection.end()
            await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """End connections that take too long."""
        while True:
            await asyncio.sleep(SWEEP)
            now = self.loop.time()
            for connection in list(self.connections):
                connection.look(now)


class Connection(asyncio.Protocol):
    """One connection: parses, and answers one request after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[tuple[Request | Refused, bool]] = deque()
        self._busy = False
        self._ending = False
        self._since = server.loop.time()
        self._receiving = False
        self._half_closed = False
        self._unread = False
        self._parts: list[bytes] = []

    # -- the transport's side ----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Take note of a connection, or refuse one too many."""
        self._transport = transport
        server = self._server
        if len(server.connections) >= server.most_connections:
            server.count("requests_put_off", 1)
            self._answer(Refused(503, "connections", "there are too many connections"), alive=False)
            return
        server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget it; what it has sent whole is kept all the same."""
        self._ending = True
        self._requests.clear()
        self._drop()
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._ending:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Refused(400, "upgrade", "this server speaks HTTP/1.1 only"))
        except httptools.HttpParserError as error:
            self._refuse(Refused(400, "no-http", f"the request is no HTTP: {type(error).__name__}"))
        if self._requests and not self._ending:
            self._transport.pause_reading()
            self._next()

    def eof_received(self) -> bool:
        """The other side sends no more, and may still read answers."""
        self._half_closed = True
        return self._busy or bool(self._requests)

    def pause_writing(self) -> None:
        """The other side does not read: it gets no more answers, and is read no further, until it does."""
        self._unread = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._unread = False
        if not self._busy:
            self._go_on()

    # -- the parser's side -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head = 0
        self._size = 0
        self._refused: Refused | None = None
        self._receiving = True
        self._since = self._server.loop.time()

    def on_url(self, url: bytes) -> None:
        """Take a part of its target."""
        self._url += url
        self._measure(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes twice is joined."""
        name = name.lower()
        self._measure(len(name) + len(value))
        before = self._headers.get(name)
        self._headers[name] = value if before is None else before + b", " + value

    def _measure(self, size: int) -> None:
        self._head += size
        if self._head > MOST_HEAD and self._refused is None:
            self._refused = Refused(431, "head", f"the headers have more than {MOST_HEAD} bytes")
            self._headers.clear()

    def on_headers_complete(self) -> None:
        """Judge a request by its head; what is refused is not waited for."""
        try:
            if self._refused is None:
                self._judge_head()
        except Refused as refused:
            self._refused = refused
        if self._refused is None and self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._requests:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _judge_head(self) -> None:
        server = self._server
        if self._parser.get_method() != b"POST":
            raise Refused(405, "method", "rows come by POST")
        if unquote_to_bytes(self._url.partition(b"?")[0]) != server.path.encode():
            raise Refused(404, "path", "there is nothing at this path")
        server.intake.guard.head(self._headers)
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > server.most_body:
            raise Refused(413, "too-large", f"a body has at most {server.most_body} bytes")

    def on_body(self, part: bytes) -> None:
        """Take a part of the body, of one that is not refused."""
        server = self._server
        self._size += len(part)
        if self._refused is None:
            if self._size > server.most_body:
                self._refused = Refused(413, "too-large", f"a body has at most {server.most_body} bytes")
            elif server.arriving + len(part) > server.most_arriving:
                self._refused = Refused(503, "busy", "too much is being sent at a time; send it again later")
            if self._refused is None:
                self._parts.append(part)
                server.arriving += len(part)
            else:
                self._drop()
        if self._refused is not None and self._size > 2 * server.most_body:
            self._refuse(self._refused)

    def _drop(self) -> None:
        """Let go of what came of a body."""
        self._server.arriving -= sum(map(len, self._parts))
        self._parts = []

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._receiving = False
        self._since = self._server.loop.time()
        alive = self._parser.should_keep_alive()
        if self._refused is not None:
            self._requests.append((self._refused, alive))
        else:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._requests.append((Request(self._server.path, self._headers, body), alive))
        self._drop()

    # -- answers -----------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Work on the request whose turn it is."""
        if self._busy or not self._requests or self._ending or self._unread:
            return
        request, alive = self._requests.popleft()
        if isinstance(request, Request):
            try:
                self._server.intake.judge(request)
            except Refused as refused:
                request = refused
        if isinstance(request, Refused):
            self._answer(request, alive=alive)
            self._go_on()
            return
        self._busy = True
        task = self._server.loop.create_task(self._take(request, alive=alive))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _take(self, request: Request, *, alive: bool) -> None:
        answer: Taken | Refused
        try:
            answer = await self._server.intake.take(request)
        except Refused as refused:
            answer = refused
        self._busy = False
        self._answer(answer, alive=alive)
        self._go_on()

    def _go_on(self) -> None:
        if self._ending or self._unread:
            return
        if self._requests:
            self._server.loop.call_soon(self._next)
        elif self._half_closed:
            self.end()
        else:
            self._since = self._server.loop.time()
            self._transport.resume_reading()

    def _refuse(self, refused: Refused) -> None:
        """Answer before a request is whole, and read no more of the connection."""
        self._requests.clear()
        if not self._busy:
            self._answer(refused, alive=False)

    def _answer(self, answer: Taken | Refused, *, alive: bool) -> None:
        if self._ending:
            return
        if isinstance(answer, Taken):
            status, more = self._server.status, ""
            body = f'{{"accepted":{answer.rows}' + (',"repeated":true}' if answer.repeated else "}")
        else:
            status = answer.status
            self._server.count(f"requests_refused_{status}", 1)
            body = json.dumps({"error": answer.code, "message": str(answer)})
            more = {401: "WWW-Authenticate: Bearer\r\n", 405: "Allow: POST\r\n", 503: f"Retry-After: {RETRY_AFTER}\r\n"}.get(status, "")
        data = body.encode()
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}"
            f"{'' if alive else 'Connection: close' + chr(13) + chr(10)}\r\n"
        )
        self._transport.write(head.encode("latin-1") + data)
        if not alive:
            self.end()

    def look(self, now: float) -> None:
        """End a connection that has waited long enough; one that does not take its last answer is cut."""
        if self._ending:
            if now - self._since > PATIENCE:
                self._transport.abort()
        elif self._receiving and now - self._since > PATIENCE:
            self._refuse(Refused(408, "timeout", "the request took too long to arrive"))
        elif not self._receiving and not self._busy and now - self._since > IDLE:
            self.end()

    def end(self) -> None:
        """Close it when what was written is sent."""
        self._ending = True
        self._since = self._server.loop.time()
        self._transport.close()
