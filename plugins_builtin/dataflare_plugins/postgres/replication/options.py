"""What a workflow may say about a capture, beside which tables it is of."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from dataflare_sdk import ComponentContext


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """The source's keys that only a capture knows.

    Attributes:
        on_slot_lost: `fail` or `resnapshot`: what to do when the slot is gone.
        max_slot_lag: bytes of the log the slot may hold back before the capture stops; None: any.
        heartbeat: seconds between messages of our own in the log; None: none.
    """

    on_slot_lost: str = "fail"
    max_slot_lag: int | None = None
    heartbeat: float | None = None


def slot_name(given: str | None, ctx: ComponentContext) -> str:
    """Return the slot's name: the one given, or one that no other workflow or node comes to."""
    if given is not None:
        return given
    identity = ctx.run.workflow_id if ctx.run is not None else ""
    node = re.sub(r"[^a-z0-9_]", "_", ctx.node.lower())[:40]
    return f"dataflare_{node}_{zlib.crc32(f'{identity}/{ctx.node}'.encode()):08x}"
