"""A state store that forgets: for previews, which leave nothing behind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_sdk import Checkpoint, DeadLetter, Lease


class TransientState:
    """Keeps operator state in memory while a preview runs; everything else is dropped."""

    def __init__(self) -> None:
        self._chunks: dict[str, bytes] = {}

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:  # noqa: ARG002
        """Return a lease nobody can contest."""
        return Lease(workflow, "preview", 1)

    def load(self, workflow: str) -> Checkpoint | None:  # noqa: ARG002
        """Return None: a preview begins anew."""
        return None

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        """Drop an epoch."""

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        """Drop an epoch's end."""

    def put(self, data: bytes) -> str:
        """Keep a chunk."""
        ref = "chunk:" + hashlib.sha256(data).hexdigest()
        self._chunks[ref] = data
        return ref

    def get(self, ref: str) -> bytes:
        """Return a chunk."""
        return self._chunks[ref]

    def get_value(self, scope: str, key: str) -> bytes | None:  # noqa: ARG002
        """Return None: nothing is kept."""
        return None

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        """Drop a value."""

    def begin_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Drop a record."""

    def end_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Drop a record."""

    def close(self) -> None:
        """Nothing is held open."""
