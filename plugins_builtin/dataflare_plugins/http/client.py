"""Requests over one connection that is kept, made again where that may help."""

from __future__ import annotations

import email.utils
import gzip
import http.client
import random
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dataflare_plugins.http.options import HttpConfig, RetryConfig
from dataflare_plugins.http.target import Target
from dataflare_sdk import code
from dataflare_sdk.records import record

UNREACHABLE = code(
    "http.unreachable", 4, "A server did not take a request, again and again.", "See what it says; run again, the run resumes."
)
REFUSED = code("http.refused", 4, "A server refused a request, not for its rows.", "See what it says; mend address, method or headers.")
STOPPED = code("http.stopped", 4, "A request was given up because the run is being stopped.", "Run again; it is made again.")
BAD_CA = code("http.bad-ca", 4, "The file of certificate authorities cannot be read.", "Give a PEM file.")
MOMENTARY = frozenset({408, 425, 429})
ROWS = frozenset({400, 409, 413, 422})
"""Statuses that speak of the rows."""
ANSWER = 64 << 10
"""Bytes of an answer that are read at most; of a longer one the connection is given up."""
SHOWN = 300
LONGEST = 600.0
"""Seconds that a server may ask us to wait."""


@record
class Answer:
    """What a server said: a status, and the beginning of its text."""

    status: int
    text: str

    @property
    def taken(self) -> bool:
        """Whether the request was taken."""
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return f"{self.status} {self.text}".strip()


class Client:
    """Makes the requests of one destination.

    Args:
        config: the destination's.
        target: the server.
        base: folder that `ca` is relative to.
        cancelled: True once the run is being stopped.
        count: receives (name, value) of counters.
    """

    def __init__(
        self, config: HttpConfig, target: Target, base: Path, cancelled: Callable[[], bool], count: Callable[[str, float], None]
    ) -> None:
        self._config = config
        self._target = target
        self._cancelled = cancelled
        self._count = count
        self._connection: http.client.HTTPConnection | None = None
        self._tls: ssl.SSLContext | None = None
        self._secrets = [v for v in config.headers.values() if len(v) > 3]
        if target.tls:
            try:
                self._tls = ssl.create_default_context(cafile=None if config.ca is None else str(base / config.ca))
            except (OSError, ssl.SSLError) as error:
                raise BAD_CA.error(str(error), path="ca") from error

    def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Make a request until it is taken or refused for good; return 2xx, or a status that speaks of the rows.

        Raises:
            DataflareError: `http.refused`; retriable: `http.unreachable`, `http.stopped`.
        """
        retry = self._config.retry or RetryConfig()
        if self._config.compress:
            body = gzip.compress(body, 6)
            headers = {**headers, "Content-Encoding": "gzip"}
        wait = retry.initial
        for attempt in range(1, retry.attempts + 1):
            asked: float | None = None
            try:
                answer, asked = self._once(path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise REFUSED.error(f"{self._target.origin}: {error.verify_message}", path="url") from error
                failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if answer.taken or answer.status in ROWS:
                    return answer
                if answer.status < 500 and answer.status not in MOMENTARY:
                    raise REFUSED.error(f"{self._target.origin} answered {answer}", path="url")
                failure = str(answer)
            if attempt == retry.attempts:
                raise UNREACHABLE.retriable(f"{self._target.origin}: {failure} ({attempt} times)", path="url")
            self._count("requests_again", 1)
            self._pause(min(asked, LONGEST) if asked is not None else min(wait, retry.max) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            wait *= 2
        raise AssertionError("unreachable")

    def _once(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[Answer, float | None]:
        """Make a request once; return the answer and how long the server wants us to wait."""
        kept = self._connection is not None
        try:
            return self._asked(path, body, headers)
        except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
            # A server may close a connection that was not used for a while, just when we use it.
            self.close()
            if not kept:
                raise
            return self._asked(path, body, headers)

    def _asked(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[Answer, float | None]:
        if self._connection is None:
            self._connection = self._connected()
        self._connection.request(self._config.method, path, body, dict(headers))
        response = self._connection.getresponse()
        raw = response.read(ANSWER)
        if not response.isclosed():
            self.close()
        return Answer(response.status, self._shown(raw)), _seconds(response.headers.get("Retry-After"))

    def _connected(self) -> http.client.HTTPConnection:
        """Return a connection that is made with its first request."""
        host, port, seconds = self._target.host, self._target.port, self._config.timeout
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=seconds)

    def _shown(self, raw: bytes) -> str:
        """Return the beginning of an answer for people, without what we sent in headers."""
        text = " ".join(raw.decode("utf-8", "replace").split())
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(secret.rpartition(" ")[2], "***")
        return "".join(c for c in text[:SHOWN] if c.isprintable())

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._cancelled():
                raise STOPPED.retriable(f"{self._target.origin}: waiting to try again", path="url")
            time.sleep(min(left, 0.2))

    def check(self) -> None:
        """Connect.

        Raises:
            DataflareError: `http.unreachable`.
        """
        connection = self._connected()
        try:
            connection.connect()
        except OSError as error:
            raise UNREACHABLE.error(f"{self._target.origin}: {error}", path="url") from error
        finally:
            connection.close()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _seconds(text: str | None) -> float | None:
    """Return the seconds that `Retry-After` names, as a number or as a moment."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
