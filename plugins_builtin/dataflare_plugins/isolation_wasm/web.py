"""HTTP for guests: the host asks, and every hop is judged: host and port against the grants, then each address it resolves to.

The connection goes to the very address that was judged, so that a name cannot change its mind in between. Credentials
are put in here and taken out of answers again: a guest never holds a secret, it names one.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from dataflare_sdk import code
from dataflare_sdk.addresses import public
from dataflare_sdk.records import record

DENIED = code(
    "wasm.address-refused",
    6,
    "A plugin asked for a host, a port or an address that it was not granted.",
    "Grant it by `net: [{host, port}]`; addresses of private networks also need `private: true`.",
)
BAD_REQUEST = code("wasm.bad-request", 4, "A plugin made a request that is none.", "Mend the plugin; see the PDK for the form of requests.")
UNREACHABLE = code("wasm.unreachable", 4, "A plugin's request was not answered.", "Check the address and the network; run again.")

HOPS = 5
MOST = 16 << 20
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_PORTS = {"http": 80, "https": 443}
_SECRET = re.compile(r"\$\{secret:([^}]{1,128})\}")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_OURS = frozenset(("host", "connection", "content-length", "transfer-encoding", "proxy-authorization", "upgrade", "te", "trailer"))


@record
class Answer:
    """An answer: status, headers by lower-case name, and body, all without secrets."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@record
class _Request:
    method: str
    headers: Mapping[str, str]
    body: bytes | None
    secrets: Mapping[str, str]
    """Headers that carry a secret; they go to the host they were meant for and no further."""
    values: tuple[str, ...]


class Web:
    """Makes the requests of one component.

    Args:
        ctx: its context, which hands out secrets and is told of every use and denial.
        grants: what it was granted, concrete.
        deadline: seconds that a request may take with all its hops.
    """

    def __init__(self, ctx: Any, grants: Mapping[str, Any], deadline: float) -> None:
        self._ctx = ctx
        self._net: Sequence[Mapping[str, Any]] = [g for g in grants.get("net", ()) if isinstance(g, Mapping)]
        self._secrets: Mapping[str, Mapping[str, Any]] = {str(s.get("ref")): s for s in grants.get("secrets", ()) if isinstance(s, Mapping)}
        self._seconds = deadline

    def send(self, raw: Any) -> Answer:
        """Make a request and follow its redirects.

        Args:
            raw: `{"method", "url", "headers", "body" | "body_base64"}`; a header may hold `${secret:REF}`.

        Raises:
            DataflareError: `wasm.bad-request`, `wasm.address-refused`, `wasm.unreachable`, `capability.denied`.
        """
        if not isinstance(raw, Mapping) or not isinstance(raw.get("url"), str):
            raise BAD_REQUEST.error("a request is an object with a `url`")
        until = time.monotonic() + self._seconds
        url = self._parsed(raw["url"])
        request = self._request(raw, url)
        for _ in range(HOPS + 1):
            answer = self._hop(url, request, until)
            target = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or target is None:
                return answer
            there = self._parsed(urljoin(url.geturl(), target))
            request = _redirected(request, answer.status, same=_origin(there) == _origin(url))
            url = there
        raise BAD_REQUEST.error(f"it was sent on more than {HOPS} times")

    def _request(self, raw: Mapping[str, Any], url: SplitResult) -> _Request:
        method, headers = str(raw.get("method", "GET")).upper(), raw.get("headers") or {}
        if method not in METHODS or not isinstance(headers, Mapping) or len(headers) > 64:
            raise BAD_REQUEST.error(f"a request has one of the methods {', '.join(METHODS)}, and headers by name")
        body: bytes | None = None
        if raw.get("body_base64") is not None:
            body = base64.b64decode(str(raw["body_base64"]), validate=True)
        elif raw.get("body") is not None:
            body = str(raw["body"]).encode()
        plain: dict[str, str] = {}
        hidden: dict[str, str] = {}
        values: list[str] = []
        for name, value in headers.items():
            text = str(value)
            if not _NAME.fullmatch(str(name)) or name.lower() in _OURS or not text.isprintable() or len(text) > 8_192:
                raise BAD_REQUEST.error("a header has a name that is not the host's to set, and printable text")
            filled = _SECRET.sub(lambda m: self._secret(m[1], url, values), text)
            (plain if filled == text else hidden)[str(name)] = filled
        return _Request(method, plain, body, hidden, tuple(values))

    def _secret(self, ref: str, url: SplitResult, values: list[str]) -> str:
        """Return a secret for this host; the context checks the grant and keeps the record."""
        allowed = self._secrets.get(ref, {}).get("hosts")
        if allowed is not None and not any(_matches(str(h), url.hostname or "") for h in allowed):
            self._ctx.audit(f"secret {ref} to {url.hostname}", False)
            raise DENIED.error(f"the secret '{ref}' may not be sent to '{url.hostname}'")
        found: str = self._ctx.secret(ref)
        values.append(found)
        return found

    def _parsed(self, text: str) -> SplitResult:
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise BAD_REQUEST.error(f"its url cannot be read: {error}") from None
        good = url.scheme in _PORTS and url.hostname and text.isascii() and text.isprintable() and len(text) <= 8_192 and " " not in text
        if not good or url.username is not None or url.password is not None or port == 0:
            raise BAD_REQUEST.error("a url is http or https, with a host and without a user")
        return url

    def _hop(self, url: SplitResult, request: _Request, until: float) -> Answer:
        host, port = str(url.hostname), url.port or _PORTS[url.scheme]
        action = f"net {host}:{port}"
        found = [g for g in self._net if _allows(g, host, port)]
        if not found:
            self._ctx.audit(action, False)
            raise DENIED.error(f"'{host}:{port}' was not granted")
        addresses = self._addresses(host, port)
        private = any(g.get("private") is True for g in found)
        refused = [a for _, a in addresses if not private and not public(str(a[0]))]
        if refused:
            self._ctx.audit(action, False)
            raise DENIED.error(f"'{host}' is at {refused[0][0]}, which is no public address")
        self._ctx.audit(action, True)
        return self._asked(url, addresses, request, until)

    def _addresses(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UNREACHABLE.retriable(f"'{host}' has no address: {error}") from None
        return [(family, tuple(address)) for family, _, _, _, address in found]

    def _asked(self, url: SplitResult, addresses: Sequence[tuple[int, tuple[Any, ...]]], request: _Request, until: float) -> Answer:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection = _Connection(url, addresses, until)
        # A server that drips its headers byte by byte meets every deadline of the socket; not this one.
        watch = threading.Timer(max(until - time.monotonic(), 0), connection.cut)
        watch.daemon = True
        watch.start()
        response: http.client.HTTPResponse | None = None
        try:
            connection.request(request.method, target, request.body, {**request.headers, **request.secrets, "Accept-Encoding": "identity"})
            response = connection.getresponse()
            body = _body(response, connection, until)
            status, given = response.status, response.getheaders()
        except (OSError, http.client.HTTPException) as error:
            raise UNREACHABLE.retriable(f"'{url.hostname}' did not answer: {type(error).__name__}") from None
        finally:
            watch.cancel()
            if response is not None:
                response.close()
            connection.close()
        headers = {name.lower(): _without(value, request.values) for name, value in given}
        for value in request.values:
            body = body.replace(value.encode(), b"***") if value else body
        return Answer(status, headers, body)


class _Connection(http.client.HTTPConnection):
    """A connection to addresses that were judged, whatever its name resolves to by now."""

    def __init__(self, url: SplitResult, addresses: Sequence[tuple[int, tuple[Any, ...]]], until: float) -> None:
        super().__init__(str(url.hostname), url.port or _PORTS[url.scheme])
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._addresses = addresses
        self._until = until
        self._held: socket.socket | None = None

    def cut(self) -> None:
        """End the conversation, whatever it waits for."""
        held = self._held
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def patient(self) -> None:
        """Wait no longer than the deadline."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self.sock is not None:
            self.sock.settimeout(left)

    def connect(self) -> None:
        """Connect to the first address that answers."""
        failed: OSError = TimeoutError()
        for family, address in self._addresses:
            made = socket.socket(family, socket.SOCK_STREAM)
            self.sock = made
            try:
                self.patient()
                made.connect(address)
                if self._tls is not None:
                    self.sock = self._tls.wrap_socket(made, server_hostname=self.host)
            except OSError as error:
                made.close()
                failed = error
            else:
                self._held = self.sock
                return
        raise failed


def _body(response: http.client.HTTPResponse, connection: _Connection, until: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if connection.sock is not None:
            connection.patient()
        elif time.monotonic() > until:
            raise TimeoutError
        part = response.read1(1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise BAD_REQUEST.error(f"an answer has more than {MOST} bytes")


def _redirected(request: _Request, status: int, *, same: bool) -> _Request:
    """Return the request for the next hop: secrets stay behind, and so does a body where the answer says so."""
    turned = status == 303 or (status in (301, 302) and request.method == "POST")
    method = "GET" if turned and request.method != "HEAD" else request.method
    return _Request(method, request.headers, None if turned else request.body, request.secrets if same else {}, request.values)


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or _PORTS[url.scheme]


def _allows(grant: Mapping[str, Any], host: str, port: int) -> bool:
    ports = grant.get("port")
    fits = port in _PORTS.values() if ports is None else str(ports) in ("*", str(port))
    return fits and _matches(str(grant.get("host", "")), host)


def _matches(pattern: str, host: str) -> bool:
    """Whether a host is meant: itself, any (`*`), or one below a domain (`*.acme.example`)."""
    wanted, name = pattern.lower().rstrip("."), host.lower().rstrip(".")
    return wanted in ("*", name) or (wanted.startswith("*.") and name.endswith(wanted[1:]))


def _without(text: str, values: Sequence[str]) -> str:
    for value in values:
        text = text.replace(value, "***") if value else text
    return text
