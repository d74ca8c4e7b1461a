"""The SDK's suites, through the proxies: nobody can tell them from components in Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, built, example
from tests.plugins.isolation_wasm.loading import component, factory
from tests.plugins.isolation_wasm.server import Server, serving

from dataflare_sdk import Batch, DataflareError
from dataflare_sdk.testing import DestinationSuite, ProcessorSuite, SourceSuite

ORDERS = pa.table(
    {"id": pa.array(range(9)), "price": [1.5, None, 2.0, 0.0, -1.0, 3.25, None, 8.0, 1e9], "quantity": [2, 3, None, 0, 7, 1, None, 10, 2]}
)


def made(folder: Path, wasm: bytes, config: dict | None = None, **more: Any) -> Callable[[Any], Any]:
    kind = factory(folder, wasm, **more)
    return lambda ctx: kind(kind.configure(dict(config or {})), ctx)


def test_a_processor_in_c(tmp_path: Path) -> None:
    make = made(tmp_path, example("wasm-c-total")[1], features="rowwise, one_to_one")
    ProcessorSuite(make, inputs={"in": ORDERS}, folder=tmp_path, ordered=True).assert_conforms()


def test_a_processor_in_zig(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "text": ["a", None, "Ünder", ""]})
    make = made(tmp_path, example("wasm-zig-shout")[1], features="rowwise, one_to_one")
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


def test_a_processor_with_state(tmp_path: Path) -> None:
    table = pa.table({"n": [5, None, 7, 1, 2, 90], "s": list("abcdef")})
    ProcessorSuite(
        made(tmp_path, built(GUESTS / "running.c"), features=""), inputs={"in": table}, folder=tmp_path, ordered=True
    ).assert_conforms()


def test_a_processor_that_drops_and_repeats_rows(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2, None, 4, 5, 6, 7], "s": list("abcdefg")})
    ProcessorSuite(made(tmp_path, built(GUESTS / "rows.c")), inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


def test_rows_that_are_kept_and_taken(tmp_path: Path) -> None:
    guest = component(tmp_path, built(GUESTS / "rows.c"))
    data = pa.record_batch({"n": pa.array([1, 2, None, 4]), "s": ["a", "b", "c", "d"]})
    schemas = guest.output_schemas({"in": data.schema})
    assert {k: v.names for k, v in schemas.items()} == {"": ["n", "s"], "odd": ["n", "s", "times"]}
    out = {name: batch.data.to_pylist() for name, batch in guest.process(Batch("in", data), "in")}
    assert out[""] == [{"n": 2, "s": "b"}, {"n": 4, "s": "d"}]
    assert [(r["n"], r["s"], r["times"]) for r in out["odd"]] == [(1, "a", 0), (1, "a", 1), (None, "c", 0), (None, "c", 1)]
    with pytest.raises(DataflareError) as caught:
        list(guest.process(Batch("in", pa.record_batch({"n": pa.array([99]), "s": ["x"]})), "in"))
    assert caught.value.code == "wasm.bad-reply", "an index beyond the rows is refused"
    guest.close()


def test_a_source_in_c(tmp_path: Path) -> None:
    wasm = example("wasm-c-numbers")[1]
    make = made(tmp_path, wasm, {"first": -3, "last": 20}, kind="source", features="full, replayable")
    SourceSuite(make, folder=tmp_path).assert_conforms()


def test_a_source_asked_for_nothing_and_one_without_rows(tmp_path: Path) -> None:
    wasm = example("wasm-c-numbers")[1]
    source = component(tmp_path, wasm, {"first": 5, "last": 5}, kind="source", features="full, replayable")
    piece = source.read(b"", 10, None)
    assert (piece.data.num_rows, piece.done) == (1, True)
    assert source.read(piece.state, 10, None).data.num_rows == 0
    with pytest.raises(DataflareError, match="none of mine"):
        source.read(b"odd", 10, None)
    source.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


NET = """\
capabilities:
  net: [{host: "${config.host}", port: "${config.port}", private: true}]
  secrets: [{ref: post_token}]
"""


def test_a_destination_in_c(tmp_path: Path, server: Server) -> None:
    wasm = example("wasm-c-post")[1]
    kind = factory(tmp_path / "plugins", wasm, kind="destination", features="append", lines=NET)

    def make(ctx: Any) -> Any:
        ctx._secrets["post_token"] = "t"
        place = ctx.base_dir.name
        return kind({"scheme": "http", "host": "127.0.0.1", "port": server.port, "path": f"/{place}"}, ctx)

    def read(place: Path) -> list[tuple[Any, ...]]:
        bodies = b"".join(a.body for a in server.asked if a.path == f"/{place.name}")
        return sorted((r["id"], r["name"]) for r in map(json.loads, bodies.splitlines()))

    suite_folder = tmp_path / "suite"
    suite_folder.mkdir()
    DestinationSuite(make, read=read, folder=suite_folder).assert_conforms()


def test_a_destination_takes_its_modes_and_types_only(tmp_path: Path) -> None:
    from dataflare_sdk import WriteSpec

    wasm = example("wasm-c-post")[1]
    target = component(tmp_path, wasm, {"host": "h", "port": 1}, kind="destination", features="append", lines=NET)
    schema = pa.schema([("id", pa.int64()), ("d", pa.dictionary(pa.int8(), pa.string()))])
    refusals = target.accepts(schema, WriteSpec("upsert", ("id",)))
    assert len(refusals) == 2
    assert "upsert" in refusals[0]
    assert "'d'" in refusals[1]
    assert target.guarantee(WriteSpec("append")) == "at_least_once"
    target.close()
