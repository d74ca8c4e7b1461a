"""The record lane: JSON lines through Extism, with the ways out that are ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.isolation_wasm.arrow_types import SIMPLE, nullable
from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.loading import component, processed
from tests.plugins.isolation_wasm.server import Server, serving
from tests.plugins.isolation_wasm.test_host import Context

from dataflare_plugins.isolation_wasm import json_lines
from dataflare_sdk import DataflareError, RetriableError
from dataflare_sdk.testing import DestinationSuite, ProcessorSuite, SourceSuite

ALL = """\
capabilities:
  host: [log, metric]
  state: {max_bytes: 1KiB}
  net: [{host: 127.0.0.1, port: "*", private: true}]
  secrets: [{ref: token}]
limits: {memory: 32MiB, deadline: 500ms}
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Any]:
    guest = component(tmp_path, built(GUESTS / "recorder.c"), ctx=Context(tmp_path), lines=ALL)
    guest.output_schemas({"in": pa.schema([("s", pa.string())])})
    yield guest
    guest.close()


def says(guest: Any, *texts: str) -> list[str]:
    return processed(guest, pa.record_batch({"s": pa.array(texts, pa.string())})).to_pydict()["s"]


def refusal(guest: Any, text: str) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        says(guest, text)
    return caught.value


def test_many_records_a_call(recorder: Any) -> None:
    texts = [f"row {i} ü" for i in range(5000)]
    assert says(recorder, *texts) == texts
    assert recorder.program.started == 1


def test_it_conforms(tmp_path: Path) -> None:
    made = component(tmp_path, built(GUESTS / "recorder.c"), ctx=Context(tmp_path), lines=ALL)
    kind = type(made)
    made.close()
    table = pa.table(
        {"s": ["a", None, "b", "ü"], "n": pa.array([1, None, 3, 4], pa.int64()), "d": pa.array([1, 2, None, 4], pa.timestamp("us"))}
    )
    ProcessorSuite(lambda ctx: kind({}, ctx), inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


@pytest.mark.parametrize(("text", "reason"), [("T", "it was aborted"), ("S", "over its deadline")])
def test_a_trap_costs_the_plugin_object(recorder: Any, text: str, reason: str) -> None:
    error = refusal(recorder, text)
    assert error.code == "wasm.trapped"
    assert reason in str(error)
    assert recorder.program.started == 2
    assert says(recorder, "ok") == ["ok"]


def test_memory_ends(recorder: Any) -> None:
    assert refusal(recorder, "G").problems[0].message in ("memory ends", "'guest' trapped: it ran out of memory")


def test_what_the_guest_says_went_wrong(recorder: Any) -> None:
    error = refusal(recorder, "F")
    assert (error.code, error.problems[0].message) == ("wasm.refused", "bad  [31mrow")
    assert isinstance(refusal(recorder, "A"), RetriableError)
    assert recorder.program.started == 1


@pytest.mark.parametrize("text", ["N", "U", "I"])
def test_a_reply_that_is_none(recorder: Any, text: str) -> None:
    assert refusal(recorder, text).code == "wasm.bad-reply"


def test_log_and_metric_go_our_way(recorder: Any) -> None:
    says(recorder, "L{0} said")
    assert recorder.ctx.lines == ["L{0"]
    says(recorder, "M")
    assert recorder.ctx.metrics == {"seen": 1.5}


def test_what_a_host_function_fails_with_is_raised(recorder: Any) -> None:
    """Extism itself swallows it and reports success."""

    def full(key: str, value: bytes) -> None:
        raise PermissionError("no more state")

    says(recorder, "P")
    assert recorder.ctx.state_get("k") == b"kept"
    recorder.ctx.state_put = full
    with pytest.raises(PermissionError, match="no more state"):
        says(recorder, "P")


def test_http_is_ours_and_every_hop_is_judged(recorder: Any, server: Server) -> None:
    server.answers["/a"] = (200, {}, b"answer of s3cret-value")
    base = f"http://127.0.0.1:{server.port}"
    assert says(recorder, f"H{base}/a") == ["answer of ***"]
    assert server.asked[0].headers["X-Token"] == "s3cret-value"
    server.answers["/out"] = (302, {"Location": f"http://localhost:{server.port}/inside"}, b"")
    assert refusal(recorder, f"H{base}/out").code == "wasm.address-refused"
    assert [a.path for a in server.asked] == ["/a", "/out"]


def test_imports_need_their_capability(tmp_path: Path) -> None:
    for lines, missing in ((ALL.replace("log, ", ""), "'log'"), (ALL.replace("  net:", "  env: []\n  fs: []\n#"), "'net'")):
        with pytest.raises(DataflareError) as caught:
            component(tmp_path, built(GUESTS / "recorder.c"), lines=lines)
        assert caught.value.code == "wasm.undeclared-import"
        assert missing in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_simple_type_as_json_and_back(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([k for k in SIMPLE if not pa.types.is_duration(k)]))
    if pa.types.is_timestamp(kind):
        values = data.draw(st.lists(st.none() | st.integers(-(1 << 52), 1 << 52), max_size=8))
    else:
        values = data.draw(st.lists(nullable(kind), max_size=8))
    batch = pa.record_batch([pa.array(values, kind)], names=["c"])
    lines = json_lines.write(batch)
    assert len(lines.splitlines()) == len(values)
    assert json_lines.read(lines, batch.schema, 100).equals(batch)


def test_nested_values_as_json_and_back() -> None:
    schema = pa.schema(
        [
            ("l", pa.list_(pa.date32())),
            ("s", pa.struct([("a", pa.decimal128(9, 2)), ("b", pa.binary())])),
            ("m", pa.map_(pa.string(), pa.float64())),
        ]
    )
    rows = [{"l": ["2024-02-29", None], "s": {"a": "1.50", "b": "AAE="}, "m": [["k", 1.5], ["n", None]]}, {"l": None, "s": {"b": None}}, {}]
    made = json_lines.read("\n".join(json.dumps(r) for r in rows).encode(), schema, 10)
    assert json_lines.read(json_lines.write(made), schema, 10).equals(made)
    assert made["s"].to_pylist()[1] == {"a": None, "b": None}


@pytest.mark.parametrize("value", ['"1e-999999999"', '"0e-999999999"', '"1e999999999"', '"NaN"', "1e400", '"x"'])
def test_decimals_that_are_none(value: str) -> None:
    with pytest.raises(DataflareError) as caught:
        json_lines.read(f'{{"d": {value}}}\n'.encode(), pa.schema([("d", pa.decimal128(10, 2))]), 10)
    assert caught.value.code == "wasm.bad-reply"


def test_rows_out_are_bounded() -> None:
    with pytest.raises(DataflareError, match="at most 2"):
        json_lines.read(b"{}\n{}\n{}\n", pa.schema([("a", pa.int64())]), 2)


def test_a_source_conforms(tmp_path: Path) -> None:
    made = component(
        tmp_path, built(GUESTS / "record_ends.c"), kind="source", features="full, replayable", lines="capabilities: {state: {}}\n"
    )
    kind = type(made)
    SourceSuite(lambda ctx: kind({}, ctx), folder=tmp_path).assert_conforms()
    assert made.read(b"", 100, None).data["n"].to_pylist() == list(range(12))
    made.close()


def test_a_destination_conforms(tmp_path: Path) -> None:
    lines = "capabilities: {state: {max_bytes: 1MiB}}\n"
    made = component(tmp_path / "x", built(GUESTS / "record_ends.c", "-DDESTINATION"), kind="destination", features="append", lines=lines)
    kind = type(made)
    made.close()
    states: dict[str, dict[str, bytes]] = {}

    def make(ctx: Any) -> Any:
        ctx._state = states.setdefault(ctx.base_dir.name, {})
        return kind({}, ctx)

    def read(place: Path) -> list[tuple[Any, ...]]:
        return sorted((r["id"], r["name"]) for r in map(json.loads, states.get(place.name, {}).get("rows", b"").splitlines()))

    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()
