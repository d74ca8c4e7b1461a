"""Requests of one destination, made again where that may help."""

from __future__ import annotations

import gzip
import random
import ssl
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

from dataflare_plugins.http.options import HttpConfig, RetryConfig
from dataflare_plugins.http.target import Target
from dataflare_sdk import code, web
from dataflare_sdk.records import record
from dataflare_sdk.web_connection import WebConnection, failure

UNREACHABLE = code(
    "http.unreachable", 4, "A server did not take a request, again and again.", "See what it says; run again, the run resumes."
)
REFUSED = code("http.refused", 4, "A server refused a request, not for its rows.", "See what it says; mend address, method or headers.")
STOPPED = code("http.stopped", 4, "A request was given up because the run is being stopped.", "Run again; it is made again.")
BAD_CA = code("http.bad-ca", 4, "The file of certificate authorities cannot be read.", "Give a PEM file.")
ROWS = frozenset({400, 409, 413, 422})
"""Statuses that speak of the rows."""
ANSWER = 64 << 10
"""Bytes of an answer that are read at most; of a longer one the connection is given up."""
SHOWN = 300


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
        self._secrets = web.secrets_of(config.headers)
        tls: ssl.SSLContext | None = None
        if config.ca is not None and target.tls:
            try:
                tls = ssl.create_default_context(cafile=str(base / config.ca))
            except OSError as error:
                raise BAD_CA.error(str(error), path="ca") from error
        self._connection = WebConnection(config.timeout, ANSWER, tls=tls)

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
                got = self._connection.ask(self._config.method, self._target.url(path), body, headers)
            except (OSError, HTTPException) as error:
                why, passing = failure(error)
                if not passing:
                    raise REFUSED.error(f"{self._target.origin}: {why}", path="url") from error
            else:
                answer = Answer(got.status, self._shown(got.body))
                if answer.taken or answer.status in ROWS:
                    return answer
                if not web.momentary(answer.status):
                    raise REFUSED.error(f"{self._target.origin} answered {answer}", path="url")
                why, asked = str(answer), web.asked_pause(got.headers)
            if attempt == retry.attempts:
                raise UNREACHABLE.retriable(f"{self._target.origin}: {why} ({attempt} times)", path="url")
            self._count("requests_again", 1)
            self._pause(asked if asked is not None else min(wait, retry.max) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            wait *= 2
        raise AssertionError("unreachable")

    def _shown(self, raw: bytes) -> str:
        """Return the beginning of an answer for people, without what we sent in headers."""
        text = web.hidden(" ".join(raw.decode("utf-8", "replace").split()), self._secrets)
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
        try:
            self._connection.connect(self._target.url())
        except OSError as error:
            raise UNREACHABLE.error(f"{self._target.origin}: {failure(error)[0]}", path="url") from error
        finally:
            self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
