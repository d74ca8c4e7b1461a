"""A real HTTP server on loopback that keeps what is posted to it, and can refuse, cut and hang."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

PATIENCE = 60.0
"""Seconds until a condition is given up: the suite's limit, no measure of anything."""


class Request(NamedTuple):
    """What came."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Receiver:
    """A context manager.

    Attributes:
        requests: everything that came, also what was refused.
        headers: sent with every answer.
        answers: statuses for the next requests, one each; then 200. `cut` closes the connection, `hang` waits until the end.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.headers: dict[str, str] = {}
        self.requests: list[Request] = []
        self.answers: list[int | str] = []
        self.always: int | str = 200
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with receiver._lock:
                    receiver.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                    answer = receiver.answers.pop(0) if receiver.answers else receiver.always
                if answer == "hang":
                    receiver._ended.wait()
                if isinstance(answer, str):
                    self.close_connection = True
                    return
                self.send_response(answer)
                for name, value in {"Content-Length": "0", **receiver.headers}.items():
                    self.send_header(name, value)
                if 300 <= answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.server_port}"


def until(condition: Callable[[], Any]) -> Any:
    """Wait until something holds, and return what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found
