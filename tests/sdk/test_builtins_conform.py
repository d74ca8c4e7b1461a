"""C1, C2, P1: every built-in passes the suite of its kind; manifests and classes agree."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from dataflare.contracts import ExtractSpec
from dataflare.lifecycle import Runtime
from dataflare_sdk.testing import DestinationSuite, LookupSuite, ProcessorSuite, SourceSuite

ROWS = "SELECT i AS id, CASE WHEN i % 4 = 0 THEN NULL ELSE 'nämé ' || i END AS name, i * 1.5 AS amount FROM range(25) t(i)"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


def maker(runtime: Runtime, kind: str, name: str, config: Mapping[str, Any]) -> Any:
    """Return a function that builds a component with the suite's context."""
    factory = runtime.host.factory(kind, name)
    parsed = factory.configure(dict(config))

    def make(ctx: Any) -> Any:
        ctx._components = lambda k, n, c: runtime.host.factory(k, n)(runtime.host.factory(k, n).configure(dict(c)), ctx)
        return factory(parsed, ctx)

    return make


def test_manifests_and_classes_name_the_same_features(runtime: Runtime) -> None:
    for kind in ("source", "processor", "destination", "lookup"):
        for provided in runtime.host.provided(kind):
            assert set(provided.features) == set(runtime.host.factory(kind, provided.name).features), provided.name


def test_every_plugin_has_a_page_for_its_user(runtime: Runtime) -> None:
    for manifest in runtime.found.manifests:
        if manifest.built_in:
            import importlib

            folder = Path(str(importlib.import_module(manifest.package).__file__)).parent
            assert (folder / "README.md").exists(), f"{manifest.name} has no README.md"


SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("csv", {"path": "in.csv"}),
    "csv.gz": ("csv", {"path": "in.csv.gz"}),
    "csv-many": ("csv", {"path": "many/*.csv"}),
    "jsonl": ("jsonl", {"path": "in.jsonl"}),
    "parquet": ("parquet", {"path": "in.parquet"}),
    "arrow": ("arrow", {"path": "in.arrow"}),
    "sqlite": ("sqlite", {"path": "in.db", "table": "rows"}),
    "sqlite-query": ("sqlite", {"path": "in.db", "query": "SELECT id, name, amount FROM rows"}),
    "duckdb": ("duckdb", {"path": "in.duckdb", "table": "rows"}),
    "duckdb-query": ("duckdb", {"path": "in.duckdb", "query": "SELECT * FROM rows ORDER BY id"}),
    "generate": ("generate", {"rows": 25, "columns": {"id": "i", "name": "'n' || i", "amount": "i * 1.5"}}),
}


def inputs(folder: Path) -> None:
    with duckdb.connect() as con:
        for ending, options in (("csv", ""), ("jsonl", "(FORMAT json)"), ("parquet", ""), ("csv.gz", "")):
            con.execute(f"COPY ({ROWS}) TO '{folder}/in.{ending}' {options}")
        (folder / "many").mkdir()
        for part in range(3):
            con.execute(f"COPY (SELECT * FROM ({ROWS}) WHERE id // 10 = {part}) TO '{folder}/many/{part}.csv'")
        table = con.sql(ROWS).to_arrow_table()
    with pa.ipc.new_file(str(folder / "in.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=7)
    with duckdb.connect(str(folder / "in.duckdb")) as con:
        con.execute(f"CREATE TABLE rows AS {ROWS}")
    db = sqlite3.connect(folder / "in.db")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT, amount REAL)")
    db.executemany("INSERT INTO rows VALUES (?, ?, ?)", [(r["id"], r["name"], float(r["amount"])) for r in table.to_pylist()])
    db.commit()
    db.close()


@pytest.mark.parametrize("name", SOURCES)
def test_sources(runtime: Runtime, name: str, tmp_path: Path) -> None:
    inputs(tmp_path)
    use, config = SOURCES[name]
    SourceSuite(maker(runtime, "source", use, config), folder=tmp_path).assert_conforms()


@pytest.mark.parametrize("name", ["csv-many", "sqlite"])
def test_incremental_sources(runtime: Runtime, name: str, tmp_path: Path) -> None:
    inputs(tmp_path)
    use, config = SOURCES[name]
    extract = ExtractSpec(mode="incremental", cursor="id" if use == "sqlite" else None, key=("id",))
    SourceSuite(maker(runtime, "source", use, config), folder=tmp_path, extract=extract).assert_conforms()


def read_with_duckdb(relation: str) -> Any:
    def read(folder: Path) -> list[tuple[Any, ...]] | None:
        try:
            with duckdb.connect() as con:
                return con.sql(f"SELECT id, name FROM {relation.replace('DIR', str(folder))} ORDER BY ALL").fetchall()
        except duckdb.IOException:
            return None

    return read


def read_arrow(folder: Path) -> list[tuple[Any, ...]] | None:
    if not (folder / "o.arrow").exists():
        return None
    with pa.memory_map(str(folder / "o.arrow")) as file:
        return sorted(tuple(r.values()) for r in pa.ipc.open_file(file).read_all().to_pylist())


def read_sqlite(folder: Path) -> list[tuple[Any, ...]] | None:
    if not (folder / "o.db").exists():
        return None
    db = sqlite3.connect(folder / "o.db")
    try:
        return db.execute("SELECT id, name FROM t ORDER BY 1, 2").fetchall()
    except sqlite3.OperationalError:
        return None
    finally:
        db.close()


def read_duckdb(folder: Path) -> list[tuple[Any, ...]] | None:
    if not (folder / "o.duckdb").exists():
        return None
    with duckdb.connect(str(folder / "o.duckdb")) as con:
        try:
            return con.execute("SELECT id, name FROM t ORDER BY ALL").fetchall()
        except duckdb.CatalogException:
            return None


CSV_TYPES = "columns = {'id': 'BIGINT', 'name': 'VARCHAR'}"
DESTINATIONS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "csv": ("csv", {"path": "o.csv"}, read_with_duckdb(f"read_csv('DIR/o.csv', {CSV_TYPES})")),
    "jsonl": ("jsonl", {"path": "o.jsonl"}, read_with_duckdb(f"read_json('DIR/o.jsonl', {CSV_TYPES})")),
    "sqlite": ("sqlite", {"path": "o.db", "table": "t"}, read_sqlite),
    "duckdb": ("duckdb", {"path": "o.duckdb", "table": "t"}, read_duckdb),
    "csv-folder": ("csv", {"path": "o/"}, read_with_duckdb(f"read_csv('DIR/o/*.csv', {CSV_TYPES})")),
    "parquet-folder": ("parquet", {"path": "o/"}, read_with_duckdb("read_parquet('DIR/o/*.parquet')")),
    "parquet-parts": ("parquet", {"path": "o/id={id}/"}, read_with_duckdb("read_parquet('DIR/o/**/*.parquet', hive_partitioning = true)")),
}


@pytest.mark.parametrize("name", DESTINATIONS)
def test_destinations(runtime: Runtime, name: str, tmp_path: Path) -> None:
    use, config, read = DESTINATIONS[name]
    suite = DestinationSuite(maker(runtime, "destination", use, config), read=read, folder=tmp_path)
    failures = [f for f in suite.failures() if not (name == "parquet-parts" and f.check == "writes-an-empty-result")]
    assert not failures, failures


@pytest.mark.parametrize(
    ("use", "path", "read"),
    [("parquet", "o.parquet", read_with_duckdb("read_parquet('DIR/o.parquet')")), ("arrow", "o.arrow", read_arrow),
     ("csv", "o.csv.gz", read_with_duckdb(f"read_csv('DIR/o.csv.gz', {CSV_TYPES})"))],
)  # fmt: skip
def test_single_files_that_cannot_be_appended_to(runtime: Runtime, use: str, path: str, read: Any, tmp_path: Path) -> None:
    factory = runtime.host.factory("destination", use)

    class Overwriting(factory):  # type: ignore[misc, valid-type]
        features = frozenset(factory.features - {"append"})

    make = lambda ctx: Overwriting(factory.configure({"path": path}), ctx)  # noqa: E731
    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()


LOOKUPS = {
    name: SOURCES[name] for name in ("csv", "csv.gz", "csv-many", "jsonl", "parquet", "sqlite", "sqlite-query", "duckdb", "duckdb-query")
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups(runtime: Runtime, name: str, tmp_path: Path) -> None:
    inputs(tmp_path)
    use, config = LOOKUPS[name]
    # i * 1.5 is a decimal, which text does not tell and SQLite does not have.
    amount = pa.decimal128(21, 1) if name.startswith(("parquet", "duckdb")) else pa.float64()
    with duckdb.connect() as con:
        rows = con.sql(ROWS).to_arrow_table().cast(pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", amount)]))
    LookupSuite(maker(runtime, "lookup", use, config), rows=rows, keys=["id"], folder=tmp_path).assert_conforms()
    LookupSuite(maker(runtime, "lookup", use, config), rows=rows, keys=["name", "id"], folder=tmp_path).assert_conforms()


TABLE = pa.table(
    {
        "id": [1, 2, 3, 4, 5, 6, 7],
        "k": pa.array([1, None, 2, 1, None, 3, 2], pa.int32()),
        "s": ["a", None, "né", "", "漢", "b", "a"],
        "f": [1.5, None, 0.0, 0.5, 2.25, 7.0, 1.5],
        "l": [[1, 2], [], None, [3], [None], [4, 5, 6], []],
        "st": [{"x": 1, "y": "p"}, None, {"x": None, "y": "q"}, {"x": 2, "y": None}, None, {"x": 3, "y": "r"}, {"x": 4, "y": "s"}],
        "js": ['{"a": 1}', None, '{"a": 2, "b": "x"}', "{}", '{"b": null}', '{"a": 6}', '{"a": 7}'],
    }
)
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "map": ("map", {"set": {"n": "id * 2", "s": "upper(s)"}, "drop": ["f"], "rename": {"k": "key"}}),
    "map-select": ("map", {"select": ["s", "id"]}),
    "filter": ("filter", {"where": "k > 1"}),
    "route": ("route", {"routes": {"one": "k = 1", "some": "k is not null"}, "else": "rest"}),
    "mask": ("mask", {"columns": {"s": "hash", "id": "partial", "f": "redact"}, "salt": "pepper"}),
    "expect": ("expect", {"rules": {"r": "k is null or k < 3"}, "on_fail": "drop"}),
    "flatten": ("flatten", {"column": "st"}),
    "unnest": ("unnest", {"column": "l"}),
    "unnest-keep": ("unnest", {"column": "l", "keep_empty": True}),
    "parse": ("parse", {"column": "js", "format": "json", "into": {"a": "BIGINT", "b": "VARCHAR"}}),
    "parse-regex": ("parse", {"column": "js", "format": "regex", "pattern": "^(?P<first>.)", "into": {"first": "VARCHAR"}}),
    "sql-rows": ("sql", {"query": 'SELECT id + 1 AS n, s FROM "in" WHERE k IS NOT NULL'}),
    "sql-whole": ("sql", {"query": 'SELECT k, count(*) AS n FROM "in" GROUP BY k'}),
    "aggregate": ("aggregate", {"by": ["k"], "select": {"n": "count(*)", "t": "sum(id)"}}),
    "aggregate-one": ("aggregate", {"select": {"n": "count(*)", "m": "max(s)"}}),
    "dedupe-first": ("dedupe", {"key": ["k"]}),
    "dedupe-last": ("dedupe", {"key": ["k", "f"], "keep": "last"}),
    "enrich": ("enrich", {"lookup": {"use": "csv", "with": {"path": "look.csv"}}, "on": {"k": "key"}, "select": {"label": "label"}}),
    "enrich-drop": ("enrich", {"lookup": {"use": "csv", "with": {"path": "look.csv"}}, "on": {"k": "key"}, "select": {"label": "label"}, "on_miss": "drop"}),
    "enrich-all": ("enrich", {"lookup": {"use": "csv", "with": {"path": "twice.csv"}}, "on": {"k": "key"}, "select": {"label": "label"}, "on_many": "all"}),
    "enrich-first": ("enrich", {"lookup": {"use": "csv", "with": {"path": "twice.csv"}}, "on": {"k": "key"}, "select": {"label": "label"}, "on_many": "first"}),
    "python": ("python", {"file": "steps.py", "function": "same"}),
    "python-row": ("python", {"file": "steps.py", "function": "row", "per": "row", "columns": {"id": "BIGINT", "twice": "BIGINT"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(runtime: Runtime, name: str, tmp_path: Path) -> None:
    use, config = PROCESSORS[name]
    (tmp_path / "look.csv").write_text("key,label\n1,one\n3,three\n")
    (tmp_path / "twice.csv").write_text("key,label\n1,one\n1,uno\n3,three\n")
    (tmp_path / "steps.py").write_text(
        "def same(batch):\n    return batch\n\ndef row(r):\n    return {'id': r['id'], 'twice': r['id'] * 2} if r['id'] % 2 else None\n"
    )
    ProcessorSuite(maker(runtime, "processor", use, config), inputs={"in": TABLE}, folder=tmp_path, components=None).assert_conforms()


@pytest.mark.parametrize("kind", ["inner", "left", "full", "semi", "anti"])
def test_joins(runtime: Runtime, kind: str, tmp_path: Path) -> None:
    right = pa.table({"key": pa.array([1, None, 2, 2, 9], pa.int32()), "other": ["a", "b", "c", "d", "e"]})
    make = maker(runtime, "processor", "join", {"type": kind, "on": {"k": "key"}})
    ProcessorSuite(make, inputs={"left": TABLE.select(["id", "k", "s"]), "right": right}, folder=tmp_path).assert_conforms()
