"""The header of Rust, through the host: its memory, what it hands in and gives, its configuration, errors and calls of the host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import EXAMPLES, GUESTS, PDK, RUST_FLAGS, built, example, rustc
from tests.plugins.isolation_wasm.loading import bound, component, processed
from tests.plugins.isolation_wasm.server import Server, serving
from tests.plugins.isolation_wasm.test_conformance import made
from tests.plugins.isolation_wasm.test_host import EVERYTHING, LOOPBACK, Context

from dataflare_sdk import Batch, DataflareError, RetriableError
from dataflare_sdk.testing import ProcessorSuite

pytestmark = pytest.mark.skipif(rustc() is None, reason="there is no Rust for WebAssembly here")
SCHEMA = pa.schema([("s", pa.string()), ("b", pa.bool_())])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def caller(folder: Path, config: dict | None = None, *flags: str) -> Any:
    wasm = built(GUESTS / "host.rs", *flags)
    guest = component(folder, wasm, config, ctx=Context(folder), features="", lines=EVERYTHING % LOOPBACK)
    guest.output_schemas({"in": SCHEMA})
    return guest


def outputs(guest: Any, *texts: str | None, long: Any = None) -> dict[str, pa.RecordBatch]:
    data = pa.record_batch([list(texts), long or [False] * len(texts)], schema=SCHEMA)
    return {name: batch.data for name, batch in guest.process(Batch("in", data), "in")}


def calls(guest: Any, *texts: str) -> list[tuple[str, int]]:
    return [(r["s"], r["code"]) for r in outputs(guest, *texts)[""].rename_columns({"said": "s", "s": "was"}).to_pylist()]


@pytest.mark.parametrize("flags", [(), ("-Copt-level=0",)], ids=["fast", "unoptimised"])
def test_log_metric_clock_and_state(flags: tuple[str, ...], tmp_path: Path) -> None:
    guest = caller(tmp_path, None, *flags)
    found = calls(guest, "lhello", "mseen", "c", "g", "pvälue", "g", "n20")
    assert guest.ctx.lines == ["hello"]
    assert guest.ctx.metrics == {"seen": 2.5}
    assert abs(found[2][1] / 1e6 - guest.ctx.clock()) < 600
    assert (found[3], found[5]) == ((None, -1), ("välue", 6))
    assert found[6] == (None, 2995), "a logarithm is no line of the log"
    guest.close()


def test_a_request(tmp_path: Path, server: Server) -> None:
    guest = caller(tmp_path)
    request = json.dumps({"method": "POST", "url": f"http://127.0.0.1:{server.port}/a", "body": "hi"})
    server.answers["/note"] = (404, {"X-Note": "none"}, b"")
    missing = json.dumps({"url": f"http://127.0.0.1:{server.port}/note"})
    assert calls(guest, "h" + request, "t" + request, "t" + missing) == [("hi", 200), (None, 200), ("none", 404)]
    with pytest.raises(DataflareError) as caught:
        calls(guest, "h" + json.dumps({"url": "http://acme.example/"}))
    assert caught.value.code == "wasm.address-refused", "the host's reason, not the guest's"
    guest.close()


def test_many_columns_and_those_that_are_not_described(tmp_path: Path) -> None:
    guest = caller(tmp_path)
    texts = [None if i % 5 == 0 else "é" * (i % 7) for i in range(1001)]
    found = outputs(guest, *("-" + t if t is not None else None for t in texts), long=[i % 3 == 0 for i in range(1001)])
    assert found[""]["again"].to_pylist() == ["-" + t if t is not None else None for t in texts]
    assert found["more"].schema == pa.schema([("lengths", pa.list_(pa.uint16())), ("long", pa.bool_())])
    assert found["more"].to_pylist() == [
        {"lengths": [] if t is None else [1 + len(t.encode())], "long": None if t is None else i % 3 == 0} for i, t in enumerate(texts)
    ]
    for wrong in ((pa.int64(), pa.bool_()), (pa.binary(), pa.bool_()), (pa.string(), pa.int8())):
        with pytest.raises(DataflareError, match="s is VARCHAR, and b is BOOLEAN"):
            guest.output_schemas({"in": pa.schema(list(zip("sb", wrong, strict=True)))})
    guest.close()


def test_what_a_column_says_of_itself(tmp_path: Path) -> None:
    """Values are there by the width of their type, and by no other."""
    guest = component(tmp_path, built(GUESTS / "columns.rs"))
    numbers = {
        pa.int8(): "c", pa.uint8(): "C", pa.int16(): "s", pa.uint16(): "S", pa.int32(): "i", pa.uint32(): "I", pa.int64(): "l", pa.uint64(): "L",
        pa.date32(): "tdD", pa.date64(): "tdm", pa.time32("s"): "tts", pa.time32("ms"): "ttm", pa.time64("us"): "ttu", pa.time64("ns"): "ttn",
        pa.timestamp("us", "UTC"): "tsu:UTC", pa.timestamp("s"): "tss:", pa.duration("ms"): "tDm",
    }  # fmt: skip
    values = {t: pa.array([5, None, 86_400_000 if t == pa.date64() else 7]).cast(pa.int64()).cast(_number(t)).view(t) for t in numbers}
    columns: dict[str, pa.Array] = {str(t): a for t, a in values.items()}
    columns["decimal"] = pa.array([5, None, 7]).cast(pa.decimal128(20))
    columns["wide"] = pa.array([5, None, 7]).cast(pa.decimal256(50))
    columns |= {"bits": pa.array([True, None, False]), "blob": pa.array([b"a", None, b"\xff"]), "text": pa.array(["é", "", "b"])}
    columns["flags"] = pa.array([True, False, True])
    columns["list"] = pa.array([[1], None, [2, 3]], pa.list_(pa.int16()))
    columns["struct"] = pa.array([{"x": 1}, None, {"x": 2}], pa.struct({"x": pa.int8()}))
    data = pa.record_batch(columns)
    bound(guest, data)
    found = {r["column"]: r["said"] for r in processed(guest, data).to_pylist()}
    for t, form in numbers.items():  # what lies under a NULL is anything
        width, last = t.bit_width // 8, 86_400_000 if t == pa.date64() else 7
        assert found[str(t)].startswith(f"{form} 3 {width}: [5, "), found[str(t)]
        assert found[str(t)].endswith(f", {last}] nulls 1 Some(8)")
    assert found["decimal"].startswith("d:20,0 3 16: [5, ")
    assert found["wide"] == "d:50,0,256 3 nulls 1 Some(8)"
    assert found["bits"] == "b 3 nulls 1 Some(8)"
    assert found["flags"] == "b 3 nulls 0 Some(8)"
    assert found["blob"] == "z 3 nulls 1 Some(8) ends [0, 1, 1, 2] bytes [Some([97]), None, Some([255])] [97, 255] true"
    assert found["text"] == "u 3 nulls 0 None ends [0, 2, 2, 3] bytes [Some([195, 169]), Some([]), Some([98])] [195, 169, 98] true"
    assert found["list"] == "+l 3 nulls 1 Some(8) ends [0, 1, 1, 3]"
    assert found["item"] == "s 3 2: [1, 2, 3] nulls 0 None"
    assert found["struct"] == "+s 3 nulls 1 Some(8)"
    assert found["x"].startswith("c 3 1: [1, ")
    guest.close()


def _number(kind: pa.DataType) -> pa.DataType:
    """Return the type of whole numbers that lies under a type."""
    return kind if pa.types.is_integer(kind) else pa.int32() if kind.bit_width == 32 else pa.int64()


def test_the_configuration_is_read_whole(tmp_path: Path) -> None:
    tricky = {
        "a": {"näme": "no", "half": [1, {"yes": '}\\"'}]},
        'q"': "näme",
        "näme": 'ß\n\r\b\f\x01"\\/😀\t€',
        "nothing": None,
        "half": 5e-1,
        "yes": True,
    }
    guest = caller(tmp_path, tricky)
    assert guest.output_schemas({"in": SCHEMA})[""].names == ["s", "b", tricky["näme"], "code", "again"]
    guest.close()
    for wrong, why in (
        ({**tricky, "näme": 1}, "'näme' must be a text"),
        ({**tricky, "half": "x"}, "'half' must be a number"),
        ({"yes": 1}, "true"),
    ):
        with pytest.raises(DataflareError, match=why) as caught:
            caller(tmp_path, {"half": 0.5, **wrong})
        assert caught.value.code == "wasm.bad-config"


def test_errors_have_their_codes(tmp_path: Path) -> None:
    guest = caller(tmp_path)
    codes = []
    for text in ("e", "e0", "e1", "e2"):
        with pytest.raises(DataflareError) as caught:
            calls(guest, text)
        codes.append((caught.value.code, isinstance(caught.value, RetriableError)))
    assert codes == [("wasm.refused", False), ("wasm.try-later", True), ("wasm.bad-config", False), ("wasm.failed", False)]
    for many in (1 << 28, 1 << 29, 0xFFFFFFFF):
        with pytest.raises(DataflareError, match="no memory") as caught:
            calls(guest, f"o{many}")
        assert caught.value.code == "wasm.failed"
    assert calls(guest, "o1000") == [(None, 1000)]
    with pytest.raises(RetriableError, match="trapped"):
        calls(guest, "x")
    guest.close()


def test_state_is_snapshot_and_restored(tmp_path: Path) -> None:
    kept: list[bytes] = []
    guest = caller(tmp_path)
    calls(guest, *"------s")
    state = guest.snapshot(lambda data: str(kept.append(data)))
    assert kept == [(7).to_bytes(8, "little")]
    guest.close()
    again = caller(tmp_path)
    again.restore(state, lambda _: kept[0])
    assert calls(again, "-", "s") == [(None, 0), (None, 8)]
    with pytest.raises(DataflareError, match="none of mine"):
        again.restore(state, lambda _: b"odd")
    with pytest.raises(DataflareError, match="these rows"):
        calls(again, "e")  # it has no reason, and not the one of the error before
    again.close()


def test_state_conforms(tmp_path: Path) -> None:
    table = pa.table({"s": ["s", None, "-b", "s", "s"], "b": [True, None, False, True, False]})
    make = made(tmp_path, built(GUESTS / "host.rs"), features="", lines=EVERYTHING % LOOPBACK)
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


def test_the_header_as_a_crate_of_its_own(tmp_path: Path) -> None:
    compiler = rustc()
    assert compiler is not None
    source = (EXAMPLES / "wasm-rust-words" / "words.rs").read_text()
    (tmp_path / "words.rs").write_text(source.replace("mod dataflare;\n", ""))
    flags = [flag for flag in RUST_FLAGS if "crate-type" not in flag]
    for more in (
        ["--crate-type=rlib", "--crate-name=dataflare", str(PDK / "rust" / "dataflare.rs")],
        ["--crate-type=cdylib", "--extern=dataflare=libdataflare.rlib", "words.rs"],
    ):
        done = subprocess.run([compiler, *flags, *more], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    guest = component(tmp_path, (tmp_path / "words.wasm").read_bytes(), {"column": "s"})
    data = pa.record_batch({"s": ["a b", None]})
    bound(guest, data)
    assert processed(guest, data).to_pylist() == [{"s": "a", "place": 1}, {"s": "b", "place": 2}]
    guest.close()


def test_memory_that_is_kept_staged_and_allocated(tmp_path: Path) -> None:
    """Everything lies where nothing else is, what was forgotten is used again, and the limit is never met."""
    guest = component(tmp_path, built(GUESTS / "arena.rs"), lines="limits: {memory: 10MiB}\n")
    data = pa.record_batch({"n": range(3)})
    assert bound(guest, data).names == ["n", "held"]
    for i in range(80):
        assert processed(guest, data)["held"].to_pylist() == [(i % 8 + 1) * 3 * 170_000] * 3
    guest.close()


def test_words_of_many_rows(tmp_path: Path) -> None:
    guest = component(tmp_path, example("wasm-rust-words")[1], {"column": "text", "separator": ", "})
    texts = [None if i % 7 == 0 else ", ".join("wört"[: k % 5] for k in range(i % 6)) for i in range(20_000)]
    data = pa.record_batch({"n": range(20_000), "text": texts})
    assert bound(guest, data).names == ["n", "text", "place"]
    assert [tuple(r.values()) for r in processed(guest, data).to_pylist()] == [
        (n, word, place) for n, text in enumerate(texts) if text is not None for place, word in enumerate(text.split(", "), 1)
    ]
    with pytest.raises(DataflareError, match="only VARCHAR can be split"):
        bound(guest, pa.record_batch({"text": [1.5]}))
    guest.close()
    for config, why in (({}, "which text"), ({"column": "text", "separator": ""}, "one character or more")):
        with pytest.raises(DataflareError, match=why):
            bound(component(tmp_path, example("wasm-rust-words")[1], config), data)
