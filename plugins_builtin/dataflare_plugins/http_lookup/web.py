"""One web service: a connection that is kept, redirects that do not carry secrets away, answers of bounded size."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from dataflare_sdk import code

BAD_URL = code(
    "http_lookup.bad-url",
    3,
    "The address of a service is none.",
    "Write it as https://host/path, without user and password; use `headers`.",
)
UNAVAILABLE = code("http_lookup.unavailable", 4, "The service does not answer, or says that it cannot now.", "Try again later.")
REFUSED = code("http_lookup.refused", 4, "The service refuses the request.", "Check `url`, `headers` and `body`.")
BAD_ANSWER = code(
    "http_lookup.bad-answer", 4, "The service's answer is not what was expected.", "Check `rows` and `columns` against what it sends."
)
HOPS = 5
LATER = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be another one when it is asked again."""
NOTHING = (404, 410)
_AGAIN = (301, 302, 303, 307, 308)


def parsed(text: str) -> SplitResult:
    """Return an address taken apart.

    Raises:
        DataflareError: `http_lookup.bad-url`.
    """
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as error:
        raise BAD_URL.error("the address cannot be taken apart", path="url") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BAD_URL.error("the address does not begin with http:// or https://, and a host", path="url")
    if url.username is not None or url.password is not None:
        raise BAD_URL.error("the address holds a user or a password", path="url")
    return url


class Service:
    """Makes requests; not for two threads.

    Args:
        headers: sent to the address's own origin, and nowhere else.
        timeout: seconds that connecting, and each read, may take.
        most: bytes of an answer.
    """

    def __init__(self, headers: Mapping[str, str], timeout: float, most: int) -> None:
        self._headers, self._timeout, self._most = dict(headers), timeout, most
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str, int | None] | None = None

    def send(self, method: str, address: str, body: bytes | None) -> tuple[int, bytes]:
        """Make a request and follow its redirects.

        Returns:
            Status and body of the answer.

        Raises:
            RetriableError: `http_lookup.unavailable`.
            DataflareError: `http_lookup.refused`: it was sent on for ever, or to where it may not go.
        """
        url = parsed(address)
        home = _origin(url)
        for _ in range(HOPS + 1):
            status, place, data = self._once(method, url, body, self._headers if _origin(url) == home else {})
            if status not in _AGAIN or place is None:
                return status, data
            there = parsed(urljoin(url.geturl(), place))
            if url.scheme == "https" and there.scheme == "http":
                raise REFUSED.error(f"{shown(url)} sends the request on to an address that is not encrypted")
            if status in (301, 302, 303) and method == "POST":
                method, body = "GET", None
            url = there
        raise REFUSED.error(f"{shown(url)} sent the request on more than {HOPS} times")

    def _once(self, method: str, url: SplitResult, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        kept = self._connection is not None and self._origin == _origin(url)
        try:
            return self._asked(method, url, body, headers)
        except (http.client.RemoteDisconnected, http.client.BadStatusLine, ConnectionError) as error:
            self.close()
            if not kept:
                raise UNAVAILABLE.retriable(f"{shown(url)} does not answer: {_text(error)}", path="url") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UNAVAILABLE.retriable(f"{shown(url)} does not answer: {_text(error)}", path="url") from error
        # A connection that was kept may have been closed by the other side meanwhile: that is no failure yet.
        try:
            return self._asked(method, url, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UNAVAILABLE.retriable(f"{shown(url)} does not answer: {_text(error)}", path="url") from error

    def _asked(self, method: str, url: SplitResult, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        connection = self._to(url)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        given = {"Accept": "application/json", **({"Content-Type": "application/json"} if body is not None else {}), **headers}
        connection.request(method, target, body=body, headers=given)
        answer = connection.getresponse()
        data = answer.read(self._most + 1)
        if len(data) > self._most:
            self.close()
            raise BAD_ANSWER.error(f"the answer of {shown(url)} is larger than {self._most} bytes", path="max_bytes")
        if not answer.isclosed() or answer.will_close:
            self.close()
        return answer.status, answer.getheader("Location"), data

    def _to(self, url: SplitResult) -> http.client.HTTPConnection:
        if self._connection is None or self._origin != _origin(url):
            self.close()
            host = str(url.hostname)
            if url.scheme == "https":
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(host, url.port, timeout=self._timeout, context=context)
            else:
                self._connection = http.client.HTTPConnection(host, url.port, timeout=self._timeout)
            self._origin = _origin(url)
        return self._connection

    def cancel(self) -> None:
        """Cut the connection; from any thread."""
        sock: Any = getattr(self._connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._origin = self._connection, None, None
        if connection is not None:
            connection.close()


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    return url.scheme, str(url.hostname), url.port


def shown(url: SplitResult) -> str:
    """Return where a service is, for messages: a path or a query may hold what is not to be shown."""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.hostname}{port}"


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
