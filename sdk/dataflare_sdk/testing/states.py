"""The conformance suite of state stores."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare.contracts import Checkpoint, DeadLetter
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
