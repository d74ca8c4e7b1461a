"""What a workflow may say about a capture, beside which tables it is of."""

from __future__ import annotations

import re
import zlib

from dataflare_sdk import ComponentContext, code
from dataflare_sdk.records import record

BAD_SLOT = code(
    "postgres.bad-slot", 3, "The name of a replication slot is none.", "Use small letters, digits and underscores, 63 of them at most."
)


@record
class CaptureOptions:
    """How tables are captured.

    Attributes:
        slot: name of the replication slot; None: one of the node's own.
        publication: name of the publication; None: one is made.
        on_slot_lost: `fail` or `resnapshot`.
        max_slot_lag: bytes of log the slot may hold back, None: any.
        heartbeat: write a message into the log this often, seconds; None: never.
        instant: copy all tables as of one moment, as one, where otherwise they are copied chunk by chunk.
    """

    slot: str | None = None
    publication: str | None = None
    on_slot_lost: str = "fail"
    max_slot_lag: int | None = None
    heartbeat: float | None = None
    instant: bool = False


def slot_name(given: str | None, ctx: ComponentContext) -> str:
    """Return the slot's name: the one given, or one that no other workflow or node comes to.

    Raises:
        DataflareError: `postgres.bad-slot`.
    """
    if given is not None:
        if not re.fullmatch(r"[a-z0-9_]{1,63}", given):
            raise BAD_SLOT.error(f"'{given}' is no name of a replication slot", path="slot")
        return given
    node = re.sub(r"[^a-z0-9_]", "_", ctx.node.lower())[:40]
    return f"dataflare_{node}_{mark(ctx)}"


def mark(ctx: ComponentContext) -> str:
    """Return what tells this node of this workflow from all others."""
    identity = ctx.run.workflow_id if ctx.run is not None else ""
    return f"{zlib.crc32(f'{identity}/{ctx.node}'.encode()):08x}"
