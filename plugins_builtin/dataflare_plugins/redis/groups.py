"""What the server is told of entries that are durable everywhere: the place of a group, and that they may go.

Rows never come by way of the group: entries are read by id, which can be repeated exactly. The group's place follows what is
durable, so it shows anybody who looks (`XINFO GROUPS`) how far that is, and keeps others from trimming what is not.
"""

from __future__ import annotations

from collections.abc import Mapping

from dataflare_plugins.redis.connection import Session, flat
from dataflare_plugins.redis.errors import driver, explained
from dataflare_plugins.redis.ids import behind, order, parse_position


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
        if isinstance(done[1], driver().exceptions.ResponseError) and "requires the key to exist" not in str(done[1]):
            raise explained(done[1], f"{session.url.place}: '{stream}'", path="group")


def trim(session: Session, parts: Mapping[str, str]) -> int:
    """Remove what is durable and what no group of the stream still needs; return how many entries that were.

    Args:
        session: a connection.
        parts: stream to position.
    """
    removed = 0
    for stream, text in parts.items():
        last = parse_position(text).id
        found = session.transaction([("XINFO", "GROUPS", stream)])
        if isinstance(found[0], driver().exceptions.ResponseError):
            continue  # there is no such stream (any more)
        for info in map(flat, found[0]):
            held = info["last-delivered-id"].decode()
            if info["pending"]:
                oldest = session.call("XPENDING", stream, info["name"])[1]
                time, number = order(oldest)
                held = min(held, f"{time}-{number - 1}" if number else f"{time - 1}-0", key=order)
            last = min(last, held, key=order)
        removed += int(session.call("XTRIM", stream, "MINID", behind(last)))
    return removed
