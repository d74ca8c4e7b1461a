"""A run that writes nothing: what every destination would be given goes to a file, for `plan --diff`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.running.transient import TransientState
from dataflare_sdk import Batch, Checkpoint, Opened, RowRejection, Target
from dataflare_sdk.upsert import split_null_keys


class RehearsedDestination:
    """Stands in for a destination: keeps its rows in `<node>.arrow`, an Arrow stream, and refuses those without a key."""

    features: frozenset[str] = frozenset()

    def __init__(self, folder: Path, node: str) -> None:
        self._path = folder / f"{node}.arrow"
        self._writer: Any = None

    def open(self, target: Target) -> Opened:
        """Open the file."""
        self._key = target.write.key if target.write.mode == "upsert" else ()
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._file, target.schema)
        return Opened()

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep a batch."""
        data, refused = split_null_keys(batch.data, self._key)
        self._writer.write_batch(data)
        return refused

    def prepare(self, epoch: int, final: bool) -> None:
        """Nothing is to be prepared."""

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Nothing is to be committed."""

    def recover(self, epoch: int, final: bool) -> bool:  # noqa: ARG002
        """Nothing was prepared."""
        return False

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()


class RehearsedState(TransientState):
    """Knows where a finished run left the sources, and keeps nothing of this one.

    Args:
        store: the workflow's own, that is only read.
    """

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store

    def load(self, workflow: str) -> Checkpoint | None:
        """Return the checkpoint of a finished run."""
        newest: Checkpoint | None = self._store.load(workflow)
        return newest if newest is not None and newest.final and newest.done else None

    def get_value(self, scope: str, key: str) -> bytes | None:
        """Return what the workflow's own store holds."""
        found: bytes | None = self._store.get_value(scope, key)
        return found

    def close(self) -> None:
        """Close the workflow's own store."""
        self._store.close()
