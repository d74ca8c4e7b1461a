"""What a server knows of a stream."""

from __future__ import annotations

from typing import Any

from dataflare_plugins.redis.connection import Session, flat
from dataflare_plugins.redis.errors import TOO_OLD, driver, explained
from dataflare_plugins.redis.ids import Position

EMPTY: dict[str, Any] = {"length": 0, "last-generated-id": b"0-0", "entries-added": 0, "first-entry": None}
"""What is known of a stream that is not there (yet)."""


def look(session: Session, stream: str, path: str | None = None) -> dict[str, Any]:
    """Return what XINFO knows of a stream; `EMPTY` when it is not there.

    Raises:
        DataflareError: `redis.too-old`, `redis.not-a-stream` and others of this plugin.
    """
    found = session.transaction([("XINFO", "STREAM", stream)])
    return known(found[0], stream, session.url.place, path)


def known(reply: Any, stream: str, place: str, path: str | None = None) -> dict[str, Any]:
    """Return a reply to XINFO STREAM as a mapping.

    Raises:
        DataflareError: as `look`.
    """
    if isinstance(reply, driver().exceptions.ResponseError):
        if "no such key" in str(reply):
            return EMPTY
        raise explained(reply, f"{place}: '{stream}'", path=path or "streams") from None
    info = flat(reply)
    if "entries-added" not in info:
        raise TOO_OLD.error(f"{place} is older than Redis 7", path="url")
    return info


def end_of(info: dict[str, Any]) -> Position:
    """Return the position behind everything in a stream."""
    return Position(info["last-generated-id"].decode(), int(info["entries-added"]))


def gone(info: dict[str, Any]) -> int:
    """Return how many entries of a stream are there no more."""
    return int(info["entries-added"]) - int(info["length"])
