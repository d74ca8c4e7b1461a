"""The SDK's suites, through the proxies: nobody can tell them from components in Python."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, ROOT, built, example, rustc
from tests.plugins.isolation_wasm.loading import bound, component, factory, processed
from tests.plugins.isolation_wasm.server import Server, serving

from dataflare_sdk import Batch, DataflareError, Target, WriteSpec
from dataflare_sdk.testing import DestinationSuite, FakeContext, ProcessorSuite, SourceSuite

RUST = pytest.mark.skipif(rustc() is None, reason="there is no Rust for WebAssembly here")
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


@RUST
def test_a_processor_in_rust(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "t \\ext": ["a bé\tc", None, " ", "dd"]})
    make = made(tmp_path, example("wasm-rust-words")[1], {"column": "t \\ext"})
    ProcessorSuite(make, inputs={"in": table}, folder=tmp_path, ordered=True).assert_conforms()


def test_the_memory_of_zig(tmp_path: Path) -> None:
    """What is kept can be forgotten, and a list of Zig's library grows in the arena without losing what it holds."""
    guest = component(tmp_path, built(GUESTS / "arena.zig"), lines="limits: {memory: 8MiB}\n")
    data = pa.record_batch({"n": [1, 2, 3]})
    assert bound(guest, data).names == ["n", "held"]
    for _ in range(20):
        assert processed(guest, data)["held"].to_pylist() == [50_000] * 3
    guest.close()


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


@pytest.mark.parametrize("ending", ["zig", pytest.param("rs", marks=RUST)])
def test_a_source_in_other_languages(ending: str, tmp_path: Path) -> None:
    make = made(tmp_path, built(GUESTS / f"count.{ending}"), {"first": -3, "last": 20}, kind="source", features="full, replayable")
    SourceSuite(make, folder=tmp_path).assert_conforms()


@pytest.mark.parametrize(("ending", "wrong"), [("zig", {"frist": 1}), pytest.param("rs", {"first": "1"}, marks=RUST)])
def test_what_a_source_in_other_languages_gives(ending: str, wrong: dict, tmp_path: Path) -> None:
    wasm = built(GUESTS / f"count.{ending}")
    source = component(tmp_path, wasm, {"first": 1, "last": 70_000}, kind="source", features="full, replayable")
    first = source.read(b"", 69_990, None)
    rest = source.read(first.state, 100, None)
    rows = [*first.data.to_pylist(), *rest.data.to_pylist()]
    assert rows == [{"n": n, "word": None if n % 2 else "even"} for n in range(1, 70_001)]
    assert (first.done, rest.done, source.read(rest.state, 10, None).data.num_rows) == (False, True, 0)
    with pytest.raises(DataflareError, match="none of mine"):
        source.read(b"odd", 10, None)
    source.close()
    other = component(tmp_path, wasm, wrong, kind="source", features="full, replayable")
    with pytest.raises(DataflareError, match=r"the keys are|'first' must be a whole number") as caught:
        other.read(b"", 1, None)
    assert caught.value.code == "wasm.bad-config"
    other.close()


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


def poster(folder: Path, wasm: bytes, server: Server, **config: Any) -> Callable[[Any], Any]:
    """Return what makes a destination that posts to a path of its own for each folder."""
    kind = factory(folder / "plugins", wasm, kind="destination", features="append", lines=NET)

    def make(ctx: Any) -> Any:
        ctx._secrets["post_token"] = "t"
        return kind({"host": "127.0.0.1", "port": server.port, "path": f"/{ctx.base_dir.name}", **config}, ctx)

    return make


def posted(server: Server, place: Path) -> list[tuple[Any, ...]]:
    bodies = b"".join(a.body for a in server.asked if a.path == f"/{place.name}")
    return sorted((r["id"], r["name"]) for r in map(json.loads, bodies.splitlines()))


def conforms(make: Callable[[Any], Any], server: Server, folder: Path) -> None:
    folder.mkdir()
    DestinationSuite(make, read=lambda place: posted(server, place), folder=folder).assert_conforms()


def test_a_destination_in_c(tmp_path: Path, server: Server) -> None:
    conforms(poster(tmp_path, example("wasm-c-post")[1], server, scheme="http"), server, tmp_path / "suite")


@pytest.mark.parametrize("ending", ["zig", pytest.param("rs", marks=RUST)])
def test_a_destination_in_other_languages(ending: str, tmp_path: Path, server: Server) -> None:
    conforms(poster(tmp_path, built(GUESTS / f"post.{ending}"), server), server, tmp_path / "suite")


def template(kind: str, ending: str, folder: Path) -> bytes:
    """Return the module of a plugin that was just made from the template."""
    text = (ROOT / "plugin_template" / "parts" / f"wasm-{ending}" / f"{kind}.{ending}.jinja").read_text()
    source = folder / f"made.{ending}"
    source.write_text(text.replace("{{ name }}", "made"))
    return built(source)


@pytest.mark.parametrize("how", ["example", "zig", pytest.param("rs", marks=RUST), "template-c", "template-zig"])
def test_what_a_destination_stages(how: str, tmp_path: Path, server: Server) -> None:
    """Rows of many batches outlive the arena; a batch that is refused leaves nothing of itself."""
    if how.startswith("template"):
        wasm = template("destination", how.removeprefix("template-"), tmp_path)
    else:
        wasm = example("wasm-c-post")[1] if how == "example" else built(GUESTS / f"post.{how}")
    target = poster(tmp_path, wasm, server, **({} if how in ("zig", "rs") else {"scheme": "http"}))(FakeContext(tmp_path))
    schema = pa.schema([("id", pa.int64()), ("name", pa.string())])
    target.open(Target("workflow", "target", "run", 1, schema, WriteSpec("append"), "hash"))
    wanted: list[tuple[Any, ...]] = []
    for epoch, first in enumerate((1_000, 90_000), 1):
        for start, stop in itertools.pairwise((first, first + 1_000, first + 9_000, first + 40_000)):
            rows = [(i, None if i % 3 == 0 else f'"é\x1f{i}\n') for i in range(start, stop)]
            batch = pa.record_batch(list(zip(*rows, strict=True)), schema=schema)
            target.write(Batch("in", batch))
            wanted += rows
        if how in ("zig", "rs"):
            with pytest.raises(DataflareError, match="99 is taken"):
                target.write(Batch("in", pa.record_batch([[98, 99], ["a", "b"]], schema=schema)))
        assert len(posted(server, tmp_path)) == len(wanted) - 40_000, "it was sent before it was flushed"
        target.commit(epoch, {}, epoch == 2)
        assert posted(server, tmp_path) == wanted
    target.close()


@pytest.mark.parametrize("ending", ["c", "zig"])
def test_a_source_of_the_template_gives_many_rows(ending: str, tmp_path: Path) -> None:
    source = component(tmp_path, template("source", ending, tmp_path), {"rows": 150_000}, kind="source", features="full, replayable")
    state, done, found = b"", False, []
    while not done:
        piece = source.read(state, 65_000, None)
        state, done = piece.state, piece.done
        found += piece.data.to_pylist()
    assert found == [{"number": n, "line": f"row {n}"} for n in range(1, 150_001)]
    with pytest.raises(DataflareError, match="none of mine"):
        source.read(b"odd", 10, None)
    source.close()


@pytest.mark.parametrize("ending", ["c", "zig"])
def test_a_processor_of_the_template_measures_texts(ending: str, tmp_path: Path) -> None:
    guest = component(tmp_path, template("processor", ending, tmp_path), {"column": 'a "text"', "into": "größe"})
    texts = [None if i % 7 == 0 else "é" * (i % 50) + "x" * (i % 3) for i in range(20_000)]
    data = pa.record_batch({"n": range(20_000), 'a "text"': texts})
    assert bound(guest, data).names == ["n", 'a "text"', "größe"]
    assert processed(guest, data)["größe"].to_pylist() == [None if t is None else len(t) for t in texts]
    with pytest.raises(DataflareError, match="only a text has a length"):
        bound(guest, pa.record_batch({'a "text"': [1.5]}))
    guest.close()


def test_a_destination_takes_its_modes_and_types_only(tmp_path: Path) -> None:
    wasm = example("wasm-c-post")[1]
    target = component(tmp_path, wasm, {"host": "h", "port": 1}, kind="destination", features="append", lines=NET)
    schema = pa.schema([("id", pa.int64()), ("d", pa.dictionary(pa.int8(), pa.string()))])
    refusals = target.accepts(schema, WriteSpec("upsert", ("id",)))
    assert len(refusals) == 2
    assert "upsert" in refusals[0]
    assert "'d'" in refusals[1]
    assert target.guarantee(WriteSpec("append")) == "at_least_once"
    target.close()
