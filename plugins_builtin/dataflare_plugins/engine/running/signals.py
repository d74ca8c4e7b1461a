"""What the job supervisor and its tasks tell each other; plain data that could cross a wire.

Named tuples, not dataclasses: defining twenty of those takes a noticeable part of a short run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dataflare_sdk import DeadLetter, Opened, SchemaChange, Watermark

Receive = Callable[[float | None], Any]
"""What a task is given to read its mail: waits so many seconds, None for ever; None when nothing came."""
# Shared by every signal that says nothing of it; `Mapping` keeps the type checker watching that nobody writes to it.
NOTHING: Mapping[str, Any] = {}


class Begin(NamedTuple):
    """To a task: start. Sources read after `offsets`, to `until` exactly when an epoch is being replayed.

    `closed` names the sources whose end was told before the barrier of the epoch that is replayed: the others must not tell
    it within that epoch, or its rows would be others than those that were committed. `watermarks` holds, by task, how far the
    partitions of each source had come when that epoch ended.
    """

    epoch: int = 1
    offsets: Mapping[str, Any] = NOTHING
    until: Mapping[str, Any] | None = None
    ended: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    states: Mapping[str, Any] = NOTHING
    counts: Mapping[str, Mapping[str, float]] = NOTHING
    watermarks: Mapping[str, Sequence[Sequence[Any]]] = NOTHING


class Continue(NamedTuple):
    """To a source: the replayed epoch is committed, read on from where it stopped."""


class Trigger(NamedTuple):
    """To a source: send a barrier now."""

    epoch: int
    final: bool = False
    replay: bool = False
    time: int = 0


class Drain(NamedTuple):
    """To a source: stop reading; what was read goes on."""


class Commit(NamedTuple):
    """To a destination task: the epoch is logged, make it durable and visible."""

    epoch: int
    offsets: Mapping[str, Any]
    final: bool


class Recover(NamedTuple):
    """To a destination task: finish a logged epoch from what lies prepared, if it does."""

    epoch: int
    offsets: Mapping[str, Any]
    final: bool
    nodes: tuple[str, ...]


class Ack(NamedTuple):
    """To a source: these offsets are durable everywhere."""

    offsets: Mapping[str, Any]


class Leave(NamedTuple):
    """To a task: end now, the run is over for it."""


class Ready(NamedTuple):
    """From a task: built; of destinations, what they durably hold."""

    task: str
    opened: Mapping[str, Opened] = NOTHING


class Recovered(NamedTuple):
    """From a destination task: node to whether it could finish the epoch."""

    task: str
    nodes: Mapping[str, bool]


class Exhausted(NamedTuple):
    """From a source task: everything is read and handed on."""

    task: str


class Reshaped(NamedTuple):
    """From a source task: a stream has other columns from here on; it reads no further."""

    task: str
    source: str
    output: str
    change: SchemaChange


class Abandoned(NamedTuple):
    """From a source task: asked to stop, it found no place to resume from in time; what was read since the last is given up."""

    task: str


class Passed(NamedTuple):
    """From a task: the barrier of `epoch` has passed, and this is how things stood."""

    task: str
    epoch: int
    states: Mapping[str, Any] = NOTHING
    counts: Mapping[str, Mapping[str, float]] = NOTHING
    letters: Sequence[DeadLetter] = ()
    offsets: Mapping[str, Any] = NOTHING
    ended: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    watermarks: tuple[Watermark, ...] = ()


class Committed(NamedTuple):
    """From a destination task: the epoch is durable and visible."""

    task: str
    epoch: int


class Exited(NamedTuple):
    """From the actor system: a task has ended, with its error if it failed."""

    task: str
    error: BaseException | None
