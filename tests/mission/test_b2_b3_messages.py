"""B2, B3: no Python object per row on the path; every type comes through as it went in; state outlives its version."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, step, told


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def calls_of(rows: int) -> int:
    """Count the Python functions that are called while so many rows pass in one batch."""
    import duckdb

    duckdb.sql(f"COPY (SELECT i, i % 7 AS k, 'n' || i AS s FROM range({rows}) t(i)) TO 'in.parquet'")
    steps = [
        step("f", "filter", where="k <> 3"),
        step("m", "map", set={"v": "i * 2", "s": "upper(s)"}),
        step("r", "route", routes={"a": "k < 3"}, **{"else": "b"}),
    ]
    out = {n: {"use": "blackhole", "from": f"r.{n}"} for n in ("a", "b")}
    document = flow(
        {"s": {"use": "parquet", "with": {"path": "in.parquet"}}},
        *steps,
        out=out,
        runtime={"lane": "streaming", "batch": {"rows": 100_000}},
    )
    counted: Counter[int] = Counter()
    threading.setprofile(lambda frame, event, arg: counted.update([threading.get_ident()]) if event == "call" else None)  # type: ignore[arg-type]
    try:
        dataflare.run(document, check=True)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return counted.total()


def test_the_path_calls_python_per_batch_and_not_per_row() -> None:
    calls_of(10)
    few, many = calls_of(100), calls_of(50_000)
    assert many < few * 1.5, (few, many)


ZONE = pa.timestamp("us", "Europe/Berlin")
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "small": (pa.int8(), [1, None, -128]),
    "big": (pa.uint64(), [2**64 - 1, None, 0]),
    "half": (pa.float32(), [1.5, None, float("inf")]),
    "double": (pa.float64(), [0.1, None, -0.0]),
    "flag": (pa.bool_(), [True, None, False]),
    "text": (pa.string(), ["ü😀\n", None, ""]),
    "bytes": (pa.binary(), [b"\x00\xff", None, b""]),
    "dec": (pa.decimal128(38, 10), [Decimal("1.0000000001"), None, Decimal("-9e20")]),
    "dec256": (pa.decimal256(60, 10), [Decimal("1234567890123456789012345678901234567890.5"), None, Decimal(0)]),
    "day": (pa.date32(), [0, None, 20_000]),
    "time": (pa.time64("us"), [1, None, 86_399_999_999]),
    "naive": (pa.timestamp("us"), [0, None, 1_700_000_000_123_456]),
    "zoned": (ZONE, [0, None, 1_700_000_000_123_456]),
    "fine": (pa.timestamp("ns"), [0, None, 1_700_000_000_123_456_789]),
    "word": (pa.dictionary(pa.int32(), pa.string()), ["a", None, "b"]),
    "list": (pa.list_(pa.int64()), [[1, None], None, []]),
    "nested": (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
        [{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": None}],
    ),
    "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], None, []]),
}


@pytest.mark.parametrize("name", list(VALUES))
def test_a_type_passes_steps_that_do_not_touch_it(name: str) -> None:
    kind, values = VALUES[name]
    table = pa.table({"i": [1, 2, 3], name: pa.array(values, kind)})
    with pa.OSFile("in.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    steps = [step("m", "map", set={"j": "i + 1"}), step("f", "filter", where="j > 0")]
    document = flow(
        {"s": {"use": "arrow", "with": {"path": "in.arrow"}}}, *steps, out={"out": {"use": "arrow", "with": {"path": "out.arrow"}}}
    )
    dataflare.run(document, check=True)
    found = pa.ipc.open_file("out.arrow").read_all()
    wanted = table[name].cast(pa.string()) if pa.types.is_dictionary(kind) and found[name].type == pa.string() else table[name]
    assert found[name].type == wanted.type
    assert found[name].combine_chunks().equals(wanted.combine_chunks()), (found[name], wanted)


def test_the_state_of_the_first_version_is_read(tmp_path: Path) -> None:
    """`golden/` holds what the first version that kept state left behind; what it printed of it then stands here."""
    (tmp_path / ".dataflare").mkdir()
    shutil.copy(Path(__file__).parent / "golden" / "state-2026-11-24.db", tmp_path / ".dataflare" / "state.db")
    saved(tmp_path, {**flow({"s": generate(3)}), "name": "old"})
    status = told(tmp_path, "status", "w.json")
    assert (status["status"], status["epoch"], status["run_id"]) == ("done", 1, "e438dd1ce1aa47789ca350f32f96a981")
    shown = told(tmp_path, "state", "show", "w.json")["streams"]["s"]
    assert (shown["offset"], shown["fence"]) == ({"done": True, "row": 39, "unit": "in.csv", "v": 1}, 1)
    letter = told(tmp_path, "dlq", "list", "w.json")["dead_letters"][0]
    assert (letter["raw"], letter["position"], letter["code"]) == ("x,7", {"file": "in.csv", "line": 8}, "data.bad-value")
    assert told(tmp_path, "run", "w.json")["rows"]["written"] == 3
    assert told(tmp_path, "status", "w.json")["run_id"] != status["run_id"]


def test_a_checkpoint_of_a_later_or_earlier_version_is_read(tmp_path: Path) -> None:
    """Keys that are missing get their defaults: what an older version wrote stays readable."""
    from dataflare.contracts import Checkpoint
    from dataflare.lifecycle import Runtime

    with Runtime(tmp_path) as runtime:
        store = runtime.host.build("state_store", "sqlite", {"path": str(tmp_path / "s.db")})
        store.acquire("w")
        wanted = Checkpoint(
            1,
            "r",
            "h",
            {"s": None},
            {"s": {"n": 2**60, "t": "ü"}},
            {"d": {"ref": store.put(b"\x00" * 1000)}},
            {"s": {"rows_in": 3}},
            final=True,
            run_started=5,
        )
        store.log(wanted)
        found = store.load("w")
        assert {k: getattr(found, k) for k in ("epoch", "run_id", "start", "stop", "states", "final", "run_started")} == {
            k: getattr(wanted, k) for k in ("epoch", "run_id", "start", "stop", "states", "final", "run_started")
        }
        assert store.get(found.states["d"]["ref"]) == b"\x00" * 1000
        store.close()
