"""The header of Rust, through the host: its memory, what it hands in and gives, its configuration, errors and calls of the host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, built, example, rustc
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
    with pytest.raises(DataflareError, match="these rows"):
        calls(guest, "e")  # it has no reason, and not the one of an error before
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
    again.close()


def test_state_conforms(tmp_path: Path) -> None:
    table = pa.table({"s": ["s", None, "-b", "s", "s"], "b": [True, None, False, True, False]})
    make = made(tmp_path, built(GUESTS / "host.rs"), features="", lines=EVERYTHING % LOOPBACK)
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


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
