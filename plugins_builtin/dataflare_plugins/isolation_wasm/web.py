"""HTTP for guests: the host asks, and every hop is judged: host and port against the grants, then each address it resolves to.

The connection goes to the very address that was judged, so that a name cannot change its mind in between. Credentials
are put in here and taken out of answers again: a guest never holds a secret, it names one.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult

from dataflare_sdk import code, web
from dataflare_sdk.addresses import public
from dataflare_sdk.records import record
from dataflare_sdk.web_connection import WebConnection, resolved

DENIED = code(
    "wasm.address-refused",
    6,
    "A plugin asked for a host, a port or an address that it was not granted.",
    "Grant it by `net: [{host, port}]`; addresses of private networks also need `private: true`.",
)
BAD_REQUEST = code("wasm.bad-request", 4, "A plugin made a request that is none.", "Mend the plugin; see the PDK for the form of requests.")
UNREACHABLE = code("wasm.unreachable", 4, "A plugin's request was not answered.", "Check the address and the network; run again.")

MOST = 16 << 20
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SECRET = re.compile(r"\$\{secret:([^}]{1,128})\}")


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
        for _ in range(web.HOPS + 1):
            answer = self._hop(url, request, until)
            try:
                onward = web.onward(url, answer.status, answer.headers.get("location"), request.method, request.body)
            except ValueError as error:
                raise BAD_REQUEST.error(f"'{url.hostname}' answers what is not followed: {error}") from None
            if onward is None:
                return answer
            there, method, body = onward
            # Secrets stay behind.
            secrets = request.secrets if web.origin(there) == web.origin(url) else {}
            url, request = there, _Request(method, request.headers, body, secrets, request.values)
        raise BAD_REQUEST.error(f"it was sent on more than {web.HOPS} times")

    def _request(self, raw: Mapping[str, Any], url: SplitResult) -> _Request:
        method, headers = str(raw.get("method", "GET")).upper(), raw.get("headers") or {}
        if method not in METHODS or not isinstance(headers, Mapping) or len(headers) > 64:
            raise BAD_REQUEST.error(f"a request has one of the methods {', '.join(METHODS)}, and headers by name")
        body: bytes | None = None
        try:
            if raw.get("body_base64") is not None:
                body = base64.b64decode(str(raw["body_base64"]), validate=True)
            elif raw.get("body") is not None:
                body = str(raw["body"]).encode()
        except ValueError:
            raise BAD_REQUEST.error("a body is text, or bytes in base64") from None
        plain: dict[str, str] = {}
        hidden: dict[str, str] = {}
        values: list[str] = []
        for name, value in headers.items():
            text = str(value)
            if str(name).lower() == "accept-encoding":
                continue  # nothing is unpacked for a guest
            if web.bad_header(str(name), text) is not None or len(text) > 8_192:
                raise BAD_REQUEST.error("a header has a name that is not the host's to set, and printable ASCII text")
            filled = _SECRET.sub(lambda m: self._secret(m[1], url, values), text)
            if web.bad_header(str(name), filled) is not None:
                raise BAD_REQUEST.error(f"the secret for the header '{name}' is not one line of printable ASCII")
            (plain if filled == text else hidden)[str(name)] = filled
        return _Request(method, plain, body, hidden, tuple(values))

    def _secret(self, ref: str, url: SplitResult, values: list[str]) -> str:
        """Return a secret for this host; the context checks the grant and keeps the record."""
        allowed = self._secrets.get(ref, {}).get("hosts")
        if allowed is not None and not any(_matches(str(h), url.hostname or "") for h in allowed):
            self._ctx.audit(f"secret {ref} to {url.hostname}", False)
            raise DENIED.error(f"the secret '{ref}' may not be sent to '{url.hostname}'")
        found: str = self._ctx.secret(ref)
        if found:
            values.append(found)
        return found

    def _parsed(self, text: str) -> SplitResult:
        try:
            url = web.address(text)
        except ValueError as error:
            raise BAD_REQUEST.error(str(error)) from None
        if not text.isascii() or len(text) > 8_192:
            raise BAD_REQUEST.error("a url is ASCII, and no longer than 8192 characters")
        return url

    def _hop(self, url: SplitResult, request: _Request, until: float) -> Answer:
        _, host, port = web.origin(url)
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
            return list(resolved(host, port))
        except OSError as error:
            raise UNREACHABLE.retriable(f"'{host}' has no address: {error}") from None

    def _asked(self, url: SplitResult, addresses: Sequence[tuple[int, tuple[Any, ...]]], request: _Request, until: float) -> Answer:
        # The connection goes to what was judged, whatever the name resolves to by now.
        connection = WebConnection(self._seconds, MOST, where=lambda _host, _port: addresses)
        try:
            got = connection.ask(request.method, url, request.body, {**request.headers, **request.secrets}, until=until)
        except (OSError, HTTPException) as error:
            raise UNREACHABLE.retriable(f"'{url.hostname}' did not answer: {type(error).__name__}") from None
        finally:
            connection.close()
        if not got.whole:
            raise BAD_REQUEST.error(f"an answer has more than {MOST} bytes")
        headers = {name: web.hidden(value, request.values) for name, value in got.headers.items()}
        body = got.body
        for value in request.values:
            body = body.replace(value.encode(), b"***")
        return Answer(got.status, headers, body)


def _allows(grant: Mapping[str, Any], host: str, port: int) -> bool:
    ports = grant.get("port")
    fits = port in web.PORTS.values() if ports is None else str(ports) in ("*", str(port))
    return fits and _matches(str(grant.get("host", "")), host)


def _matches(pattern: str, host: str) -> bool:
    """Whether a host is meant: itself, any (`*`), or one below a domain (`*.acme.example`)."""
    wanted, name = pattern.lower().rstrip("."), host.lower().rstrip(".")
    return wanted in ("*", name) or (wanted.startswith("*.") and name.endswith(wanted[1:]))
