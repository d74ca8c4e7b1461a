"""The rules by which everything here speaks HTTP: addresses, headers, what is asked again and when, where a redirect may lead.

Clients differ in what they do with an answer, not in these. `web_connection` makes the requests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, quote, urljoin, urlsplit

__all__ = [
    "HOPS", "LONGEST", "PORTS", "address", "asked_pause", "bad_header", "climbs", "hidden", "momentary", "onward", "origin", "secrets_of",
    "shown", "target",
]  # fmt: skip

HOPS = 5
"""Redirects that are followed, one after the other, by those who follow any."""
LONGEST = 600.0
"""Seconds that a server may ask to be left alone."""
PORTS = {"http": 80, "https": 443}
OURS = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "proxy-authorization", "upgrade", "te", "trailer", "accept-encoding")
)
"""Headers that belong to whoever makes the connection, in lower case."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_CLIMBING = re.compile(r"/\.{1,2}(?:/|$)")
_KEPT = "%/:?#[]@!$&'()*+,;=~"
"""What is not written %XX in the place a redirect names."""


def address(text: str) -> SplitResult:
    """Return an address taken apart.

    Raises:
        ValueError: it is none that may be asked; says why, and shows nothing of it.
    """
    try:
        url = urlsplit(text)
        port = url.port
        host = (url.hostname or "").encode("idna" if not text.isascii() else "ascii")
    except ValueError:
        raise ValueError("the address cannot be taken apart") from None
    if url.scheme not in PORTS or not host:
        raise ValueError("an address begins with http:// or https://, and a host")
    if url.username is not None or url.password is not None:
        raise ValueError("an address holds no user and no password")
    if port == 0:
        raise ValueError("there is no port 0")
    if not all("!" <= c <= "~" for c in target(url)) or any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError("an address is ASCII without spaces; other characters are written %XX")
    return url


def origin(url: SplitResult) -> tuple[str, str, int]:
    """Return what makes two addresses the same server: scheme, host and port."""
    return url.scheme, str(url.hostname), url.port or PORTS[url.scheme]


def target(url: SplitResult) -> str:
    """Return path and query, as a request names them."""
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def shown(url: SplitResult) -> str:
    """Return where a server is, for people: a path or a query may hold what is not to be shown."""
    host = f"[{url.hostname}]" if ":" in str(url.hostname) else url.hostname
    return f"{url.scheme}://{host}{f':{url.port}' if url.port else ''}"


def climbs(path: str) -> bool:
    """Return whether a path holds a segment `.` or `..`, which servers take for another place than it was made for."""
    return _CLIMBING.search(path.partition("?")[0]) is not None


def bad_header(name: str, value: str) -> str | None:
    """Return why a header cannot be set, None when it can; the value is not shown."""
    if not _NAME.fullmatch(name) or name.lower() in OURS:
        return f"'{name}' is no header that can be set" if name.isprintable() else "a header has a name that cannot be set"
    if not all(" " <= c <= "~" or c == "\t" for c in value):
        return f"the header '{name}' is not one line of printable ASCII"
    return None


def momentary(status: int) -> bool:
    """Return whether an answer may be another one when the same is asked again later."""
    return status >= 500 or status in (408, 425, 429)


def asked_pause(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that an answer asks to be left alone (`Retry-After`, a number or a moment), at most `LONGEST`.

    Args:
        headers: of the answer, by lower-case name.
        now: the time, seconds since 1970 UTC.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST)
    import email.utils

    try:
        wanted = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, wanted - (time.time() if now is None else now)), LONGEST)


def onward(
    url: SplitResult, status: int, place: str | None, method: str, body: bytes | None
) -> tuple[SplitResult, str, bytes | None] | None:
    """Return where an answer sends a request on to, and as what; None when it is no redirect.

    Headers that are not for everybody are left out by the caller where `origin` is another one.

    Raises:
        ValueError: it leads from an encrypted address to one that is not, takes a body to another server, or names no address.
    """
    if status not in (301, 302, 303, 307, 308) or place is None:
        return None
    # Servers write it in UTF-8 although it is to be ASCII; HTTP gives us its bytes as Latin-1.
    there = address(urljoin(url.geturl(), quote(place.strip(), _KEPT, encoding="latin-1", errors="replace")))
    if status == 303 or (status in (301, 302) and method == "POST"):
        method, body = "HEAD" if method == "HEAD" else "GET", None
    if url.scheme == "https" and there.scheme == "http":
        raise ValueError("it sends the request on to an address that is not encrypted")
    if body is not None and origin(there) != origin(url):
        raise ValueError("it sends the request on to another server, which is not to have what it carries")
    return there, method, body


def secrets_of(headers: Mapping[str, str]) -> list[str]:
    """Return what may be secret in headers, the longest first: whole values, and what follows a scheme like `Bearer`."""
    found = {part.strip() for value in headers.values() for part in (value, value.rpartition(" ")[2])}
    return sorted((part for part in found if len(part) > 3), key=len, reverse=True)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return a text without secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
