"""The checkpoint of a destination: a key that is set in the transaction of its rows, and watched until then."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from dataflare_plugins.redis.connection import Session
from dataflare_sdk import CODES, Opened, Target
from dataflare_sdk.fence import FENCED, check_fence

PREFIX = "_dataflare_checkpoints"


def key_of(target: Target) -> str:
    """Return the key that a destination's checkpoint is kept under."""
    return f"{PREFIX}:{target.workflow_id}:{target.node}"


def claim(session: Session, target: Target) -> Opened:
    """Raise the fence to the run's and say what the destination holds. What another run held begins again at epoch 0.

    Raises:
        DataflareError: `state.fenced`, `state.damaged-checkpoint`.
    """
    key, place = key_of(target), session.url.place
    while True:
        session.call("WATCH", key)
        held = _read(session, target)
        if held is not None:
            check_fence(held["fence"], target.fence, place)
        same = held is not None and held["run_id"] == target.run_id
        epoch, offsets = (held["epoch"], held["offsets"]) if held is not None and same else (0, {})
        if session.transaction([("SET", key, record(target, epoch, offsets))]) is not None:
            return Opened(epoch, target.run_id if epoch else None, offsets)


def watch(session: Session, target: Target, epoch: int) -> None:
    """Make sure that the destination holds the epoch before `epoch`, and that a transaction fails if that changes.

    Raises:
        DataflareError: `state.fenced`: a newer run has claimed it.
    """
    session.call("WATCH", key_of(target))
    held = _read(session, target)
    if held is None or (held["run_id"], held["epoch"], held["fence"]) != (target.run_id, epoch - 1, target.fence):
        session.call("UNWATCH")
        raise fenced(session, epoch)


def fenced(session: Session, epoch: int) -> Exception:
    """Return what to raise when another run has claimed the destination."""
    return FENCED.error(f"{session.url.place} does not hold epoch {epoch - 1} of this run any more: another run has claimed it")


def record(target: Target, epoch: int, offsets: Mapping[str, Any]) -> bytes:
    """Return the checkpoint as it is kept."""
    held = {
        "run_id": target.run_id,
        "epoch": epoch,
        "fence": target.fence,
        "offsets": dict(offsets),
        "plan_hash": target.plan_hash,
        "schema_version": 1,
    }
    text = json.dumps(held, sort_keys=True)
    return json.dumps({"crc": zlib.crc32(text.encode()), "held": text}).encode()


def _read(session: Session, target: Target) -> dict[str, Any] | None:
    raw = session.call("GET", key_of(target))
    if raw is None:
        return None
    try:
        kept = json.loads(raw)
        text = kept["held"]
        if zlib.crc32(text.encode()) != kept["crc"]:
            raise ValueError("the checksum differs")
        found: dict[str, Any] = json.loads(text)
    except (ValueError, KeyError, TypeError) as error:
        told = f"the checkpoint of '{target.node}' in {session.url.place} is damaged: {error}"
        raise CODES["state.damaged-checkpoint"].error(told) from error
    return found
