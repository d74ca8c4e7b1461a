"""Base class for destinations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare.contracts import Opened, RowRejection, Target, WriteSpec
from dataflare.records import record
from dataflare_sdk.component import C, Component
from dataflare_sdk.handover import Handover
from dataflare_sdk.messages import Batch
from dataflare_sdk.scratch import DestinationTwin, ScratchPlace


@record
class CopyTarget:
    """How a bulk statement writes a whole result into a destination's staging.

    Attributes:
        statements: SQL to run in order; `{query}` in one of them is replaced by the SELECT.
        setup: statements run once on the connection before (ATTACH …).
        paths: files and folders the statements write, for the connection's lock-down.
    """

    statements: tuple[str, ...]
    setup: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Destination(Component[C], ABC):
    """A destination connector; see `dataflare.contracts.Destination` for the meaning of every method."""

    def dataset(self) -> tuple[str, str] | None:
        """Return namespace and name of what is written, as lineage systems know it; see `Source.dataset`."""
        return None

    def check(self) -> None:
        """Prove that the destination can be reached; by default nothing is checked."""

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Return what it cannot store or do; by default it takes everything."""
        return ()

    def guarantee(self, write: WriteSpec) -> str:  # noqa: ARG002
        """Return the best it can give: `exactly_once`, `effectively_once` or `at_least_once`."""
        return "exactly_once" if self.features & {"transactional", "two_phase"} else "at_least_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Return what `validate` should tell the person (a single file starts again after a kill …)."""
        return ()

    @abstractmethod
    def commit_scope(self) -> str:
        """Return the canonical name of the resource its transactions span, prefixed by the plugin's name."""

    @abstractmethod
    def open(self, target: Target) -> Opened:
        """Claim the target and say which epoch of this run it already holds."""

    @abstractmethod
    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch and return the rows it refuses, by index."""

    def copy(self) -> CopyTarget | None:
        """Return how the bulk lane writes into its staging, after `open`; None: it takes batches only.

        After the statements ran the engine calls `copied`, then `prepare` and `commit` as for batches.
        """
        return None

    def copies(self) -> bool:
        """Whether the bulk lane may write here; asked by the planner before `open`."""
        return type(self).copy is not Destination.copy

    def copied(self, rows: int) -> None:
        """The bulk statements are done and wrote `rows` rows."""

    def takes_over(self, format: str, write: WriteSpec) -> bool:  # noqa: ARG002
        """Whether it takes what a source hands over as it is; asked by the planner before `open`."""
        return False

    def take_over(self, handovers: Sequence[Handover]) -> int | None:
        """Take everything the source hands over into its staging, after `open`; returns rows, None: the bytes do not fit.

        The engine then calls `prepare` and `commit` as for batches.
        """
        raise NotImplementedError(f"{type(self).__name__} takes nothing over: {len(handovers)}")

    @abstractmethod
    def prepare(self, epoch: int, final: bool) -> None:
        """All of the epoch's rows are here."""

    @abstractmethod
    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Make the epoch durable and visible."""

    def recover(self, epoch: int, final: bool) -> bool:  # noqa: ARG002
        """After a crash: True when the logged epoch lies prepared. A transactional one keeps nothing."""
        return False

    @abstractmethod
    def abort(self) -> None:
        """Drop what was written or prepared since the last commit."""

    # -- looking back (prove, plan --diff) ---------------------------------------------------------------

    @classmethod
    def scratch(cls, config: C, place: ScratchPlace) -> DestinationTwin | None:  # noqa: ARG003
        """Return a scratch system to write to instead of the one `config` names; None: there is none of this kind.

        Raises:
            DataflareError: what it needs is not installed (`plugin.missing-extra` and the like).
        """
        return None

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader | None:  # noqa: ARG002
        """Return the committed rows the target holds now, in the columns and types of `schema`; None: it cannot tell.

        Read only: not after `open`, no claim, no fence, nothing is made or locked longer than the read. A target
        that is not there is empty. A column the target lacks is NULL; `_deleted_at` (where deletes are soft) is
        given when `schema` asks for it. What the target stores in another type is cast back.

        Args:
            schema: columns and their types, as the workflow writes them.
            keys: only rows whose values in these columns are among these rows; None: all. It may return more.
        """
        return None

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Return what a run would change of the target's shape before it writes, one statement or sentence each.

        Read only, as `read_back`. `CREATE TABLE …`, `ALTER TABLE … ADD COLUMN …`, `widen … to …`; empty when the
        target has the shape already. A run that would be refused for its shape is an error here too.
        """
        return ()
