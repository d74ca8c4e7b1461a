"""The HTTP endpoint. A room of its own: what serves HTTP takes a while to import, and `validate` needs none of it."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dataflare_plugins.monitor_prometheus.exposition import CONTENT_TYPE


def endpoint(host: str, port: int, page: Callable[[], bytes]) -> ThreadingHTTPServer:
    """Return a server that listens, and answers `/metrics` with a page.

    Raises:
        OSError: nobody can listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers one connection; a slow client holds up its own thread alone, and only for so long."""

        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep requests out of stderr."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server
