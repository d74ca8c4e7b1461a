"""A server that stands for the system of a destination that sends its rows over HTTP: what it is sent lies in a file afterwards."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path


class Receiver:
    """Writes the body of every request to the end of a file, and answers 200; on 127.0.0.1, at a port that was free.

    Args:
        path: the file; it is there, empty, before anything came.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock, path.open("ab") as file:
                    file.write(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_POST  # noqa: N815 - named as http.server looks for it

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the checks are what is told."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dataflare-certify-receiver", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
