"""What can go wrong with a NATS server, as codes; and the server's errors turned into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import CODES, DataflareError, code

BAD_URL = code("nats.bad-url", 3, "The URL is none of NATS.", "Write nats://user:password@host:4222, or tls:// for TLS.")
UNREACHABLE = code("nats.unreachable", 4, "The server cannot be reached.", "Check host and port in `url`, and that the server runs.")
LOST = code("nats.connection-lost", 4, "The connection to the server was lost.", "Run again; the run resumes.")
DENIED = code("nats.denied", 4, "The server refuses the user, the password or the token.", "Check what stands before the @ in `url`.")
PERMISSION = code("nats.permission", 4, "The user may not publish or subscribe to a subject.", "Let an administrator grant it.")
NO_JETSTREAM = code("nats.no-jetstream", 4, "The server has no JetStream, or not for this account.", "Start the server with `-js`.")
NO_STREAM = code("nats.no-stream", 4, "There is no such stream, or none that takes the subject.", "Make the stream, or check its name.")
CONSUMER = code(
    "nats.other-consumer",
    4,
    "A durable consumer is there already, and of another kind than is needed.",
    "Name another one in `durable`, or remove it.",
)
WORK_QUEUE = code(
    "nats.work-queue",
    4,
    "A stream that is a work queue is read by a durable consumer only.",
    "Give `durable` the name of the consumer.",
)
FULL = code("nats.full", 4, "The stream takes no more messages.", "Raise its limits, or let it discard old messages.")
SERVER = code("nats.failed", 4, "The server refuses a request.", "See the server's message.")

_CODES = {
    10059: NO_STREAM,
    10039: NO_JETSTREAM,
    10076: NO_JETSTREAM,
    10035: NO_JETSTREAM,
    10077: FULL,
    10047: FULL,
    10023: FULL,
    10028: FULL,
}
"""Kind by the `err_code` of JetStream."""
NOT_FOUND = 10037
"""No message is there under a sequence number."""
NO_CONSUMER = 10014
"""There is no such consumer."""


def refused(place: str, error: Mapping[str, Any], path: str | None = None) -> DataflareError:
    """Return what an answer of JetStream's API with an error means.

    Args:
        place: the server, and what was asked.
        error: `{"code": …, "err_code": …, "description": …}`.
        path: the key of the `with:` block it is about.
    """
    text = f"{place}: {error.get('description', 'refused')}"
    if "resource limits exceeded" in text and "disk" in text:
        return CODES["world.disk-full"].error(text)
    kind = _CODES.get(int(error.get("err_code", 0)), SERVER)
    if error.get("code") in (500, 503) and kind is SERVER:
        return SERVER.retriable(text)
    return kind.error(text, path=path)


def told(place: str, text: str) -> DataflareError:
    """Return what the server's `-ERR` means."""
    message, lower = f"{place}: {text}", text.lower()
    if "authorization" in lower or "authentication" in lower:
        return DENIED.error(message, path="url")
    if "permissions violation" in lower:
        return PERMISSION.error(message)
    return LOST.retriable(message)
