"""The real state store, and for each check of `StateStoreSuite` one that breaks exactly this demand."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dataflare.contracts import Checkpoint, DeadLetter, Lease
from dataflare.errors import DataflareError
from dataflare_plugins.state_sqlite.store import StateSqlite
from dataflare_sdk.state_sql import UNUSABLE


class Store(StateSqlite):
    """The reference."""

    fails: ClassVar[str | None] = None


class BeginsWithSomething(Store):
    """Gives an empty checkpoint where there is none."""

    fails = "begins-empty"
    was_reset = False

    def load(self, workflow: str) -> Checkpoint | None:
        return super().load(workflow) or (None if self.was_reset else Checkpoint(0, "", "", {}, {}))

    def reset(self, workflow: str, stream: str | None = None) -> int:
        self.was_reset = True
        return super().reset(workflow, stream)


class NewIdEveryTime(Store):
    fails = "keeps-the-workflows-id"

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        self._lease = replace(super().acquire(workflow, take_over), workflow_id=secrets.token_hex(8))
        return self._lease


class FenceBeginsAnew(Store):
    """Gives the fence back with the lock; only one that was taken over goes on."""

    fails = "keeps-the-workflows-id"

    def release(self) -> None:
        lease = self._lease
        super().release()
        if lease is not None and self.fence(lease.workflow) == lease.fence:
            self._db.execute("UPDATE workflows SET fence = fence - 1 WHERE name=?", (lease.workflow,))


class LetsAnybodyIn(Store):
    fails = "refuses-a-second-run"

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        return super().acquire(workflow, True)


class BusyInOtherWords(Store):
    """Refuses a second run with a code that nobody waits for."""

    fails = "refuses-a-second-run"

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        try:
            return super().acquire(workflow, take_over)
        except DataflareError as error:
            raise UNUSABLE.error("the state file is locked") from error


class NobodyEverRuns(Store):
    fails = "says-who-runs"

    def holder(self, workflow: str) -> str | None:
        return None


class LetsAZombieLog(Store):
    fails = "fences-a-zombie"

    def _check_fence(self, execute: Any) -> None:
        pass


class LetsAZombieSayDone(Store):
    """Guards `log` alone."""

    fails = "fences-a-zombie"

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        self._check_fence = lambda execute: None  # type: ignore[method-assign]
        super().done(epoch, finished=finished)


class LosesOperatorState(Store):
    """Keeps the offsets of an epoch and not the state of its operators."""

    fails = "gives-back-what-was-logged"

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        super().log(replace(checkpoint, states={}), letters)


class NeverDone(Store):
    """Shows every checkpoint as not done; its letters know better."""

    fails = "gives-back-what-was-logged"

    def load(self, workflow: str) -> Checkpoint | None:
        found = super().load(workflow)
        return None if found is None else replace(found, done=False)


class KeepsOnlyTheNewest(Store):
    fails = "keeps-a-short-history"

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        return super().history(workflow)[:1]


class OldestFirst(Store):
    fails = "keeps-a-short-history"

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        return list(reversed(super().history(workflow)))


class ShowsLettersAtOnce(Store):
    """Shows the letters of an epoch that no destination has committed."""

    fails = "shows-letters-of-committed-epochs"

    def letters(self, workflow: str, run_id: str | None = None, limit: int | None = None) -> Sequence[DeadLetter]:
        rows = self._query("SELECT id, run_id, step, code, body FROM letters WHERE workflow=? ORDER BY id", workflow)
        return [DeadLetter(run, step, code, **json.loads(body), id=str(n)) for n, run, step, code, body in rows]


class KeepsLettersTwice(Store):
    """An epoch that is logged again after a crash brings its letters again."""

    fails = "keeps-the-letters-of-an-epoch-once"

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        rows = self._query("SELECT run_id, step, code, body FROM letters WHERE epoch=? ORDER BY id", checkpoint.epoch)
        super().log(checkpoint, [*(DeadLetter(run, step, code, **json.loads(body)) for run, step, code, body in rows), *letters])


class NewReferenceEveryTime(Store):
    fails = "keeps-chunks-by-content"

    def put(self, data: bytes) -> str:
        return f"{super().put(data)}:{secrets.token_hex(4)}"

    def get(self, ref: str) -> bytes:
        return super().get(ref.rpartition(":")[0])


class ShortReferences(Store):
    """Two contents may have one reference."""

    fails = "keeps-chunks-by-content"

    def put(self, data: bytes) -> str:
        return super().put(data[:2])


class OneScopeForAll(Store):
    fails = "keeps-values"

    def get_value(self, scope: str, key: str) -> bytes | None:
        return super().get_value("", key)

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        super().put_value("", key, value)


class RemembersAfterReset(Store):
    fails = "forgets-on-reset"

    def reset(self, workflow: str, stream: str | None = None) -> int:
        return 0


REFERENCES: Sequence[type[Store]] = (Store,)


def twins() -> Iterator[type[Any]]:
    """Yield every broken twin of this file."""
    yield from (c for c in globals().values() if isinstance(c, type) and issubclass(c, Store) and c.fails)
