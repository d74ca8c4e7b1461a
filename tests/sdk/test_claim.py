"""A claimed folder belongs to the newest run, whatever older ones still do, at whatever moment they do it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import DataflareError
from dataflare_sdk import claim as claims
from dataflare_sdk.claim import claim, held, leave


def test_a_newer_run_takes_what_lies_there(tmp_path: Path) -> None:
    old = claim(tmp_path / "place", 3)
    (old / "row").write_text("1")
    new = claim(tmp_path / "place", 9)
    assert (new / "row").read_text() == "1"
    assert not old.exists()
    with pytest.raises(FileNotFoundError):
        (old / "row").rename(tmp_path / "seen")


def test_an_older_run_may_not_come_back(tmp_path: Path) -> None:
    claim(tmp_path / "place", 9)
    with pytest.raises(DataflareError) as error:
        claim(tmp_path / "place", 3)
    assert error.value.code == "state.fenced"
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["9"]


def test_what_goes_wrong_after_that_is_told_as_what_it_is(tmp_path: Path) -> None:
    old = claim(tmp_path / "place", 1)
    with pytest.raises(OSError, match="nowhere"), held(old):
        raise OSError("nowhere")
    claim(tmp_path / "place", 2)
    with pytest.raises(DataflareError) as error, held(old):
        (old / "row").write_text("1")
    assert error.value.code == "state.fenced"
    assert isinstance(error.value.__cause__, FileNotFoundError)


def test_leaving_removes_what_is_empty_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    one, two = claim(root / "one", 1), claim(root / "two", 1)
    leave(one, root)
    assert [p.name for p in root.iterdir()] == ["two"]
    leave(two, root)
    assert tmp_path.exists()
    assert not root.exists()


def test_claiming_again_with_the_same_fence_keeps_the_folder(tmp_path: Path) -> None:
    one = claim(tmp_path, 4)
    (one / "row").write_text("1")
    assert (claim(tmp_path, 4) / "row").read_text() == "1"


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 6), fences=st.permutations([5, 6, 7]))
def test_of_several_that_claim_at_once_the_newest_alone_holds_it(tmp_path_factory, first, fences) -> None:
    """Only the newest run's folder is left, with what lay there."""
    place = tmp_path_factory.mktemp("claims")
    (claim(place, 1) / "row").write_text("1")
    turns, got = threading.Barrier(len(fences)), {}

    def one(fence: int, delay: int) -> None:
        turns.wait()
        for _ in range(delay * 200):
            pass
        try:
            got[fence] = claim(place, fence)
        except DataflareError as error:
            assert error.code == "state.fenced"

    threads = [threading.Thread(target=one, args=(f, (i * first) % 7)) for i, f in enumerate(fences)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[7] == place / "7"
    assert [p.name for p in place.iterdir()] == ["7"]
    assert (got[7] / "row").read_text() == "1"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_one_that_is_stopped_while_it_looks_does_not_hold_it(tmp_path: Path, monkeypatch, moment: str) -> None:
    """The narrowest moments: its folder is there, and it has not looked yet, or has and saw nobody."""
    (claim(tmp_path, 1) / "row").write_text("1")
    look, newer = claims._older, []

    def slow(place: Path, fence: int) -> list[Path]:
        if fence != 5 or newer:
            return look(place, fence)
        found = look(place, fence) if moment == "after" else None
        newer.append(claim(place, 6))
        return look(place, fence) if found is None else found

    monkeypatch.setattr(claims, "_older", slow)

    def late() -> None:
        mine = claim(tmp_path, 5)
        with held(mine):
            (mine / "row").read_text()

    with pytest.raises(DataflareError) as error:
        late()
    assert error.value.code == "state.fenced"
    assert [p.name for p in tmp_path.iterdir()] == ["6"]
    assert (newer[0] / "row").read_text() == "1"
