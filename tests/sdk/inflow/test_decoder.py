"""The decoder: the same rows and the same bad rows as the `jsonl` source, whatever is in a message."""

import json
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_plugins.files.jsonl_source import JsonlSource
from dataflare_plugins.files.source import FileConfig
from dataflare_sdk import DataflareError, ExtractSpec
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import parse
from dataflare_sdk.inflow.decoder import Decoder
from dataflare_sdk.inflow.messages import Messages, joined
from dataflare_sdk.inflow.options import MessageConfig, metadata_schema, payload_schema, whole_schema
from dataflare_sdk.testing.context import FakeContext

KINDS = {
    "i": "BIGINT", "s": "VARCHAR", "f": "DOUBLE", "b": "BOOLEAN", "t": "TIMESTAMPTZ", "d": "DATE", "m": "DECIMAL(10,2)",
    "l": "BIGINT[]", "o": "STRUCT(x BIGINT, y VARCHAR)",
}  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(["2026-01-02", "2026-01-02T03:04:05Z", "2026-01-02 03:04:05+02", "1.5", "true", "x", "12", ""]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3), max_leaves=4
)
OBJECTS = st.dictionaries(st.sampled_from([*KINDS, "other", 'q"uote']), VALUES, max_size=5)
TEXTS = OBJECTS.map(json.dumps) | st.sampled_from(
    ['{"i": 1', "[1]", "7", "null", "x", '{"i":1}{"i":2}', '{"i": 1, "i": 2}', '{"s": "\\ud800"}']
)


def by_file(texts, kinds):
    """Return rows and rejections of the `jsonl` source for the same objects, one a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        source = JsonlSource(FileConfig(path=str(path), columns=kinds), FakeContext(Path(folder), "source", on_record="dead_letter"))
        stream = source.discover(ExtractSpec(), None)[0]
        reader = source.open(source.partitions(stream, ExtractSpec())[0], ExtractSpec(), None)
        rows, rejected = [], []
        while getattr(batch := reader.read(1000, 1 << 20, 0), "data", None) is not None:
            rows += batch.data.to_pylist()
            rejected += batch.rejected
        reader.close()
        source.close()
        return rows, [(r.code, r.position["line"] - 1, r.raw, dict(r.detail)) for r in rejected]


@given(st.lists(TEXTS, min_size=1, max_size=12))
@settings(max_examples=25)
def test_it_reads_what_the_jsonl_source_reads_and_rejects_what_it_rejects(texts):
    decoder = Decoder(schemas.from_names(KINDS))
    try:
        found = decoder.decode(Messages([t.encode() for t in texts], range(len(texts))))
    finally:
        decoder.close()
    rows, rejected = by_file(texts, KINDS)
    assert found.data.to_pylist() == rows
    assert [(r.code, r.position["position"], r.raw, dict(r.detail)) for r in found.rejected] == rejected
    kept = list(range(len(texts))) if found.kept is None else found.kept.to_pylist()
    assert sorted([*kept, *(r.index for r in found.rejected)]) == list(range(len(texts)))


FULL = st.fixed_dictionaries({"i": st.integers(-9, 2**63), "s": st.text(max_size=5)}, optional={"other": LEAVES}).map(json.dumps)
RARE = st.sampled_from(
    ['{"i": 1}', '{"i": null, "s": "x"}', '{"i": "x", "s": ""}', '{"s": "1", "i": 2,}', "[1]", "no json", '{"i": 1, "s": 2}']
)


@given(st.lists(FULL, min_size=4, max_size=20), st.lists(RARE, max_size=2), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_pages_of_objects_that_have_all_columns_but_for_a_few(full, rare, chance):
    texts = [*full, *rare]
    chance.shuffle(texts)
    decoder, kinds = Decoder(schemas.from_names({"i": "BIGINT", "s": "VARCHAR"})), {"i": "BIGINT", "s": "VARCHAR"}
    try:
        for _ in range(2):
            found = decoder.decode(Messages([t.encode() for t in texts], range(len(texts))))
            rows, rejected = by_file(texts, kinds)
            assert found.data.to_pylist() == rows
            assert [(r.code, r.position["position"], r.raw, dict(r.detail)) for r in found.rejected] == rejected
    finally:
        decoder.close()


def test_a_page_of_good_messages_equals_duckdb_on_the_same_text(tmp_path):
    rows = [{"i": n, "s": f"é{n}", "f": n / 3, "t": f"2026-01-01T00:00:{n % 60:02}Z", "b": n % 2 == 0} for n in range(5000)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    kinds = {k: KINDS[k] for k in ("i", "s", "f", "t", "b")}
    connection = duckdb.connect()
    connection.execute("SET TimeZone='UTC'")
    oracle = connection.sql(f"SELECT * FROM read_json('{path}', columns={kinds!r})").to_arrow_table()
    decoder = Decoder(schemas.from_names(kinds))
    found = decoder.decode(Messages([json.dumps(r).encode() for r in rows], range(5000)))
    assert found.kept is None
    assert pa.Table.from_batches([found.data]).to_pylist() == oracle.to_pylist()
    decoder.close()


def test_text_bytes_and_what_is_wrong_with_them():
    bad = [b"ok", b"\xff\xfe", "é".encode(), b"toolong" * 3, b""]
    text = Decoder(pa.schema([("value", pa.string())]), "text", max_message=20)
    found = text.decode(Messages(bad, range(5), topic="t", part="3"))
    assert found.data.to_pylist() == [{"value": "ok"}, {"value": "é"}, {"value": ""}]
    assert [(r.code, dict(r.position), r.raw) for r in found.rejected] == [
        ("data.bad-encoding", {"topic": "t", "part": "3", "position": 1}, "\\xff\\xfe"),
        ("data.message-too-large", {"topic": "t", "part": "3", "position": 3}, "toolong" * 3),
    ]
    raw = Decoder(pa.schema([("value", pa.binary())]), "bytes", max_message=20)
    assert raw.decode(Messages(bad, range(5))).data.column(0).to_pylist() == [b"ok", b"\xff\xfe", "é".encode(), b""]


def test_metadata_becomes_columns_beside_the_rows_it_belongs_to():
    config = parse(MessageConfig, {"columns": {"n": "BIGINT"}, "metadata": ["topic", "key", "time", "position", "headers"]})
    schema = whole_schema(config, payload_schema(config))
    decoder = Decoder(schema, metadata=config.metadata)
    page = Messages(
        [b'{"n":1}', b"x", b'{"n":3}', b'{"n":4}'], ["1-0", "2-0", "3-0", "4-0"], topic=["a", "b", "c", "d"],
        key=[b"k", None, "é", b"\xff"], time=[0, 1, 2, 3], headers=[{"h": "v"}, None, {}, None],
    )  # fmt: skip
    found = decoder.decode(page)
    assert [(r.code, r.index) for r in found.rejected] == [("data.bad-json", 1), ("data.bad-encoding", 3)]
    shown = [{**r, "_time": r["_time"].timestamp()} for r in found.data.to_pylist()]
    assert shown == [
        {"n": 1, "_topic": "a", "_key": "k", "_time": 0.0, "_position": "1-0", "_headers": [("h", "v")]},
        {"n": 3, "_topic": "c", "_key": "é", "_time": 2e-6, "_position": "3-0", "_headers": []},
    ]
    assert found.data.schema == schema


def test_a_column_that_nobody_uses_is_not_read_and_rows_are_counted_all_the_same():
    decoder = Decoder(pa.schema([]))
    found = decoder.decode(Messages([b'{"n":1}', b"[]", b"{}"], range(3)))
    assert (found.data.num_rows, len(found.rejected)) == (2, 1)
    only = Decoder(pa.schema([("_topic", pa.string())]), metadata=["topic"])
    assert only.decode(Messages([b"{}", b"x"], range(2), topic="t")).data.to_pylist() == [{"_topic": "t"}]


def test_binary_keys_stay_bytes_beside_bytes():
    config = parse(MessageConfig, {"format": "bytes", "metadata": ["key"]})
    schema = whole_schema(config, payload_schema(config))
    assert metadata_schema(config).field("_key").type == pa.binary()
    found = Decoder(schema, "bytes", metadata=["key"]).decode(Messages([b"\x00", b"1"], range(2), key=[b"\xff", None]))
    assert found.data.to_pylist() == [{"value": b"\x00", "_key": b"\xff"}, {"value": b"1", "_key": None}]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ({"columns": {"n": "NUMBERS"}}, "config.bad-type"),
        ({"format": "text", "columns": {"n": "BIGINT"}}, "config.invalid"),
        ({"columns": {"_topic": "VARCHAR"}, "metadata": ["topic"]}, "config.invalid"),
        ({"columns": {"n": "BIGINT"}, "metadata": ["topic", "topic"]}, "config.invalid"),
        ({"metadata": ["offset"]}, "config.invalid"),
    ],
)
def test_options_that_cannot_be_are_refused(raw, code):
    def made():
        config = parse(MessageConfig, raw)
        whole_schema(config, payload_schema(config))

    with pytest.raises(DataflareError) as error:
        made()
    assert error.value.code == code


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5))
def test_joined_pages_are_their_messages_in_turn(pages):
    numbers = iter(range(100))
    made = []
    for page in pages:
        positions = [next(numbers) for _ in page]
        made.append(Messages([b"%d" % v for v in page], positions, topic="t", key=[b"%d" % v for v in page], after=next(numbers)))
    whole = joined(made)
    assert [bytes(p) for p in whole.payloads] == [b"%d" % v for page in pages for v in page]
    assert [whole.where(i) for i in range(len(whole))] == [{"topic": "t", "position": p} for m in made for p in m.positions]
    assert list(whole.key) == list(whole.payloads)
    assert whole.end == made[-1].end
