"""The conformance suites of state stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare.contracts import Checkpoint, DeadLetter, LetterFilter
from dataflare.errors import DataflareError
from dataflare_sdk.testing.suite import Suite, check


class StateStoreSuite(Suite):
    """Holds a state store to its contract.

    Args:
        make: opens the store that lies in a folder; called several times for the same folder.
        folder: scratch folder; each check works in one of its own.
    """

    def __init__(self, make: Callable[[Path], Any], *, folder: Path) -> None:
        self._make = make
        self._folder = folder
        self._count = 0

    def _place(self) -> Path:
        self._count += 1
        place = self._folder / f"state{self._count}"
        place.mkdir()
        return place

    def _open(self, place: Path | None = None) -> closing[Any]:
        """Open the store of a folder, by default of a new one; it is closed also when a demand is not met."""
        return closing(self._make(place or self._place()))

    @check
    def begins_empty(self) -> None:
        """A workflow that never ran has no checkpoint and no letters."""
        with self._open() as store:
            assert store.load("w") is None
            assert list(store.letters("w")) == []

    @check
    def keeps_the_workflows_id(self) -> None:
        """The workflow's id is made once and kept; the fence grows with every acquisition."""
        place = self._place()
        with self._open(place) as first:
            one = first.acquire("w")
            first.release()
        with self._open(place) as second:
            two = second.acquire("w")
        assert one.workflow_id == two.workflow_id
        assert two.fence > one.fence

    @check
    def refuses_a_second_run(self) -> None:
        """While a lease is held a second one is refused as `run.busy`, unless it takes over."""
        place = self._place()
        with self._open(place) as first, self._open(place) as second:
            first.acquire("w")
            _raises("run.busy", lambda: second.acquire("w"))
            second.acquire("w", take_over=True)

    @check
    def says_who_runs(self) -> None:
        """`holder` names the process that holds the lock, to others too, and nobody once it is given back."""
        place = self._place()
        with self._open(place) as first, self._open(place) as second:
            assert second.holder("w") is None, "somebody runs what never ran"
            first.acquire("w")
            assert f"pid {os.getpid()}" in (second.holder("w") or ""), f"it names {second.holder('w')!r}"
            first.release()
            assert second.holder("w") is None, "it runs after the lock was given back"

    @check
    def fences_a_zombie(self) -> None:
        """After a take-over the older lease can neither log an epoch nor say that one is done."""
        place = self._place()
        with self._open(place) as first, self._open(place) as second:
            first.acquire("w")
            first.log(_checkpoint(1))
            second.acquire("w", take_over=True)
            _raises("state.fenced", lambda: first.log(_checkpoint(2)))
            _raises("state.fenced", lambda: first.done(1))

    @check
    def gives_back_what_was_logged(self) -> None:
        """A logged epoch comes back as it was, also to another process, first as not done, then as done."""
        place = self._place()
        with self._open(place) as store, self._open(place) as other:
            store.acquire("w")
            store.log(_checkpoint(1))
            found = other.load("w")
            assert found is not None, "nothing came back"
            assert replace(found, saved_at=0.0) == _checkpoint(1), f"it gave {found}"
            store.done(1)
            again = other.load("w")
            assert again is not None
            assert again.done, "done was not kept"

    @check
    def keeps_a_short_history(self) -> None:
        """The newest checkpoint comes first, and at least the one before it is kept."""
        with self._open() as store:
            store.acquire("w")
            for epoch in range(1, 6):
                store.log(_checkpoint(epoch))
                store.done(epoch)
            epochs = [c.epoch for c in store.history("w")]
            assert epochs[:2] == [5, 4], f"it kept {epochs}"
            assert len(epochs) <= 3, f"it kept {epochs}"

    @check
    def shows_letters_of_committed_epochs(self) -> None:
        """Dead letters appear when their epoch is done, once."""
        with self._open() as store:
            store.acquire("w")
            store.log(_checkpoint(1), [_LETTER])
            assert list(store.letters("w")) == [], "a letter of an open epoch is shown"
            store.done(1)
            found = list(store.letters("w"))
            assert [(x.step, x.code, dict(x.row or {})) for x in found] == [("step", "data.bad-row", {"a": 1})], f"{found}"
            assert found[0].id, "it has no id"

    @check
    def keeps_the_letters_of_an_epoch_once(self) -> None:
        """An epoch that is logged again after a crash takes the place of the first: its letters are there once."""
        with self._open() as store:
            store.acquire("w")
            for _ in range(2):
                store.log(_checkpoint(1), [_LETTER])
            store.done(1)
            found = list(store.letters("w"))
            assert len(found) == 1, f"it kept {found}"

    @check
    def keeps_chunks_by_content(self) -> None:
        """`get` gives what `put` took, and the same content has the same reference."""
        with self._open() as store:
            store.acquire("w")
            one, same, other = store.put(b"abc"), store.put(b"abc"), store.put(b"abd")
            assert one == same != other
            assert store.get(one) == b"abc"

    @check
    def keeps_values(self) -> None:
        """Values are kept under scope and key, and None removes them."""
        place = self._place()
        with self._open(place) as store:
            store.acquire("w")
            store.put_value("scope", "key", b"1")
            store.put_value("other", "key", b"2")
        with self._open(place) as store:
            assert store.get_value("scope", "key") == b"1"
            store.acquire("w")
            store.put_value("scope", "key", None)
            assert store.get_value("scope", "key") is None
            assert store.get_value("other", "key") == b"2"

    @check
    def forgets_on_reset(self) -> None:
        """After `reset` a workflow begins anew."""
        with self._open() as store:
            store.acquire("w")
            store.log(_checkpoint(1))
            store.done(1)
            store.reset("w")
            assert store.load("w") is None


class LetterStoreSuite(Suite):
    """Holds a state store to what `DeadLetterStore` adds.

    Args:
        make: opens the store that lies in a folder.
        folder: scratch folder; each check works in one of its own.
    """

    def __init__(self, make: Callable[[Path], Any], *, folder: Path) -> None:
        self._make = make
        self._folder = folder
        self._count = 0

    @contextmanager
    def _five(self) -> Iterator[Any]:
        """Open a new store with five letters of one committed epoch, of the steps a, b, a, b, a."""
        self._count += 1
        place = self._folder / f"letters{self._count}"
        place.mkdir()
        with closing(self._make(place)) as store:
            store.acquire("w")
            made = [replace(_LETTER, step="ab"[i % 2], row={"n": i}, source="s") for i in range(5)]
            store.log(_checkpoint(1), made)
            store.done(1)
            yield store

    @check
    def finds_letters_page_by_page(self) -> None:
        """`find_letters` gives what the filter asks for, oldest first, behind `after` and at most `limit`."""
        with self._five() as store:
            every = store.find_letters("w")
            assert [x.row["n"] for x in every] == [0, 1, 2, 3, 4], f"{every}"
            page = store.find_letters("w", LetterFilter(step="a"), after=every[0].id, limit=1)
            assert [x.row["n"] for x in page] == [2], f"{page}"
            some = store.find_letters("w", LetterFilter(ids=(every[3].id, every[1].id, "999")))
            assert [x.row["n"] for x in some] == [1, 3], f"{some}"
            assert not store.find_letters("w", LetterFilter(ids=())), "no id is not any id"
            assert not store.find_letters("w", LetterFilter(before=1.0)), "they are not that old"
            assert {x.epoch for x in every} == {1}, "they do not say of which epoch they are"

    @check
    def counts_letters(self) -> None:
        """`count_letters` counts by run, source, step, code and status."""
        with self._five() as store:
            found = {(g["run_id"], g["source"], g["step"], g["code"], g["status"]): g["count"] for g in store.count_letters("w")}
            assert found == {
                ("run-1", "s", "a", "data.bad-row", "open"): 3,
                ("run-1", "s", "b", "data.bad-row", "open"): 2,
            }, f"{found}"

    @check
    def edits_open_letters(self) -> None:
        """An edited row stands beside the original one, and goes; a letter that is claimed is not edited."""
        with self._five() as store:
            one, two = (x.id for x in store.find_letters("w", limit=2))
            assert store.edit_letter("w", one, {"n": 9})
            found = store.find_letters("w", LetterFilter(ids=(one,)))[0]
            assert (found.row, found.edited) == ({"n": 0}, {"n": 9}), f"{found}"
            assert store.edit_letter("w", one, None)
            assert store.find_letters("w", LetterFilter(ids=(one,)))[0].edited is None
            store.claim_letters("w", "r", [two])
            assert not store.edit_letter("w", two, {"n": 9}), "a claimed letter was edited"
            assert not store.edit_letter("w", "999", {}), "there is no such letter"

    @check
    def empties_what_is_purged(self) -> None:
        """What is purged is still there, without its row; what a replay has claimed is not purged."""
        with self._five() as store:
            ids = [x.id for x in store.find_letters("w")]
            store.edit_letter("w", ids[0], {"n": 9})
            store.claim_letters("w", "r", ids[1:2])
            assert store.purge_letters("w", LetterFilter(ids=tuple(ids[:2]))) == 1
            gone, claimed = store.find_letters("w", LetterFilter(ids=tuple(ids[:2])))
            assert (gone.status, gone.row, gone.edited, gone.step) == ("purged", None, None, "a"), f"{gone}"
            assert claimed.row == {"n": 1}, "a claimed letter was emptied"

    @check
    def claims_a_letter_once(self) -> None:
        """A letter is claimed by one replay; released it is open again, but for those of the one to keep."""
        with self._five() as store:
            ids = [x.id for x in store.find_letters("w")]
            assert store.claim_letters("w", "one", ids[:3]) == 3
            assert store.claim_letters("w", "two", ids[2:]) == 2, "a letter was claimed twice"
            assert [x.id for x in store.find_letters("w", LetterFilter(replay="one"))] == ids[:3]
            assert store.release_letters("w", "two") == 3
            states = [x.status for x in store.find_letters("w")]
            assert states == ["open"] * 3 + ["replaying"] * 2, f"{states}"

    @check
    def marks_letters_with_the_epoch(self) -> None:
        """An epoch marks what it replayed, and what was refused again, as it is logged; once, however often that happens."""
        with self._five() as store:
            ids = [x.id for x in store.find_letters("w")]
            store.claim_letters("w", "r", ids[:4])
            again = replace(_LETTER, run_id="run-2", parent=ids[1], first=ids[1], attempt=2)
            epoch = replace(_checkpoint(1), run_id="run-2", extra={"replayed": {"replay": "r", "upto": ids[2]}})
            for _ in range(2):
                store.log(epoch, [again])
            states = [x.status for x in store.find_letters("w")]
            assert states == ["replayed", "refused", "replayed", "replaying", "open"], f"{states}"
            assert store.purge_letters("w", LetterFilter(ids=(ids[0],))) == 0, "an unfinished replay may need it"
            store.done(1)
            newest = store.find_letters("w", after=ids[4])
            assert [(x.attempt, x.parent, x.status) for x in newest] == [(2, ids[1], "open")], f"{newest}"
            assert store.purge_letters("w", LetterFilter(ids=(ids[0],))) == 1

    @check
    def opens_letters_on_reset(self) -> None:
        """After `reset` nothing is claimed, and what a replay had logged and not committed everywhere is open again."""
        with self._five() as store:
            ids = [x.id for x in store.find_letters("w")]
            store.claim_letters("w", "r", ids[:2])
            again = replace(_LETTER, run_id="run-2", parent=ids[0], attempt=2)
            store.log(replace(_checkpoint(1), run_id="run-2", extra={"replayed": {"replay": "r", "upto": ids[0]}}), [again])
            store.reset("w")
            found = store.find_letters("w")
            assert [x.status for x in found] == ["open"] * 5, f"{found}"


_LETTER = DeadLetter("run-1", "step", "data.bad-row", "why", {"row": 3}, {"a": 1})


def _checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        run_id="run-1",
        plan_hash="hash",
        start={"s": {"row": (epoch - 1) * 10}},
        stop={"s": {"row": epoch * 10}},
        states={"n": {"v": 1, "refs": ["chunk:0"], "seen": epoch}},
        counts={"n": {"rows_in": epoch}},
        final=epoch % 2 == 1,
        run_started=1_767_225_600_000_000,
        extra={"lane": "stream", "ended": ["s"]},
    )


def _raises(code: str, act: Callable[[], object]) -> None:
    try:
        act()
    except DataflareError as error:
        assert error.code == code, f"it failed with {error.code}, not {code}"
    else:
        raise AssertionError(f"it went through, where {code} was due")
