"""What the server is told of entries that are durable everywhere: the place of a group, and that they may go.

Rows never come by way of the group: entries are read by id, which can be repeated exactly. The group's place follows what is
durable, so it shows anybody who looks (`XINFO GROUPS`) how far that is, and keeps others from trimming what is not. What others
who used the group left pending is acknowledged then, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.redis.connection import Session, flat
from dataflare_plugins.redis.errors import driver, explained
from dataflare_plugins.redis.ids import Position, before, behind, order, parse_position

ACKS = 1_000
"""Entries acknowledged at once."""


def stands(session: Session, group: str, stream: str) -> Position | None:
    """Return where a group stands: before the oldest entry that somebody took and did not acknowledge, else where it is read to.

    None: there is no such group, or no such stream.
    """
    for info in _groups(session, stream):
        if info["name"].decode() == group:
            oldest = _oldest(session, stream, info)
            read = info.get("entries-read")
            return Position(info["last-delivered-id"].decode(), read) if oldest is None else Position(before(*order(oldest)))
    return None


def tell(session: Session, group: str, parts: Mapping[str, str]) -> None:
    """Move a group to where every stream is durable; it is made where it is missing.

    Args:
        session: a connection.
        group: the group.
        parts: stream to position.
    """
    for stream, text in parts.items():
        at = parse_position(text)
        read = [] if at.added is None else ["ENTRIESREAD", at.added]
        done = session.transaction([("XGROUP", "CREATE", stream, group, at.id), ("XGROUP", "SETID", stream, group, at.id, *read)])
        if isinstance(done[1], driver().exceptions.ResponseError):
            if "requires the key to exist" in str(done[1]):
                continue
            raise explained(done[1], f"{session.url.place}: '{stream}'", path="group")
        # What somebody took before us and never acknowledged: it was read again, and is durable now.
        while pending := session.call("XPENDING", stream, group, "-", at.id, ACKS):
            session.call("XACK", stream, group, *(entry[0] for entry in pending))


def trim(session: Session, parts: Mapping[str, str]) -> int:
    """Remove what is durable and what no group of the stream still needs; return how many entries that were.

    Args:
        session: a connection.
        parts: stream to position.
    """
    removed = 0
    for stream, text in parts.items():
        last = parse_position(text).id
        for info in _groups(session, stream):
            oldest = _oldest(session, stream, info)
            held = info["last-delivered-id"].decode() if oldest is None else before(*order(oldest))
            last = min(last, held, key=order)
        removed += int(session.call("XTRIM", stream, "MINID", behind(last)))
    return removed


def _groups(session: Session, stream: str) -> Sequence[Mapping[str, Any]]:
    found = session.transaction([("XINFO", "GROUPS", stream)])[0]
    # An error: there is no such stream (any more).
    return [] if isinstance(found, driver().exceptions.ResponseError) else [flat(group) for group in found]


def _oldest(session: Session, stream: str, info: Mapping[str, Any]) -> bytes | None:
    """Return the oldest entry that is pending for a group, None when none is."""
    oldest: bytes | None = session.call("XPENDING", stream, info["name"])[1] if info["pending"] else None
    return oldest
