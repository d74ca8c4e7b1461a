"""A client that follows wherever it is led, and puts secrets into requests wherever one is named."""

from __future__ import annotations

import os
import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from . import control


class Echo(BaseHTTPRequestHandler):
    """Leads elsewhere, or says what it was sent."""

    to = ""

    def do_GET(self) -> None:
        if self.path == "/go":
            self.send_response(302)
            self.send_header("Location", self.to)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers.get('X-Token', '')} {self.server.said}".encode())  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


def _serve(address: str, said: str) -> int:
    server = HTTPServer((address, 0), Echo)
    server.said = said  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class AnywhereHandler(urllib.request.HTTPRedirectHandler):
    """Follows to a file too."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        return urllib.request.urlopen(headers["Location"])


@control
def follow_redirects(target: Any, given: dict[str, Any]) -> str:
    """Look at the first address only."""
    with open(target.secret) as file:
        secret = file.read()
    where = "169.254.169.254" if "169.254" in given["to"] else "127.0.0.1"
    Echo.to = given["to"].format(port=_serve(where, secret))
    first = _serve("127.0.0.1", "")
    opener = urllib.request.build_opener(AnywhereHandler, urllib.request.ProxyHandler({}))
    with opener.open(Echo.to if given.get("direct") else f"http://127.0.0.1:{first}/go", timeout=5) as answer:
        return str(answer.read().decode())


@control
def put_secrets_into_requests(target: Any, given: dict[str, Any]) -> str:
    """Put any secret into a request, and hand the answer on as it is."""
    header = re.sub(r"\$\{secret:(\w+)\}", lambda found: os.environ[found[1]], "${secret:SECRET}")
    request = urllib.request.Request(f"http://127.0.0.1:{_serve('127.0.0.1', '')}/", headers={"X-Token": header})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
        return str(answer.read().decode())
