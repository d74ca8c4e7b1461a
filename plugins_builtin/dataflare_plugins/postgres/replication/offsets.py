"""Where a capture stands: what its checkpoints hold, as versioned JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import Offset, code
from dataflare_sdk.records import field, record

BAD_OFFSET = code(
    "postgres.bad-offset",
    4,
    "A checkpoint holds an offset that this version cannot read.",
    "Go on with the version that wrote it, or start over with `dataflare state reset`.",
)
VERSION = 1


@record
class Progress:
    """How far a table is copied.

    Attributes:
        done: all of it.
        key: the key of the last row copied, as the server writes its values; None: nothing yet.
    """

    done: bool = False
    key: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in an offset."""
        return {"done": self.done, "key": None if self.key is None else list(self.key)}


@record
class Place:
    """A place to go on from.

    Attributes:
        lsn: transactions that commit at or after it are still to be streamed.
        high: where the log stood, at the latest, when the last chunk of a snapshot was read: until there a change
            may be older than the row it meets.
        tables: stream to its progress, of the tables a snapshot is under way of.
        streaming: the first snapshot is complete.
        skip: transaction (32-bit id) and LSN: its changes up to there were handed out already. Only where a table was
            altered within a transaction too large to be read again whole.
    """

    lsn: int
    high: int
    tables: Mapping[str, Progress] = field(default_factory=dict)
    streaming: bool = True
    skip: tuple[int, int] | None = None

    def to_json(self) -> Offset:
        """Return the place as an offset."""
        made: dict[str, Any] = {"v": VERSION, "phase": "stream" if self.streaming else "snapshot", "lsn": self.lsn, "high": self.high}
        if self.skip is not None:
            made["skip"] = list(self.skip)
        if self.tables:
            made["tables"] = {name: progress.to_json() for name, progress in self.tables.items()}
        return made


def from_json(offset: Offset) -> Place:
    """Return the place an offset stands for.

    Raises:
        DataflareError: `postgres.bad-offset`.
    """
    try:
        if offset["v"] != VERSION:
            raise BAD_OFFSET.error(f"the checkpoint holds an offset of version {offset['v']}, this is version {VERSION}")
        tables = {name: Progress(bool(p["done"]), _key(p["key"])) for name, p in offset.get("tables", {}).items()}
        return Place(int(offset["lsn"]), int(offset.get("high", 0)), tables, offset["phase"] == "stream", _skip(offset.get("skip")))
    except (KeyError, TypeError, ValueError) as error:
        raise BAD_OFFSET.error(f"the checkpoint's offset is not one of a capture: {error}") from error


def _skip(raw: Any) -> tuple[int, int] | None:
    return None if raw is None else (int(raw[0]), int(raw[1]))


def is_goal(offset: Offset) -> bool:
    """Return True for what `position` gives: to be reached or passed, where a checkpoint is to be stopped at exactly."""
    return "high" not in offset


def _key(raw: Any) -> tuple[str, ...] | None:
    return None if raw is None else tuple(raw)
