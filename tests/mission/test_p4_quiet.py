"""P4: which partitions of a source rest, by a clock that is moved by hand."""

from __future__ import annotations

from typing import Any

from dataflare_plugins.engine.running import quiet
from dataflare_plugins.engine.running.quiet import Quiet
from dataflare_sdk.event_time import FOREVER


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state(made: Quiet, keys: list[str], ended: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    return {m.partition: "ended" if m.time == FOREVER else m.idle // 1_000_000 for m in made.watermarks(keys, ended)}


def test_a_partition_rests_when_it_was_listened_to_in_vain() -> None:
    clock = Clock()
    made = Quiet(clock, 30.0)
    made.opened("a", object())
    clock.now += 29
    assert state(made, ["a", "b"]) == {"a": 0, "b": 0}
    clock.now += 1
    assert state(made, ["a", "b"]) == {"a": 30, "b": 0}, "one that is not read yet holds back"
    made.heard("a", "a")
    assert state(made, ["a", "b"], {"b"}) == {"a": 0, "b": "ended"}


def test_parts_of_a_reader_rest_one_by_one_and_new_ones_are_found() -> None:
    class Reader:
        partitions = ("0", "1")

    clock, reader = Clock(), Reader()
    made = Quiet(clock, 10.0)
    made.opened("t", reader)
    clock.now += 8
    made.heard("t", "t:0")
    clock.now += 8
    assert state(made, ["t"]) == {"t:0": 0, "t:1": 16}
    reader.partitions = ("0", "1", "2")
    assert state(made, ["t"]) == {"t:0": 0, "t:1": 16, "t:2": 0}


def test_a_part_without_a_name_is_its_partition() -> None:
    class Reader:
        partitions = ("",)

    clock = Clock()
    made = Quiet(clock, 10.0)
    made.opened("t", Reader())
    clock.now += 16
    made.heard("t", "t")
    assert state(made, ["t"]) == {"t": 0}


def test_time_in_which_nobody_listened_does_not_count(monkeypatch: Any) -> None:
    clock, moment = Clock(), [0.0]
    monkeypatch.setattr(quiet.time, "monotonic", lambda: moment[0])
    made = Quiet(clock, 10.0)
    made.opened("a", object())
    made.reading()
    made.read()
    clock.now, moment[0] = clock.now + 60, 60.0  # held back by a full inbox
    made.reading()
    made.read()
    assert state(made, ["a"]) == {"a": 0}
