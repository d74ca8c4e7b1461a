"""A page of raw messages of one part of a source, column by column."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

Column = Any
"""One value for all messages (or None), or a list or Arrow array with one for each."""


@dataclass(slots=True)
class Messages:
    """Raw messages in the order they came in.

    Every column but `payloads` is optional; what a source cannot tell is NULL. `key` holds bytes or text, `time`
    microseconds since 1970 UTC, `headers` mappings of text to text.

    Attributes:
        payloads: their bytes, a list or an Arrow array of binary or text.
        positions: where each stands in its part, ascending, a list or a range: numbers or texts that only the source compares.
        part: the part of the source (a partition of a topic, a stream) they are all of; "" when there is only one.
        topic: what they were published to.
        key: their keys.
        time: when they were published, or arrived.
        headers: their headers.
        base: what the places of all have in common, for dead letters; by default topic and part.
        place: the place of the message at an index beside `base`, for dead letters; by default its position.
        after: position after this page, when that is beyond its last message (what follows it is no message).
    """

    payloads: Any
    positions: Sequence[Any]
    part: str = ""
    topic: Column = None
    key: Column = None
    time: Column = None
    headers: Column = None
    base: Mapping[str, Any] | None = None
    place: Callable[[int], Mapping[str, Any]] | None = None
    after: Any = None
    size: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = self.payloads.nbytes if isinstance(self.payloads, pa.Array) else sum(map(len, self.payloads))

    def __len__(self) -> int:
        """Return how many messages there are."""
        return len(self.payloads)

    @property
    def end(self) -> Any:
        """Where the part stands behind this page."""
        return self.after if self.after is not None else self.positions[-1]

    def where(self, index: int) -> dict[str, Any]:
        """Return the place of a message, for a person who looks for it."""
        base = self.base
        if base is None:
            topic = value_at(self.topic, index)
            base = {**({} if topic is None else {"topic": topic}), **({"part": self.part} if self.part else {})}
        return {**base, **(self.place(index) if self.place is not None else {"position": self.positions[index]})}

    def cut(self, start: int, stop: int) -> Messages:
        """Return the messages from `start` to before `stop`."""
        if start == 0 and stop >= len(self):
            return self
        place = self.place
        return Messages(
            self.payloads[start:stop],
            self.positions[start:stop],
            self.part,
            topic=_cut(self.topic, start, stop),
            key=_cut(self.key, start, stop),
            time=_cut(self.time, start, stop),
            headers=_cut(self.headers, start, stop),
            base=self.base,
            place=None if place is None else lambda i: place(i + start),
            after=self.after if stop >= len(self) else None,
        )


def joined(pages: Sequence[Messages]) -> Messages:
    """Return pages of one part as one page."""
    full = [p for p in pages if len(p)]
    if len(full) <= 1:
        made = full[0] if full else pages[0]
        made.after = pages[-1].end
        return made
    starts = list(itertools.accumulate((len(p) for p in full), initial=0))

    def where(index: int) -> dict[str, Any]:
        page = bisect.bisect_right(starts, index) - 1
        return full[page].where(index - starts[page])

    return Messages(
        _joined([p.payloads for p in full]),
        [position for p in full for position in p.positions],
        full[0].part,
        topic=_joined_column(full, "topic"),
        key=_joined_column(full, "key"),
        time=_joined_column(full, "time"),
        headers=_joined_column(full, "headers"),
        base={},
        place=where,
        after=pages[-1].end,
        size=sum(p.size for p in full),
    )


def _joined(columns: Sequence[Any]) -> Any:
    if any(isinstance(c, pa.Array) for c in columns):
        kind = next(c.type for c in columns if isinstance(c, pa.Array))
        return pa.concat_arrays([c if isinstance(c, pa.Array) else pa.array(c, kind) for c in columns])
    return list(itertools.chain.from_iterable(columns))


def _joined_column(pages: Sequence[Messages], name: str) -> Column:
    values = [getattr(p, name) for p in pages]
    if all(not is_column(v) and v == values[0] for v in values):
        return values[0]
    return _joined([v if is_column(v) else [v] * len(p) for v, p in zip(values, pages, strict=True)])


def is_column(values: Column) -> bool:
    """Tell a column from one value for all messages."""
    return isinstance(values, (list, tuple, range, pa.Array))


def value_at(values: Column, index: int) -> Any:
    """Return one value of a column, plain."""
    if not is_column(values):
        return values
    found = values[index]
    return found.as_py() if isinstance(found, pa.Scalar) else found


def _cut(values: Column, start: int, stop: int) -> Column:
    return values[start:stop] if is_column(values) else values
