"""`blackhole`: rows are counted and dropped, to measure everything before it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare_sdk import Batch, CopyTarget, Destination, DestinationTwin, NoConfig, Opened, RowRejection, ScratchPlace, Target
from dataflare_sdk.schema import literal


class BlackholeDestination(Destination[NoConfig]):
    """Keeps nothing, so that nothing can be lost or doubled in it; it remembers its epoch while it is open."""

    Config = NoConfig
    features = frozenset({"overwrite", "append", "upsert", "delete", "partial_update", "takes_all"})

    @classmethod
    def scratch(cls, config: NoConfig, place: ScratchPlace) -> DestinationTwin:  # noqa: ARG003
        """Return itself: it keeps nothing, so there is nothing to read back; only counts are compared."""
        return DestinationTwin({})

    def commit_scope(self) -> str:
        """Return a scope of its own: no two of them share anything."""
        return f"blackhole:{self.ctx.node}"

    def open(self, target: Target) -> Opened:
        """Return the epoch a file beside the state says, for a run that is resumed."""
        self._note = Path(self.ctx.staging_dir) / "epoch"
        self._run = target.run_id
        held = self._note.read_text(encoding="ascii").split() if self._note.exists() else []
        if len(held) == 2 and held[0] == target.run_id:
            return Opened(int(held[1]), target.run_id)
        return Opened()

    def write(self, batch: Batch) -> Sequence[RowRejection]:  # noqa: ARG002
        """Drop the rows."""
        return ()

    def copy(self) -> CopyTarget | None:
        """Let the bulk lane compute every column and write them to nowhere."""
        return CopyTarget((f"COPY ({{query}}) TO {literal(os.devnull)} (FORMAT csv, HEADER false)",), paths=(os.devnull,))

    def prepare(self, epoch: int, final: bool) -> None:
        """Nothing is prepared."""

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Remember the epoch."""
        self._note.parent.mkdir(parents=True, exist_ok=True)
        staged = self._note.with_name("epoch.new")
        staged.write_text(f"{self._run} {epoch}", encoding="ascii")
        staged.replace(self._note)

    def abort(self) -> None:
        """Nothing is to be dropped."""
