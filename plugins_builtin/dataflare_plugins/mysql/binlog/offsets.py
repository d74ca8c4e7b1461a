"""The offset of a log: which tables are being copied, how far, and where the log is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_plugins.mysql.binlog.position import Place
from dataflare_plugins.mysql.columns import Column
from dataflare_sdk import Offset
from dataflare_sdk.records import field, record


@record
class State:
    """Where a reader stands.

    Attributes:
        server: which server's log.
        place: the end of the last transaction that was read; while tables are copied, where reading will begin.
        high: what the newest copied row may show: changes before it may be in the copy already; None once past it.
        copies: stream to the last key copied, None before the first; streams that are done are missing.
        streaming: the first copy is done.
        shapes: stream to its columns.
        doubtful: streams whose columns may have changed: a statement said so, no row of it has come since.
        asked: streams whose copy was asked for while reading, and begun.
    """

    server: str
    place: Place
    high: Place | None = None
    copies: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    streaming: bool = False
    shapes: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    asked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as an offset."""
        found: dict[str, Any] = {
            "v": 1,
            "phase": "stream" if self.streaming else "snapshot",
            "server": self.server,
            **self.place.to_json(),
            "high": None if self.high is None else self.high.to_json(),
            "shapes": {s: [c.to_json() for c in columns] for s, columns in self.shapes.items()},
        }
        if self.copies:
            found["copies"] = {s: None if k is None else list(k) for s, k in self.copies.items()}
        if self.doubtful:
            found["doubtful"] = sorted(self.doubtful)
        if self.asked:
            found["asked"] = list(self.asked)
        return found

    @classmethod
    def from_json(cls, data: Offset) -> State:
        """Return the state that an offset holds."""
        high = data.get("high")
        return cls(
            server=str(data.get("server", "")),
            place=Place.from_json(data),
            high=None if high is None else Place.from_json(high),
            copies={s: None if k is None else tuple(k) for s, k in (data.get("copies") or {}).items()},
            streaming=data["phase"] == "stream",
            shapes={s: tuple(Column.from_json(c) for c in columns) for s, columns in (data.get("shapes") or {}).items()},
            doubtful=frozenset(data.get("doubtful") or ()),
            asked=tuple(data.get("asked") or ()),
        )

    def at(self, place: Place) -> State:
        """Return it at another place; past what copies may show, changes are certain again."""
        done = self.high is not None and not self.copies and place >= self.high
        return replace(self, place=place, high=None if done else self.high)

    def copied(self, stream: str, key: Sequence[str] | None, high: Place) -> State:
        """Return it after a chunk of a stream; `key` None: the stream is done."""
        copies = {s: k for s, k in self.copies.items() if s != stream}
        if key is not None:
            copies = {stream: tuple(key), **copies}
        return replace(
            self, copies=copies, high=high if self.high is None else max(self.high, high), streaming=self.streaming or not copies
        )
