"""A server that keeps what it is sent, and answers as a test wants: the outside of the `http` destination."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Got:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def rows(self) -> list[dict[str, Any]]:
        text = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        if self.headers.get("content-type") == "application/x-ndjson":
            return [json.loads(line) for line in text.splitlines()]
        found = json.loads(text)
        return found if isinstance(found, list) else [found]


Judge = Callable[[Got, int], tuple[int, dict[str, str], bytes] | str]
"""Returns status, headers and text for a request and its number from 1; `cut` or `cut-after` drop the connection."""


@dataclass
class Receiver:
    """The server. `taken` are the requests that were answered 2xx, `came` all of them."""

    judge: Judge = lambda got, number: (200, {}, b"{}")
    tls: ssl.SSLContext | None = None
    came: list[Got] = field(default_factory=list)
    taken: list[Got] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        receiver, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got = Got(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                with lock:
                    receiver.came.append(got)
                    found = receiver.judge(got, len(receiver.came))
                    if found == "cut-after" or (not isinstance(found, str) and 200 <= found[0] < 300):
                        receiver.taken.append(got)
                if isinstance(found, str):
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, text = found
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_PUT = do_PATCH = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # connections that a test cuts

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for got in self.taken for row in got.rows]

    def once_per_key(self) -> list[dict[str, Any]]:
        """Return the rows that a server keeps which takes every key once; the same key always has the same body."""
        kept: dict[str, Got] = {}
        for got in self.taken:
            assert kept.setdefault(got.headers["idempotency-key"], got).body == got.body
        return [row for got in kept.values() for row in got.rows]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
