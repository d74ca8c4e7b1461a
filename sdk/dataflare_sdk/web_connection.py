"""HTTP requests over a connection that is kept: bounded in bytes and time, without proxies, and nothing is ever unpacked.

`dataflare_sdk.web` has the rules. A room of its own: importing what makes connections takes a while, and `validate` needs none of it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult

from dataflare.records import record
from dataflare_sdk.web import PORTS, origin, target

__all__ = ["Answer", "WebConnection", "failure"]

Addresses = Sequence[tuple[int, tuple[Any, ...]]]
"""Socket families with the addresses a host has."""


@record
class Answer:
    """What a server said.

    Attributes:
        status: of the answer.
        headers: by lower-case name; of several with one name the last.
        body: at most as many bytes as were wanted.
        whole: whether that is all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


def resolved(host: str, port: int) -> Addresses:
    """Return where a host is."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"'{host}' is no name of a host") from error
    return [(family, tuple(where)) for family, _, _, _, where in found]


def failure(error: Exception) -> tuple[str, bool]:
    """Return what an exception of `ask` says to people, and whether asking again may help; a certificate stays what it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}", False
    # What cannot be said by the protocol (a line break in a header) stands in the text of ValueErrors, secrets and all.
    own = isinstance(error, OSError) and str(error)
    return f"{type(error).__name__}: {error}" if own else type(error).__name__, True


class WebConnection:
    """Makes requests one after the other; not for two threads, but for `cancel`.

    Args:
        timeout: seconds that connecting, and each read, may take.
        most: bytes of an answer's body that are read.
        tls: certificates that are trusted; by default the system's.
        where: gives the addresses of a host; the connection goes to these and no others.
    """

    def __init__(
        self, timeout: float, most: int, *, tls: ssl.SSLContext | None = None, where: Callable[[str, int], Addresses] = resolved
    ) -> None:
        self._timeout, self._most, self._tls, self._where = timeout, most, tls, where
        self._line: _Line | None = None
        self._origin: tuple[str, str, int] | None = None

    def ask(self, method: str, url: SplitResult, body: bytes | None, headers: Mapping[str, str], *, until: float | None = None) -> Answer:
        """Make a request. One over a kept connection that the server has closed meanwhile is made once more.

        Args:
            method: of HTTP.
            url: an address of `dataflare_sdk.web.address`.
            body: sent along.
            headers: sent along.
            until: moment (monotonic) by which all of the answer has to be there, however slowly it comes.

        Raises:
            OSError, http.client.HTTPException: nothing came; see `failure`. The connection is closed then.
        """
        kept = self._line is not None and self._line.sock is not None and self._origin == origin(url)
        for again in (kept, False):
            try:
                return self._asked(method, url, body, headers, until)
            except BaseException as error:
                self.close()
                if not (again and isinstance(error, ConnectionError)):
                    raise
        raise AssertionError("unreachable")

    def connect(self, url: SplitResult) -> None:
        """Connect, and ask nothing.

        Raises:
            OSError: nobody is there.
        """
        self._to(url).connect()

    def _asked(self, method: str, url: SplitResult, body: bytes | None, headers: Mapping[str, str], until: float | None) -> Answer:
        line = self._to(url)
        line.until = until
        watch: threading.Timer | None = None
        response: http.client.HTTPResponse | None = None
        if until is not None:
            # A server that drips its headers byte by byte meets every deadline of the socket; not this one.
            watch = threading.Timer(max(until - time.monotonic(), 0.0), line.cut)
            watch.daemon = True
            watch.start()
        try:
            line.patient()
            # Names of headers are the same in any case; the last one is meant.
            sent = {name.lower(): (name, value) for name, value in headers.items()} | {"accept-encoding": ("Accept-Encoding", "identity")}
            line.request(method, target(url), body, dict(sent.values()))
            response = line.getresponse()
            data = response.read(self._most + 1)
            whole = len(data) <= self._most
            if line.was_cut:  # the end of a cut connection looks like the end of an answer without a length, even within its headers
                raise TimeoutError("the answer did not come in time")
            if whole and response.length:
                raise http.client.IncompleteRead(b"", response.length)
            if not whole or not response.isclosed() or response.will_close:
                response.close()
                self.close()
        except Exception as error:
            if response is not None:
                response.close()  # of an answer that is the connection's last, it holds the socket
            if line.was_cut and not isinstance(error, TimeoutError):
                raise TimeoutError("the answer did not come in time") from error
            raise
        finally:
            if watch is not None:
                watch.cancel()
        given = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, given, data[: self._most], whole)

    def _to(self, url: SplitResult) -> _Line:
        if self._line is None or self._origin != origin(url):
            self.close()
            if url.scheme == "https" and self._tls is None:
                self._tls = ssl.create_default_context()
            self._line = _Line(url, self._timeout, self._tls if url.scheme == "https" else None, self._where)
            self._origin = origin(url)
        return self._line

    def cancel(self) -> None:
        """Cut the connection; from any thread."""
        line = self._line
        if line is not None:
            line.cut()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        line, self._line, self._origin = self._line, None, None
        if line is not None:
            line.close()


class _Line(http.client.HTTPConnection):
    """A connection to addresses of the caller's, whatever the name resolves to by now."""

    def __init__(self, url: SplitResult, timeout: float, tls: ssl.SSLContext | None, where: Callable[[str, int], Addresses]) -> None:
        super().__init__(str(url.hostname), url.port or PORTS[url.scheme], timeout=timeout)
        self.default_port = PORTS[url.scheme]  # or the port stands in `Host`
        self._seconds, self._tls, self._where = timeout, tls, where
        self._held: socket.socket | None = None
        self.until: float | None = None
        self.was_cut = False

    def patient(self) -> None:
        """Wait no longer than may be, from here on."""
        left = self._seconds if self.until is None else min(self._seconds, self.until - time.monotonic())
        if left <= 0:
            raise TimeoutError("the answer did not come in time")
        if self.sock is not None:
            self.sock.settimeout(left)

    def connect(self) -> None:
        """Connect to the first address that answers."""
        failed: OSError = OSError(f"'{self.host}' has no address")
        for family, where in self._where(self.host, self.port):
            made = socket.socket(family, socket.SOCK_STREAM)
            self.sock = self._held = made
            try:
                self.patient()
                made.connect(where)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    self.sock = self._held = self._tls.wrap_socket(made, server_hostname=self.host)
            except OSError as error:
                made.close()
                self.sock = self._held = None
                failed = error
            else:
                return
        raise failed

    def cut(self) -> None:
        """End the conversation, whatever it waits for; from any thread."""
        held, self.was_cut = self._held, True
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
