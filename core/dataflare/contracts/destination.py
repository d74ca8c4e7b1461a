"""Destinations: where rows arrive, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dataflare.contracts.batch import Batch, RowRejection
from dataflare.records import field, record


@record
class WriteSpec:
    """The `write:` and `schema:` blocks of a destination, defaults filled in.

    Attributes:
        mode: `overwrite`, `append` or `upsert`.
        key: key columns (required by upsert).
        deletes: `hard`, `soft` or `ignore`.
        pos_column: column that orders changes of one key; an older one never overwrites a newer one.
        on_add: a new column: `evolve`, `ignore` or `fail`.
        on_widen: a wider type: `evolve` or `fail`.
        on_break: anything else: `fail` or `dead_letter`.
    """

    mode: str = "overwrite"
    key: tuple[str, ...] = ()
    deletes: str = "hard"
    pos_column: str | None = None
    on_add: str = "evolve"
    on_widen: str = "evolve"
    on_break: str = "fail"


@record
class Target:
    """Who is about to write, what, and with which right.

    Attributes:
        workflow_id: the workflow's durable id.
        node: id of the destination node.
        run_id: the run; an overwrite of the same run id is resumed, of another begun anew.
        fence: the state store's fence for this opening; the destination refuses any lower one for ever.
        schema: Arrow schema of the rows.
        write: how to write them.
        plan_hash: hash of what must not change between a crash and its resumption.
        resumed: True when this run continues an unfinished one.
        changes: batches carry `changes`: rows are created, updated and deleted by key, in the order they come.
    """

    workflow_id: str
    node: str
    run_id: str
    fence: int
    schema: Any
    write: WriteSpec = field(default_factory=WriteSpec)
    plan_hash: str = ""
    resumed: bool = False
    changes: bool = False


@record
class Opened:
    """What a destination durably holds of this workflow and node.

    Attributes:
        epoch: last epoch of this run it has committed, 0 when none.
        run_id: the run that committed it, or None.
        offsets: source offsets that stand beside it, partition id to offset.
    """

    epoch: int = 0
    run_id: str | None = None
    offsets: Mapping[str, Any] = field(default_factory=dict)


class Destination(Protocol):
    """Takes rows and makes them durable epoch by epoch.

    The engine's calls, in order: `open`, then for each epoch any number of `write`, one `prepare`, and
    after `state.log` one `commit`; `abort` instead drops what was written since the last commit.

    Attributes:
        features: of `transactional two_phase idempotent atomic_swap overwrite append upsert delete
            partial_update ddl_add ddl_widen`; `spills` wants a share of the memory like a scan;
            `takes_all` never refuses a row. One with `delete`
            and `partial_update` takes batches with `changes` in mode upsert; for all others the engine writes
            changes down as rows.
    """

    features: frozenset[str]

    def check(self) -> None:
        """Prove that the destination can be reached and written. Not called offline."""
        ...

    def accepts(self, schema: Any, write: WriteSpec) -> Sequence[str]:
        """Return what it cannot store or do, one sentence each; empty when all is well. Offline."""
        ...

    def commit_scope(self) -> str:
        """Return the canonical name of the resource its transactions span (one file, one database)."""
        ...

    def open(self, target: Target) -> Opened:
        """Claim the target: raise its fence, sweep orphans, say what it holds.

        Raises:
            DataflareError: `state.fenced` when the target was claimed with a higher fence.
        """
        ...

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch, all of it or nothing, and return the rows it refuses (by `index`)."""
        ...

    def prepare(self, epoch: int, final: bool) -> None:
        """All of the epoch's rows are here. A two-phase destination makes them durable, not visible."""
        ...

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Destination] = ()) -> None:
        """Make the epoch durable and visible, in one transaction with the checkpoint row.

        Args:
            epoch: the epoch; a destination that already holds it does nothing.
            offsets: partition id to offset after the epoch.
            final: the run is complete with this epoch (swap what was staged for overwrite).
            together: other destinations of the same commit scope, to commit in the same transaction.
        """
        ...

    def recover(self, epoch: int, final: bool) -> bool:
        """After a crash: True when everything of the logged `epoch` lies prepared, so `commit` may follow."""
        ...

    def abort(self) -> None:
        """Drop what was written or prepared since the last commit."""
        ...

    def close(self) -> None:
        """Release everything, on every path; uncommitted rows are not visible."""
        ...

    def read_back(self, schema: Any, keys: Any = None) -> Any:
        """Return the committed rows it holds in the columns of `schema`, as an Arrow reader; None: it cannot tell.

        Read only and without `open`: no claim, nothing is made. What is not there is empty, what it stores in another
        type is cast back. With `keys` (an Arrow table) only rows with these values are wanted; more may come.
        """
        ...

    def ddl(self, schema: Any, write: WriteSpec) -> Sequence[str]:
        """Return what a run would change of the target's shape before it writes, one statement each. Read only."""
        ...
