"""Windows of event time: what a person writes, and the arithmetic of them in SQL."""

from __future__ import annotations

import math
from typing import Literal

from dataflare_sdk import Duration, code, config, option
from dataflare_sdk.event_time import micros
from dataflare_sdk.records import record

ORIGIN = 946_857_600_000_000
"""Monday, 3 January 2000, where DuckDB's `time_bucket` begins too, in microseconds since 1970."""
START, END = "window_start", "window_end"
"""What `by` may name beside the columns of the input."""

ONE_KIND = code(
    "window.one-kind", 3, "A window is tumbling, sliding or a session, one of them.",
    "Write {tumbling: 1h}, {sliding: 1h, every: 5m} or {session: 30m}.",
)  # fmt: skip


@config
class Window:
    """A row counts in the windows its event time lies in; a window is told once, when nothing more of it can come."""

    on: str = option("Column of the event time: a timestamp or a date.", example="created_at")
    tumbling: Duration | None = option("Length of windows that follow each other.", default=None, example="1h")
    sliding: Duration | None = option("Length of windows that overlap; `every` says how far apart they begin.", default=None)
    every: Duration | None = option("How far apart sliding windows begin.", default=None)
    session: Duration | None = option("The pause that ends a session of one group.", default=None)
    lateness: Duration = option("How long before the newest row of its partition a row may lie.", default=0.0, example="1m")
    late: Literal["drop", "dead_letter"] = option("What becomes of later rows, beside the output `late`.", default="drop")
    ahead: Duration | None = option("How far in the future a row may lie; others are bad rows.", default=None, example="1h")
    quiet: Duration | None = option("After so long without a row from anywhere event time goes on with the clock.", default=None)


@record
class Shape:
    """The windows of a step.

    Attributes:
        kind: `tumbling`, `sliding` or `session`.
        size: microseconds; of a session the pause that ends it.
        every: microseconds from start to start; of a tumbling window its size.
    """

    kind: str
    size: int
    every: int

    @property
    def pane(self) -> int:
        """Microseconds within which rows share all their windows."""
        return math.gcd(self.size, self.every)

    def bucket(self, time: str) -> str:
        """Return SQL for where the pane of a time begins; of sessions: rows of one bucket are surely in one session."""
        return floor(time, self.size if self.kind == "session" else self.pane)

    def first(self, time: str) -> str:
        """Return SQL for the start of the first window that holds a time."""
        return f"({floor(f'({time} - {self.size})', self.every)} + {self.every})"

    def last(self, time: str) -> str:
        """Return SQL for the start of the last window that holds a time."""
        return floor(time, self.every)


def floor(time: str, step: int) -> str:
    """Return SQL for the newest multiple of `step` from the origin that is not after a time."""
    return f"({time} - ((({time} - {ORIGIN}) % {step}) + {step}) % {step})"


def shape_of(window: Window) -> Shape:
    """Return the windows that are meant.

    Raises:
        DataflareError: `window.one-kind`.
    """
    given = [n for n in ("tumbling", "sliding", "session") if getattr(window, n) is not None]
    if len(given) != 1:
        raise ONE_KIND.error(f"a window is {' and '.join(given)}" if given else "a window has no kind", path="window")
    kind = given[0]
    size = micros(getattr(window, kind))
    if size <= 0:
        raise ONE_KIND.error(f"`{kind}` has no length", path=f"window.{kind}")
    if (kind == "sliding") != (window.every is not None):
        told = "a sliding window needs `every`" if kind == "sliding" else f"`every` belongs to sliding windows, not to `{kind}`"
        raise ONE_KIND.error(told, path="window")
    every = micros(window.every) if window.every is not None else size
    if not 0 < every <= size:
        raise ONE_KIND.error("`every` is longer than the window: rows between two windows would be lost", path="window.every")
    return Shape(kind, size, every)
