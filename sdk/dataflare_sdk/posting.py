"""Posting to an HTTP address again and again until somebody takes it: for monitors, which have a thread of their own to wait on."""

from __future__ import annotations

import time
from collections.abc import Mapping

from dataflare.errors import CONFIG_INVALID, code
from dataflare_sdk import web

__all__ = ["Poster"]

NOT_TAKEN = code(
    "monitor.not-taken",
    4,
    "What a monitor posted was not taken by whoever it was posted to.",
    "Check the address, the headers and the receiver's log.",
)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds between two attempts where the receiver does not ask for others; each pause is twice the one before."""
ANSWER = 64 << 10
"""Bytes of an answer that are read; nobody looks at them."""


class Poster:
    """One address. Redirects are not followed: headers may hold a secret.

    Args:
        url: the address; it may hold a secret, and is never shown whole.
        headers: sent with every post.
        timeout: seconds until all of an answer has to be there.
        attempts: how often one post is tried.

    Raises:
        DataflareError: `config.invalid`, with the path `url` or `headers`.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, timeout: float = 5.0, attempts: int = 5) -> None:
        try:
            self._url = web.address(str(url))
        except ValueError as error:
            raise CONFIG_INVALID.error(str(error), fix="Credentials go into `headers`.", path="url") from None
        wrong = next((w for name, value in headers.items() if (w := web.bad_header(name, value))), None)
        if wrong is not None:
            raise CONFIG_INVALID.error(wrong, path="headers")
        self._headers = {"User-Agent": "dataflare", "Connection": "close", **headers}
        self._timeout = timeout
        self._attempts = attempts

    @property
    def shown(self) -> str:
        """The server, as people may see it: the path may be a secret of its own."""
        return web.shown(self._url)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Post something; try again after a failure of the moment (no answer, 408, 425, 429, 5xx), when the receiver says if it does.

        Raises:
            DataflareError: `monitor.not-taken`, once it was refused or tried as often as it may be.
        """
        from http.client import HTTPException

        from dataflare_sdk.web_connection import WebConnection, failure

        pause = FIRST_PAUSE
        for attempt in range(1, self._attempts + 1):
            connection = WebConnection(self._timeout, ANSWER)
            asked: float | None = None
            try:
                sent = {**self._headers, **(headers or {})}
                answer = connection.ask("POST", self._url, body, sent, until=time.monotonic() + self._timeout)
            except (OSError, HTTPException) as error:
                why, passing = failure(error)
            else:
                if 200 <= answer.status < 300:
                    return
                why, passing, asked = f"HTTP {answer.status}", web.momentary(answer.status), web.asked_pause(answer.headers)
            finally:
                connection.close()
            if not passing or attempt == self._attempts:
                raise NOT_TAKEN.error(f"{self.shown} did not take what was posted: {why}, tried {attempt} times")
            time.sleep(pause if asked is None else asked)
            pause = min(pause * 2, LONGEST_PAUSE)
