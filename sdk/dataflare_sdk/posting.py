"""Posting to an HTTP address again and again until somebody takes it: for monitors, which have a thread of their own to wait on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dataflare.errors import CONFIG_INVALID, code

__all__ = ["Poster"]

NOT_TAKEN = code(
    "monitor.not-taken",
    4,
    "What a monitor posted was not taken by whoever it was posted to.",
    "Check the address, the headers and the receiver's log.",
)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds between two attempts; each pause is twice the one before."""


class Poster:
    """One address. Redirects are not followed: headers may hold a secret.

    Args:
        url: the address; it may hold a secret, and is never shown whole.
        headers: sent with every post.
        timeout: seconds to wait for an answer.
        attempts: how often one post is tried.

    Raises:
        DataflareError: `config.invalid`, with the path `url` or `headers`.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, timeout: float = 5.0, attempts: int = 5) -> None:
        try:
            parts = urlsplit(str(url))
            port = parts.port
        except ValueError:
            raise CONFIG_INVALID.error("the address cannot be taken apart", path="url") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CONFIG_INVALID.error("expected an address that begins with http:// or https://", path="url")
        if parts.username is not None:
            raise CONFIG_INVALID.error("user and password do not belong into an address; use `headers`", path="url")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not _printable(self._target):
            raise CONFIG_INVALID.error("the address holds characters that it must not", path="url")
        wrong = [name for name, value in headers.items() if not _printable(name, " \t:") or not _printable(value)]
        if wrong:
            raise CONFIG_INVALID.error("a header holds characters that it must not", path="headers")
        self._headers = {"User-Agent": "dataflare", "Connection": "close", **headers}
        self._timeout = timeout
        self._attempts = attempts

    @property
    def shown(self) -> str:
        """The server, as people may see it: the path may be a secret of its own."""
        return f"{'https' if self._secure else 'http'}://{self._host}{f':{self._port}' if self._port else ''}"

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Post something; try again after a failure of the moment (no answer, 408, 429, 5xx).

        Raises:
            DataflareError: `monitor.not-taken`, once it was refused or tried as often as it may be.
        """
        from http.client import HTTPException

        pause = FIRST_PAUSE
        for attempt in range(1, self._attempts + 1):
            try:
                status = self._once(body, {**self._headers, **(headers or {})})
            except (OSError, HTTPException) as error:
                status, why = 0, type(error).__name__
            else:
                why = f"HTTP {status}"
            if 200 <= status < 300:
                return
            passing = status == 0 or status in (408, 429) or status >= 500
            if not passing or attempt == self._attempts:
                raise NOT_TAKEN.error(f"{self.shown} did not take what was posted: {why}, tried {attempt} times")
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _once(self, body: bytes, headers: Mapping[str, str]) -> int:
        import http.client

        kind: Any = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection: http.client.HTTPConnection = kind(self._host, self._port, timeout=self._timeout)  # certificates are checked
        try:
            connection.request("POST", self._target, body, dict(headers))
            return connection.getresponse().status
        finally:
            connection.close()


def _printable(text: str, without: str = "") -> bool:
    return all(" " <= c <= "~" and c not in without for c in text)
