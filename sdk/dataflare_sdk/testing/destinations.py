"""The conformance suite of destinations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.contracts import Target, WriteSpec
from dataflare.errors import DataflareError
from dataflare_sdk.claim import claim
from dataflare_sdk.messages import Batch
from dataflare_sdk.testing.context import FakeContext
from dataflare_sdk.testing.suite import Suite, check

FEATURES = frozenset(
    [
        "transactional",
        "two_phase",
        "idempotent",
        "atomic_swap",
        "overwrite",
        "append",
        "upsert",
        "delete",
        "partial_update",
        "ddl_add",
        "ddl_widen",
        "spills",
        "takes_all",
    ]
)
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
Rows = list[tuple[Any, ...]]


class DestinationSuite(Suite):
    """Holds a destination to its contract.

    Args:
        make: builds the destination from a context, always for the same place under the context's folder.
        read: returns the (id, name) rows that lie there now, sorted, or None when there is nothing; asked
            from outside, never through the destination.
        folder: scratch folder; each check works in one of its own.
    """

    def __init__(self, make: Callable[[Any], Any], *, read: Callable[[Path], Rows | None], folder: Path) -> None:
        self._make = make
        self._read = read
        self._folder = folder
        self._count = 0
        self._fence = 0

    def _place(self) -> Path:
        self._count += 1
        place = self._folder / f"place{self._count}"
        place.mkdir()
        return place

    def _open(
        self, place: Path, run: str = "run-1", mode: str | None = None, *, staging: Path | None = None, **more: Any
    ) -> tuple[Any, Any]:
        self._fence += 1
        context = FakeContext(place, "target")
        context.staging_dir = staging or claim(context.staging_dir.parent, self._fence) / "target"  # as the engine does it
        self._staging = Path(context.staging_dir)
        made = self._make(context)
        write = WriteSpec(mode=mode or self._mode(made), key=("id",) if mode == "upsert" else ())
        target = Target("workflow-1", "target", run, self._fence, SCHEMA, write, "hash", **more)
        return made, made.open(target)

    def _mode(self, made: Any) -> str:
        return next(m for m in ("append", "overwrite", "upsert") if m in made.features)

    def _has(self, feature: str) -> bool:
        made = self._make(FakeContext(self._place(), "target"))
        made.close()
        return feature in made.features

    @check
    def declares_known_features(self) -> None:
        """`features` is a set of known words, with at least one write mode."""
        made = self._make(FakeContext(self._place(), "target"))
        made.close()
        unknown = set(made.features) - FEATURES
        assert not unknown, f"unknown features {sorted(unknown)}"
        assert made.features & {"append", "overwrite", "upsert"}, "no write mode"

    @check
    def shows_nothing_before_commit(self) -> None:
        """Rows that are written or prepared are not visible."""
        place = self._place()
        made, _ = self._open(place)
        made.write(_batch([1, 2]))
        made.prepare(1, True)
        assert not self._read(place), "uncommitted rows are visible"
        made.abort()
        made.close()

    @check
    def shows_everything_after_commit(self) -> None:
        """After the final commit exactly the rows of all epochs are there."""
        place = self._place()
        made, _ = self._open(place)
        _epoch(made, 1, [1, 2], final=False)
        _epoch(made, 2, [3], final=True)
        made.close()
        assert self._read(place) == _rows([1, 2, 3])

    @check
    def forgets_what_was_aborted(self) -> None:
        """After `abort` only what is written afterwards arrives."""
        place = self._place()
        made, _ = self._open(place)
        made.write(_batch([1, 2]))
        made.abort()
        _epoch(made, 1, [3], final=True)
        made.close()
        assert self._read(place) == _rows([3])

    @check
    def remembers_its_epoch(self) -> None:
        """Opened again by the same run it names the last epoch it committed, with its offsets, and goes on from there."""
        place = self._place()
        made, opened = self._open(place)
        assert opened.epoch == 0, "a new target holds an epoch"
        _epoch(made, 1, [1], final=False)
        made.close()
        again, opened = self._open(place, resumed=True)
        assert (opened.epoch, opened.run_id) == (1, "run-1"), f"it says {opened}"
        assert dict(opened.offsets) == {"source": {"row": 1}}, f"beside epoch 1 stand the offsets {opened.offsets}"
        _epoch(again, 2, [2], final=True)
        again.close()
        assert self._read(place) == _rows([1, 2])

    @check
    def survives_a_crash_after_prepare(self) -> None:
        """Left alone after `prepare`, it either finishes the epoch or takes its rows again; never both, never half."""
        place = self._place()
        made, _ = self._open(place)
        made.write(_batch([1, 2]))
        made.prepare(1, True)
        again, opened = self._open(place, resumed=True)
        assert opened.epoch == 0, "an epoch that was not committed is there"
        if again.recover(1, True):
            again.commit(1, {}, True)
        else:
            _epoch(again, 1, [1, 2], final=True)
        again.close()
        assert self._read(place) == _rows([1, 2])
        made.close()

    @check
    def ends_without_a_row_after_a_crash(self) -> None:
        """A last epoch that brings no rows is finished after a crash like any other, with the rows of the epochs before."""
        place = self._place()
        made, _ = self._open(place)
        _epoch(made, 1, [1, 2], final=False)
        made.prepare(2, True)
        again, opened = self._open(place, resumed=True)
        assert opened.epoch == 1, f"it says {opened}"
        again.prepare(2, True)
        again.commit(2, {}, True)
        again.close()
        made.close()
        assert self._read(place) == _rows([1, 2])

    @check
    def commits_an_epoch_once(self) -> None:
        """An epoch that it holds already is not applied a second time: the commit does nothing, or is refused as fenced."""
        place = self._place()
        made, _ = self._open(place)
        _epoch(made, 1, [1, 2], final=False)
        try:
            _epoch(made, 1, [1, 2], final=False)
        except DataflareError as error:
            assert error.code == "state.fenced", f"it failed with {error.code}"
        made.close()
        again, opened = self._open(place, resumed=True)
        assert opened.epoch == 1, f"it says {opened}"
        _epoch(again, 2, [3], final=True)
        again.close()
        assert self._read(place) == _rows([1, 2, 3])

    @check
    def sweeps_what_a_crash_left(self) -> None:
        """Rows that a run prepared and never committed do not arrive with the rows of the next run."""
        place = self._place()
        left, _ = self._open(place, "run-1")
        left.write(_batch([1, 2]))
        left.prepare(1, True)
        made, opened = self._open(place, "run-2")
        assert opened.epoch == 0, f"a run that has just begun holds {opened}"
        _epoch(made, 1, [3], final=True)
        made.close()
        left.close()
        assert self._read(place) == _rows([3])

    @check
    def refuses_an_older_fence(self) -> None:
        """A target that was claimed with a higher fence cannot be opened with a lower one."""
        if not (self._has("transactional") or self._has("two_phase")):
            return
        place = self._place()
        made, _ = self._open(place)
        made.close()
        self._fence -= 2
        try:
            late, _ = self._open(place, resumed=True, staging=self._staging)
        except DataflareError as error:
            assert error.code == "state.fenced", f"it failed with {error.code}"
        else:
            late.close()
            raise AssertionError("it was opened with an older fence")
        finally:
            self._fence += 2

    @check
    def refuses_a_zombie(self) -> None:
        """Opened with a higher fence elsewhere, an older instance cannot commit any more."""
        if not (self._has("transactional") or self._has("two_phase")):
            return
        place = self._place()
        old, _ = self._open(place)
        old.write(_batch([1]))
        old.prepare(1, True)
        new, _ = self._open(place, resumed=True)
        try:
            old.commit(1, {}, True)
        except DataflareError as error:
            assert error.code == "state.fenced", f"it failed with {error.code}"
        else:
            raise AssertionError("the zombie's commit went through")
        finally:
            new.close()
            old.close()

    @check
    def leaves_its_heir_alone(self) -> None:
        """Whatever a stopped run still does when it wakes up, what its heir has written arrives, and nothing else does."""
        if not (self._has("transactional") or self._has("two_phase")):
            return
        for acts in ("write prepare", "abort", "close", "write prepare abort close"):
            place = self._place()
            old, _ = self._open(place)
            old.write(_batch([1, 2]))
            new, _ = self._open(place, resumed=True)
            new.write(_batch([1, 2]))
            for act in acts.split():
                _let(old, act)
            new.prepare(1, True)
            for act in acts.split():
                _let(old, act)
            new.commit(1, {}, True)
            new.close()
            assert self._read(place) == _rows([1, 2]), f"after the stopped run's {acts}"

    @check
    def swaps_an_overwrite_at_the_end(self) -> None:
        """Overwriting leaves the old rows in sight until the final commit, and none of them after it."""
        if not self._has("overwrite"):
            return
        place = self._place()
        first, _ = self._open(place, "run-1", "overwrite")
        _epoch(first, 1, [1, 2], final=True)
        first.close()
        second, _ = self._open(place, "run-2", "overwrite")
        _epoch(second, 1, [8], final=False)
        assert self._read(place) == _rows([1, 2]), "the old rows are gone before the new ones are complete"
        _epoch(second, 2, [9], final=True)
        second.close()
        assert self._read(place) == _rows([8, 9])

    @check
    def keeps_the_old_rows_of_a_failed_overwrite(self) -> None:
        """An overwrite that fails on the way leaves the old rows, also when the next one has begun."""
        if not self._has("overwrite"):
            return
        place = self._place()
        first, _ = self._open(place, "run-1", "overwrite")
        _epoch(first, 1, [1, 2], final=True)
        first.close()
        second, _ = self._open(place, "run-2", "overwrite")
        _epoch(second, 1, [8], final=False)
        second.write(_batch([9]))
        second.abort()
        second.close()
        assert self._read(place) == _rows([1, 2]), "after the failure the old rows are not there"
        third, _ = self._open(place, "run-3", "overwrite")
        assert self._read(place) == _rows([1, 2]), "the next run took the old rows away before it had new ones"
        third.abort()
        third.close()

    @check
    def appends_to_what_is_there(self) -> None:
        """Appending keeps the rows of earlier runs."""
        if not self._has("append"):
            return
        place = self._place()
        for run, ids in (("run-1", [1]), ("run-2", [2])):
            made, _ = self._open(place, run, "append")
            _epoch(made, 1, ids, final=True)
            made.close()
        assert self._read(place) == _rows([1, 2])

    @check
    def upserts_by_key(self) -> None:
        """Upserting replaces the row of a key, the last one within an epoch wins, and other rows stay."""
        if not self._has("upsert"):
            return
        place = self._place()
        made, _ = self._open(place, "run-1", "upsert")
        _epoch(made, 1, [1, 2], final=False)
        made.write(_batch([2], ["second"]))
        made.write(_batch([2, 3], ["last", "n3"]))
        made.prepare(2, True)
        made.commit(2, {}, True)
        made.close()
        assert self._read(place) == [(1, "n1"), (2, "last"), (3, "n3")]

    @check
    def writes_an_empty_result(self) -> None:
        """A run without rows still leaves a readable, empty target with its columns."""
        place = self._place()
        made, _ = self._open(place)
        made.prepare(1, True)
        made.commit(1, {}, True)
        made.close()
        assert self._read(place) == [], "there is no empty target"

    @check
    def names_its_commit_scope(self) -> None:
        """`commit_scope` is the same text for the same place."""
        place = self._place()
        one, two = (self._make(FakeContext(place, n)) for n in ("a", "b"))
        assert one.commit_scope() == two.commit_scope()
        one.close()
        two.close()


def _batch(ids: Sequence[int], names: Sequence[str] | None = None) -> Batch:
    names = names or [f"n{i}" for i in ids]
    return Batch("rows", pa.RecordBatch.from_arrays([pa.array(ids, pa.int64()), pa.array(names, pa.string())], schema=SCHEMA))


def _epoch(made: Any, epoch: int, ids: Sequence[int], *, final: bool) -> None:
    assert not made.write(_batch(ids)), "good rows were refused"
    made.prepare(epoch, final)
    made.commit(epoch, {"source": {"row": epoch}}, final)


def _rows(ids: Sequence[int]) -> Rows:
    return [(i, f"n{i}") for i in ids]


def _let(old: Any, act: str) -> None:
    """Let a run that was taken over do something; it may fail with any error."""
    arguments = {"write": (_batch([7, 8]),), "prepare": (1, True)}.get(act, ())
    with contextlib.suppress(Exception):
        getattr(old, act)(*arguments)
