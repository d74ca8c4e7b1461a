"""The state store: what survives the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dataflare.records import field, record


@record
class Lease:
    """The right to run a workflow: an OS-held lock for liveness, a fence number for safety.

    Attributes:
        workflow: name of the workflow.
        workflow_id: random id made at its first run.
        fence: grows by one at every acquisition; any write with an older one ends that run.
    """

    workflow: str
    workflow_id: str
    fence: int


LETTER_STATES = ("open", "replaying", "replayed", "refused", "purged")
"""What a dead letter may be: waiting; claimed by a replay under way; delivered by one; refused again by one, which made a
new letter of it; or emptied."""


@record
class DeadLetter:
    """A row that could not be processed, kept so that it can be read, mended and replayed.

    Attributes:
        id: assigned by the store when it is kept, "" before.
        run_id: the run it fell out of.
        position: where it stands in its source, JSON-able.
        row: the original source row (or the step's input row after a join or aggregate), JSON-able.
        raw: its text when it could not be read.
        step: id of the node that refused it.
        code: error code.
        cause: why.
        source: id of the source node, when one row can be traced to one.
        saved_at: seconds since 1970 UTC, 0.0 before it is kept.
        input: the row as the step saw it, where that is another one than `row`.
        stream: the output of the source it came by, of a source with several streams.
        change: what had happened to the row (`{"op", "pos"}`), when it was one of a stream of changes.
        types: columns of `row` with their SQL types, in order; of a text that could not be read those it was read as.
        input_types: the same of `input`.
        masked: columns of `row` that are hidden in it; `input_masked` those of `input`.
        edited: a whole row to replay in place of `row`, as a person left it.
        plan_hash: hash of the plan of its run; `file_hash` of the workflow's file.
        plugin: plugin of the step that refused it, with `plugin_version` and `plugin_hash` (of its manifest).
        epoch: the epoch of its run that it belongs to.
        status: one of `LETTER_STATES`.
        attempt: 1 for a row of a normal run, one more with every replay that refused it.
        first: id of the letter its row was first put in, "" when that is this one; `parent` that of the one before it.
        replay: id of the replay that has claimed it, or had it last.
    """

    run_id: str
    step: str
    code: str
    cause: str
    position: Mapping[str, Any] | None = None
    row: Mapping[str, Any] | None = None
    raw: str | None = None
    source: str | None = None
    id: str = ""
    saved_at: float = 0.0
    input: Mapping[str, Any] | None = None
    stream: str = ""
    change: Mapping[str, Any] | None = None
    types: Sequence[Sequence[str]] = ()
    input_types: Sequence[Sequence[str]] = ()
    masked: Sequence[str] = ()
    input_masked: Sequence[str] = ()
    edited: Mapping[str, Any] | None = None
    plan_hash: str = ""
    file_hash: str = ""
    plugin: str = ""
    plugin_version: str = ""
    plugin_hash: str = ""
    epoch: int = 0
    status: str = "open"
    attempt: int = 1
    first: str = ""
    parent: str = ""
    replay: str = ""


@record
class LetterFilter:
    """Which dead letters of a workflow are meant; every field narrows it.

    Attributes:
        ids: only these; None: any.
        run_id: of one run.
        step: refused by one step.
        status: in one of these states; empty: in any.
        before: kept before this moment, seconds since 1970 UTC.
        replay: claimed by one replay.
    """

    ids: tuple[str, ...] | None = None
    run_id: str | None = None
    step: str | None = None
    status: tuple[str, ...] = ()
    before: float | None = None
    replay: str | None = None


@record
class Checkpoint:
    """One logged epoch: enough to go on after it, or to finish it after a crash.

    Attributes:
        epoch: its number, from 1 in each run.
        run_id: the run it belongs to.
        plan_hash: hash of what must not change while a run is unfinished.
        start: partition id to offset before the epoch (None value: from the beginning).
        stop: partition id to offset after it.
        states: node id to operator state after it (references to chunks included).
        counts: node id to counters, of all epochs of the run up to and including this one.
        final: the run's last epoch.
        run_started: when the run began, microseconds since 1970 UTC.
        done: every destination has committed it.
        saved_at: seconds since 1970 UTC.
        extra: what else the engine wants kept (lane, plan document), JSON-able.
    """

    epoch: int
    run_id: str
    plan_hash: str
    start: Mapping[str, Any]
    stop: Mapping[str, Any]
    states: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    final: bool = False
    run_started: int = 0
    done: bool = False
    saved_at: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


class StateStore(Protocol):
    """Keeps leases, checkpoints, operator state, dead letters and run records; atomic, durable, checksummed.

    One store serves all workflows of its file or database. After `acquire`, every write carries the
    lease's fence and raises `state.fenced` (exit 4) when a newer lease exists.
    """

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        """Lock the workflow and raise its fence.

        Raises:
            DataflareError: `run.busy` (exit 4), naming pid and host, while another process holds the lock.
        """
        ...

    def fence(self, workflow: str) -> int:
        """Return the newest fence of a workflow, 0 when it has never run."""
        ...

    def release(self) -> None:
        """Give the lock back; the fence stays."""
        ...

    def holder(self, workflow: str) -> str | None:
        """Return who runs the workflow now (`pid 1 on host`), None when nobody does."""
        ...

    def load(self, workflow: str) -> Checkpoint | None:
        """Return the newest checkpoint whose checksum holds, else the one before it; None when none was made.

        Raises:
            DataflareError: `state.damaged` when checkpoints exist and none is whole.
        """
        ...

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        """Return the checkpoints kept (the last 3), newest first."""
        ...

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        """Keep an epoch and its dead letters in one durable transaction, before any destination commits it."""
        ...

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        """Mark an epoch committed everywhere; `finished` also closes the run with its report."""
        ...

    def put(self, data: bytes) -> str:
        """Keep a chunk of operator state durably and return its reference (content-addressed)."""
        ...

    def get(self, ref: str) -> bytes:
        """Return a chunk.

        Raises:
            DataflareError: `state.damaged` when it is missing or its checksum fails.
        """
        ...

    def begin_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record that a run began."""
        ...

    def end_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record how a run ended."""
        ...

    def runs(self, workflow: str | None = None, limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Return run records, newest first."""
        ...

    def letters(self, workflow: str, run_id: str | None = None, limit: int | None = None) -> Sequence[DeadLetter]:
        """Return dead letters of committed epochs, oldest first."""
        ...

    def reset(self, workflow: str, stream: str | None = None) -> int:
        """Forget checkpoints (of one source or of all); returns how many. Dead letters and runs stay."""
        ...

    def set_offset(self, workflow: str, stream: str, offset: Mapping[str, Any]) -> None:
        """Set the offset the next run of a source starts from."""
        ...

    def get_value(self, scope: str, key: str) -> bytes | None:
        """Return a plugin's or the runtime's own value."""
        ...

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        """Keep a value durably under (scope, key); None removes it."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class DeadLetterStore(StateStore, Protocol):
    """A state store whose dead letters can be looked for, edited, purged and replayed. An offer: a store need not be one.

    Letters of epochs that are not committed everywhere are left out of everything here. Only claiming and releasing
    need the lease; an open letter may be edited or purged beside a run.

    `log` of a store of this kind honours `Checkpoint.extra["replayed"]`, `{"replay": id, "upto": letter id}`: in the
    transaction of the epoch the letters that the replay claimed, up to and with that one, become `replayed`, and those
    that a new letter names as its `parent` become `refused`.
    """

    def find_letters(self, workflow: str, where: LetterFilter = ..., *, after: str = "", limit: int | None = None) -> Sequence[DeadLetter]:
        """Return letters behind the one named `after`, oldest first, at most `limit`."""
        ...

    def count_letters(self, workflow: str, where: LetterFilter = ...) -> Sequence[Mapping[str, Any]]:
        """Count letters: `{"run_id", "source", "step", "code", "status", "count"}`, without reading their rows."""
        ...

    def edit_letter(self, workflow: str, id: str, edited: Mapping[str, Any] | None) -> bool:
        """Put a row beside the original one, None takes it away; False when no such letter is open."""
        ...

    def purge_letters(self, workflow: str, where: LetterFilter) -> int:
        """Empty letters that no unfinished replay may need: what they held of rows is gone, the rest stays; returns how many."""
        ...

    def claim_letters(self, workflow: str, replay: str, ids: Sequence[str]) -> int:
        """Give open letters to a replay; returns how many were open."""
        ...

    def release_letters(self, workflow: str, keep: str = "") -> int:
        """Make letters that were claimed and not replayed open again, but those of the replay `keep`; returns how many."""
        ...
