"""What a workflow may say about a capture, beside which tables it is of."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from dataflare_sdk import ComponentContext, Duration, Size, config, option
from dataflare_sdk.fields import parse


@config
class CaptureOptions:
    """Keys of `extract:` with `mode: cdc`."""

    consistency: Literal["chunks", "instant"] = option(
        "How tables are copied at first: chunk by chunk (a kill goes on at the last chunk), or all as of one moment (a kill starts over).",
        default="chunks",
    )
    on_slot_lost: Literal["fail", "resnapshot"] = option(
        "When the slot is gone, and with it changes nobody has read: stop, or empty the destination and copy the tables anew.",
        default="fail",
    )
    max_slot_lag: Size | None = option("Stop when the slot holds back more of the log than this.", default=None, example="10GiB")
    heartbeat: Duration | None = option(
        "Write a message into the log this often, so that the capture moves on in a database nobody else writes to.",
        default=None,
        example="1m",
    )


def of(extract: Mapping[str, Any]) -> CaptureOptions:
    """Return the capture's options from what the `extract:` block carried beside the engine's own keys."""
    known = {k: extract[k] for k in ("consistency", "on_slot_lost", "max_slot_lag", "heartbeat") if k in extract}
    return parse(CaptureOptions, known)


def slot_name(given: str | None, ctx: ComponentContext) -> str:
    """Return the slot's name: the one given, or one that no other workflow or node comes to."""
    if given is not None:
        return given
    identity = ctx.run.workflow_id if ctx.run is not None else ""
    node = re.sub(r"[^a-z0-9_]", "_", ctx.node.lower())[:40]
    return f"dataflare_{node}_{zlib.crc32(f'{identity}/{ctx.node}'.encode()):08x}"
