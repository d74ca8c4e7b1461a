"""What the job supervisor and its tasks tell each other; plain data that could cross a wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflare_sdk import DeadLetter, Opened, SchemaChange


@dataclass(frozen=True, slots=True)
class Begin:
    """To a task: start. Sources read after `offsets`, to `until` exactly when an epoch is being replayed.

    `closed` names the sources whose end was told before the barrier of the epoch that is replayed: the others must not tell
    it within that epoch, or its rows would be others than those that were committed.
    """

    epoch: int = 1
    offsets: Mapping[str, Any] = field(default_factory=dict)
    until: Mapping[str, Any] | None = None
    ended: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    states: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Continue:
    """To a source: the replayed epoch is committed, read on from where it stopped."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """To a source: send a barrier now."""

    epoch: int
    final: bool = False
    replay: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """To a source: stop reading; what was read goes on."""


@dataclass(frozen=True, slots=True)
class Commit:
    """To a destination task: the epoch is logged, make it durable and visible."""

    epoch: int
    offsets: Mapping[str, Any]
    final: bool


@dataclass(frozen=True, slots=True)
class Recover:
    """To a destination task: finish a logged epoch from what lies prepared, if it does."""

    epoch: int
    offsets: Mapping[str, Any]
    final: bool
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """To a source: these offsets are durable everywhere."""

    offsets: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Leave:
    """To a task: end now, the run is over for it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From a task: built; of destinations, what they durably hold."""

    task: str
    opened: Mapping[str, Opened] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recovered:
    """From a destination task: node to whether it could finish the epoch."""

    task: str
    nodes: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """From a source task: everything is read and handed on."""

    task: str


@dataclass(frozen=True, slots=True)
class Reshaped:
    """From a source task: a stream has other columns from here on; it reads no further."""

    task: str
    source: str
    output: str
    change: SchemaChange


@dataclass(frozen=True, slots=True)
class Abandoned:
    """From a source task: asked to stop, it found no place to resume from in time; what was read since the last is given up."""

    task: str


@dataclass(frozen=True, slots=True)
class Passed:
    """From a task: the barrier of `epoch` has passed, and this is how things stood."""

    task: str
    epoch: int
    states: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    letters: Sequence[DeadLetter] = ()
    offsets: Mapping[str, Any] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Committed:
    """From a destination task: the epoch is durable and visible."""

    task: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Exited:
    """From the actor system: a task has ended, with its error if it failed."""

    task: str
    error: BaseException | None
