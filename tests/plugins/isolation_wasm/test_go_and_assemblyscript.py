"""The headers of Go and AssemblyScript, through the host: what they hand in and give, memory, errors, calls of the host."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, built_assemblyscript, built_go, example
from tests.plugins.isolation_wasm.loading import bound, component, processed
from tests.plugins.isolation_wasm.test_conformance import made
from tests.plugins.isolation_wasm.test_host import Context as WithLog

from dataflare_sdk import DataflareError, RetriableError
from dataflare_sdk.testing import ProcessorSuite

GO = pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")
ASC = pytest.mark.skipif(shutil.which("asc") is None, reason="there is no AssemblyScript here")
HOST = "capabilities:\n  host: [%s]\nlimits: {memory: %sMiB}\n"
CODES = [("wasm.refused", False), ("wasm.try-later", True), ("wasm.bad-config", False), ("wasm.failed", False), ("wasm.refused", False)]


class Context(WithLog):
    """Keeps what a guest writes to its standard output and error, too."""

    def debug(self, form: str, *arguments: str) -> None:
        self.lines.append("debug: " + form.format(*arguments))


@GO
def test_a_processor_in_go(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "name": ["Ada Lovelace", None, "Zoë", ""]})
    make = made(tmp_path, example("wasm-go-initials")[1], features="rowwise, one_to_one", lines=HOST % ("wasi", 256))
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


@ASC
def test_a_processor_in_assemblyscript(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "amount": [1.5, None, -2.0, 0.0]})
    make = made(tmp_path, example("wasm-as-double")[1], features="rowwise, one_to_one")
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


def go(folder: Path) -> Any:
    ctx = Context(folder)
    guest = component(
        folder, built_go(GUESTS / "go"), {"a": "ß"}, ctx=ctx, features="rowwise, one_to_one", lines=HOST % ("wasi, log, clock", 256)
    )
    bound(guest, texts(""))
    return guest


def texts(*rows: str | None) -> pa.RecordBatch:
    return pa.record_batch(
        {"s": pa.array(rows, pa.string()), "n": pa.array([None if i % 3 == 1 else 7 * i for i in range(len(rows))], pa.int64())}
    )


def codes(guest: Any, *rows: str | None) -> list[int]:
    return processed(guest, texts(*rows))["code"].to_pylist()


@GO
def test_calls_of_the_host_in_go(tmp_path: Path) -> None:
    guest = go(tmp_path)
    found = processed(guest, texts("lhello", None, "i", "c", "oto the log"))
    assert guest.ctx.lines == ["hello", "debug: to the log"]
    assert found["s"].to_pylist() == ["", None, '{"a": "\\u00df"}', "", ""], "the configuration was kept"
    assert abs(found["code"][3].as_py() / 1e6 - guest.ctx.clock()) < 600
    guest.close()


@GO
def test_columns_and_memory_in_go(tmp_path: Path) -> None:
    guest = go(tmp_path)
    for rows in range(1, 100):
        assert codes(guest, *["v"] * rows) == [-1 if i % 3 == 1 else 7 * i for i in range(rows)]
        assert codes(guest, *["a"] * rows) == [0] * rows, "what is handed in is aligned to 64 bytes"
    for _ in range(5):
        codes(guest, "k100")
    assert codes(guest, "g")[0] < 50, "what was made for a batch goes with it"
    with pytest.raises(DataflareError, match="n is BIGINT") as caught:
        bound(guest, pa.record_batch({"s": ["a"], "n": [1.5]}))
    assert caught.value.code == "wasm.bad-config"
    guest.close()


@GO
def test_errors_in_go(tmp_path: Path) -> None:
    guest = go(tmp_path)
    for how in "fw":
        found = []
        for code in (1, 2, 3, 4, 9):
            with pytest.raises(DataflareError, match="told") as caught:
                codes(guest, f"{how}{code}")
            found.append((caught.value.code, isinstance(caught.value, RetriableError)))
        assert found == CODES, how
    with pytest.raises(DataflareError, match="row 1 is odd") as caught:
        codes(guest, "v", "e")
    assert caught.value.code == "wasm.refused"
    with pytest.raises(DataflareError) as caught:
        codes(guest, "p")
    assert caught.value.code == "wasm.trapped"
    assert "debug: a panic is a trap" in "".join(guest.ctx.lines)
    with pytest.raises(DataflareError) as caught:
        codes(guest, "k300")
    assert caught.value.code == "wasm.trapped", "beyond its memory"
    assert codes(guest, "v") == [0], "the next batch goes to a fresh instance"
    guest.close()


@ASC
def test_what_assemblyscript_can(tmp_path: Path) -> None:
    ctx = Context(tmp_path)
    wasm = built_assemblyscript(GUESTS / "calls.ts")
    guest = component(tmp_path, wasm, {"a": 1}, ctx=ctx, features="rowwise, one_to_one", lines=HOST % ("log, clock", 16))

    def batch(*numbers: int | None) -> pa.RecordBatch:
        return pa.record_batch({"n": pa.array(numbers, pa.int64()), "s": pa.array([f"té{i}" for i in range(len(numbers))], pa.string())})

    bound(guest, batch())
    found = processed(guest, batch(1, None, 2, 3))["n"].to_pylist()
    assert (found[0], found[1], found[3]) == (len('{"a": 1}'), None, 0)
    assert abs(found[2] / 1e6 - ctx.clock()) < 600
    assert ctx.lines == ["té3"]
    for rows in range(1, 100):
        assert processed(guest, batch(*[4] * rows))["n"].to_pylist() == [0] * rows, "what is handed in is aligned to 64 bytes"
    for _ in range(20):  # emptied with every call: all of them together are beyond the limit
        assert processed(guest, batch(*[0] * 100_000)).num_rows == 100_000
    told = []
    for code in (1, 2, 3, 4, 9):
        with pytest.raises(DataflareError, match="told") as caught:
            processed(guest, batch(10 + code))
        told.append((caught.value.code, isinstance(caught.value, RetriableError)))
    assert told == CODES
    for trap in (batch(5), batch(*[0] * 1_000_000)):  # unreachable, and beyond its memory
        with pytest.raises(DataflareError) as caught:
            processed(guest, trap)
        assert caught.value.code == "wasm.trapped"
    with pytest.raises(DataflareError, match="n is BIGINT, and s is VARCHAR"):
        bound(guest, pa.record_batch({"n": ["x"], "s": ["x"]}))
    guest.close()
    wrong = component(tmp_path, wasm, {"wrong": 1}, lines=HOST % ("log, clock", 16))
    with pytest.raises(DataflareError, match="this is ẅrong") as caught:
        bound(wrong, batch())
    assert caught.value.code == "wasm.bad-config"
