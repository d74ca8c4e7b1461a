"""Guests that hang, crash, bloat and lie: the host goes on, and says what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.loading import component, processed

from dataflare_plugins.isolation_wasm.memory import Memory
from dataflare_sdk import DataflareError, RetriableError

LIMITS = "limits: {memory: 16MiB, deadline: 200ms}\n"


def rows(*numbers: int | None) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers, pa.int64()), "s": pa.array([None if n is None else f"row {n}" for n in numbers])})


def unruly(folder: Path, deed: str, **more: Any) -> Any:
    guest = component(folder, built(GUESTS / "unruly.c"), {"do": deed}, features="rowwise, one_to_one", lines=LIMITS, **more)
    guest.output_schemas({"in": rows(1).schema})
    return guest


def refusal(guest: Any, data: pa.RecordBatch) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        processed(guest, data)
    return caught.value


@pytest.mark.parametrize(
    ("deed", "reason"), [("spin", "over its deadline"), ("trap", "unreachable"), ("deep", "out of stack")], ids=["spin", "trap", "deep"]
)
def test_a_trap_costs_the_instance_and_nothing_else(tmp_path: Path, deed: str, reason: str) -> None:
    guest = unruly(tmp_path, deed)
    assert guest.program.started == 1
    error = refusal(guest, rows(1, 13, 2))
    assert (error.code, error.exit_code) == ("wasm.trapped", 1)
    assert reason in str(error)
    assert guest.program.started == 2, "a batch goes again to a fresh instance, once"
    good = rows(*range(14, 60), None)
    assert processed(guest, good).equals(good)
    assert guest.program.started == 3
    guest.close()


def test_parts_of_a_batch_that_trapped_twice_are_tried_once(tmp_path: Path) -> None:
    guest = unruly(tmp_path, "trap")
    refusal(guest, rows(1, 13, 2, 3))
    assert guest.program.started == 2
    refusal(guest, rows(1, 13))
    refusal(guest, rows(13))
    assert guest.program.started == 4, "one instance for each part"
    guest.close()


def test_memory_ends_at_the_limit(tmp_path: Path) -> None:
    guest = unruly(tmp_path, "bomb")
    assert refusal(guest, rows(13)).code == "wasm.refused"
    assert guest._instances.guest.memory.size <= 16 << 20
    assert processed(guest, rows(1)).equals(rows(1))
    huge = pa.record_batch({"n": pa.array([1] * 100_000, pa.int64()), "s": pa.array(["x" * 300] * 100_000)})
    error = refusal(guest, huge)
    assert error.code == "wasm.trapped"
    assert "no memory for" in str(error)
    assert processed(guest, rows(2)).equals(rows(2))
    guest.close()


@pytest.mark.parametrize("lie", ["outside", "length", "offsets", "middle", "short", "buffers", "children", "negative", "huge_rows"])
def test_a_lie_is_found_before_it_is_used(tmp_path: Path, lie: str) -> None:
    guest = unruly(tmp_path, lie)
    error = refusal(guest, rows(1, 13, 2, 4, 5))
    assert (error.code, error.exit_code) == ("wasm.bad-reply", 1)
    assert processed(guest, rows(1, 2)).equals(rows(1, 2))
    assert guest.program.started == 2, "who lied is not asked again"
    guest.close()


@pytest.mark.parametrize("lie", ["middle", "negative"])
def test_a_lie_about_text_beyond_ascii_is_found_too(tmp_path: Path, lie: str) -> None:
    guest = unruly(tmp_path, lie)
    data = rows(1, 13, 2, 4, 5)
    data = data.set_column(1, "s", pa.array(["ä", "öö", "ü", None, "ß"]))
    assert refusal(guest, data).code == "wasm.bad-reply"
    guest.close()


@pytest.mark.parametrize(
    ("deed", "code", "exit_code", "again"),
    [("refuse", "wasm.refused", 1, False), ("later", "wasm.try-later", 4, True), ("fatal", "wasm.failed", 4, False)],
)
def test_what_a_guest_says_went_wrong_decides_what_is_done(tmp_path: Path, deed: str, code: str, exit_code: int, again: bool) -> None:
    guest = unruly(tmp_path, deed)
    error = refusal(guest, rows(1, 13))
    assert (error.code, error.exit_code, isinstance(error, RetriableError)) == (code, exit_code, again)
    assert error.problems[0].message.isprintable(), "no control characters reach a terminal"
    assert processed(guest, rows(1)).equals(rows(1))
    assert guest.program.started == 1, "a refusal is no trap"
    guest.close()


def test_a_wrong_configuration_is_told(tmp_path: Path) -> None:
    guest = component(tmp_path, built(GUESTS / "unruly.c"), {"do": "dance"}, lines=LIMITS)
    with pytest.raises(DataflareError) as caught:
        guest.output_schemas({"in": rows(1).schema})
    assert (caught.value.code, caught.value.exit_code) == ("wasm.bad-config", 3)
    assert "deeds" in str(caught.value)
    guest.close()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, -7, 1 << 30, 3], pa.int32()),
        pa.array([0, 2 << 32 | 9, 1 << 32], pa.int64()),
        pa.array(["a", "bcd", "ef"], pa.large_string()),
    ],
    ids=["int32", "int64", "large_string"],
)
def test_numbers_are_no_offsets_because_the_host_gave_them(tmp_path: Path, column: pa.Array) -> None:
    guest = component(tmp_path, built(GUESTS / "borrowed.c"), lines=LIMITS)
    data = pa.record_batch({"n": column})
    guest.output_schemas({"in": data.schema})
    assert refusal(guest, data).code == "wasm.bad-reply"
    guest.close()


def test_offsets_of_text_may_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = component(tmp_path, built(GUESTS / "borrowed.c"), lines=LIMITS)
    known: list[bool] = []
    real = Memory.cuts
    monkeypatch.setattr(Memory, "cuts", lambda *given: known.append(real(*given)) or known[-1])
    data = pa.record_batch({"n": pa.array(["b", None, "cde", ""])})
    guest.output_schemas({"in": data.schema})
    assert processed(guest, data).column("t").to_pylist() == ["a", "", "aaa", ""]
    assert known == [True], "they are looked at once more"
    guest.close()
