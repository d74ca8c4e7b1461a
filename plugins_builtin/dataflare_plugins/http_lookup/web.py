"""One web service: redirects that do not carry secrets away, answers of bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from urllib.parse import SplitResult

from dataflare_sdk import RetriableError, code, web
from dataflare_sdk.web_connection import Answer, WebConnection, failure

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
NOTHING = (404, 410)


def parsed(text: str) -> SplitResult:
    """Return an address taken apart.

    Raises:
        DataflareError: `http_lookup.bad-url`.
    """
    try:
        return web.address(text)
    except ValueError as error:
        raise BAD_URL.error(str(error), path="url") from None


class Service:
    """Makes requests; not for two threads.

    Args:
        headers: sent to the address's own origin, and nowhere else.
        timeout: seconds that connecting, and each read, may take.
        most: bytes of an answer.
    """

    def __init__(self, headers: Mapping[str, str], timeout: float, most: int) -> None:
        self._headers, self._most = dict(headers), most
        self._connection = WebConnection(timeout, most)

    def send(self, method: str, address: str, body: bytes | None) -> tuple[int, bytes]:
        """Make a request and follow its redirects.

        Returns:
            Status and body of the answer.

        Raises:
            RetriableError: `http_lookup.unavailable`; `after` says when to ask again, if the service does.
            DataflareError: `http_lookup.refused`: it was sent on for ever, or to where it may not go.
        """
        url = parsed(address)
        home = web.origin(url)
        for _ in range(web.HOPS + 1):
            answer = self._asked(method, url, body, self._headers if web.origin(url) == home else {})
            try:
                there = web.onward(url, answer.status, answer.headers.get("location"), method, body)
            except ValueError as error:
                raise REFUSED.error(f"{web.shown(url)}: {error}", path="url") from None
            if there is None:
                if web.momentary(answer.status):
                    raise _later(f"{web.shown(url)} answers with status {answer.status}", answer)
                return answer.status, answer.body
            url, method, body = there
        raise REFUSED.error(f"{web.shown(url)} sent the request on more than {web.HOPS} times", path="url")

    def _asked(self, method: str, url: SplitResult, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        given = {"Accept": "application/json", **({"Content-Type": "application/json"} if body is not None else {}), **headers}
        try:
            answer = self._connection.ask(method, url, body, given)
        except (OSError, HTTPException) as error:
            why, passing = failure(error)
            if not passing:
                raise REFUSED.error(f"{web.shown(url)}: {why}", path="url") from error
            raise UNAVAILABLE.retriable(f"{web.shown(url)} does not answer: {why}", path="url") from error
        if not answer.whole:
            raise BAD_ANSWER.error(f"the answer of {web.shown(url)} is larger than {self._most} bytes", path="max_bytes")
        return answer

    def cancel(self) -> None:
        """Cut the connection; from any thread."""
        self._connection.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _later(what: str, answer: Answer) -> RetriableError:
    """Return an outage, with the pause that the service asks for."""
    error = UNAVAILABLE.retriable(what, path="url")
    error.after = web.asked_pause(answer.headers)
    return error
