"""Files: packed, downloaded, partitioned, appended to, and the values that pass through them."""

from __future__ import annotations

import gzip
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataflare

CSV = "id,name\n1,a\n2,\n3,né\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(source: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    document = {"name": "t", "sources": {"in": source}, "destinations": {"out": {"use": "blackhole"}}, **more}
    return dataflare.run(document, collect=["in"], check=True).table("in").to_pylist()


ROWS = [{"id": 1, "name": "a"}, {"id": 2, "name": None}, {"id": 3, "name": "né"}]


@pytest.mark.parametrize("packing", [".gz", ".zst", ".zip", ""])
def test_packed_files_are_unpacked(here: Path, packing: str) -> None:
    raw = CSV.encode()
    path = here / f"in.csv{packing}"
    if packing == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.csv", raw)
    elif packing == ".zst":
        path.write_bytes(pa.Codec("zstd").compress(raw, asbytes=True))
    else:
        path.write_bytes(gzip.compress(raw) if packing else raw)
    assert read({"use": "csv", "with": {"path": path.name}}) == ROWS


def test_a_zip_of_two_files_is_refused(here: Path) -> None:
    with zipfile.ZipFile(here / "in.csv.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    run = dataflare.run({"sources": {"in": {"use": "csv", "with": {"path": "in.csv.zip"}}}, "destinations": {"o": {"use": "blackhole"}}})
    assert run.error["code"] == "source.bad-archive"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("www")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_file_is_read_over_http(here: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    (folder / "in.csv").write_text(CSV)
    (folder / "in.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert read({"use": "csv", "with": {"path": f"{url}/in.csv"}}) == ROWS
    assert read({"use": "csv", "with": {"path": f"{url}/in.csv.gz"}}) == ROWS
    run = dataflare.run(
        {"sources": {"in": {"use": "csv", "with": {"path": f"{url}/absent.csv"}}}, "destinations": {"o": {"use": "blackhole"}}}
    )
    assert run.error["code"] == "world.missing-input"
    assert "404" in run.error["message"]


def test_validate_touches_no_network(here: Path, server: tuple[Path, str]) -> None:
    from dataflare.lifecycle import Runtime

    with Runtime(here) as runtime:
        workflow = runtime.parse(
            {"sources": {"in": {"use": "csv", "with": {"path": f"{server[1]}/x.csv"}}}, "destinations": {"o": {"use": "blackhole"}}}
        )
        found = runtime.validate(workflow)
        assert found.valid
        assert [p.code for p in found.problems] == ["workflow.unknown-schema"]
        assert not runtime.validate(workflow, strict=True).valid


def test_columns_go_by_name_not_by_place(here: Path) -> None:
    (here / "a.csv").write_text("id,name\n1,a\n")
    (here / "b.csv").write_text("name,id\nb,2\n")
    columns = {"name": "VARCHAR", "id": "BIGINT"}
    assert read({"use": "csv", "with": {"path": "*.csv", "columns": columns}}) == [{"name": "a", "id": 1}, {"name": "b", "id": 2}]
    assert read({"use": "csv", "with": {"path": "*.csv"}}) == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def test_a_bad_value_in_a_column_nobody_uses_is_no_failure(here: Path) -> None:
    (here / "in.csv").write_text("id,v\n1,x\n2,3\n")
    source = {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT", "v": "BIGINT"}}}
    for lane in ("bulk", "streaming"):
        document = {
            "sources": {"in": source},
            "processors": [{"id": "m", "use": "map", "with": {"drop": ["v"]}}],
            "destinations": {"o": {"use": "csv", "with": {"path": "o.csv"}}},
            "runtime": {"lane": lane},
        }
        assert dataflare.run(document, check=True).rows["written"] == 2


@pytest.mark.parametrize("lane", ["auto", "streaming"])
def test_folders_by_column(here: Path, lane: str) -> None:
    document = {
        "name": "parts",
        "sources": {"in": {"use": "generate", "with": {"rows": 100, "columns": {"id": "i", "k": "CASE WHEN i % 3 = 0 THEN NULL ELSE 'a/b ' || i % 3 END", "d": "DATE '2026-01-01' + (i % 2)::INTEGER"}}}},
        "destinations": {"out": {"use": "parquet", "with": {"path": "o/k={k}/d={d}/"}}},
        "runtime": {"lane": lane},
    }  # fmt: skip
    dataflare.run(document, check=True)
    with duckdb.connect() as con:
        found = con.sql("SELECT id, k, d FROM read_parquet('o/**/*.parquet', hive_partitioning = true) ORDER BY id").fetchall()
        wanted = con.sql(
            "SELECT i, CASE WHEN i % 3 = 0 THEN NULL ELSE 'a/b ' || i % 3 END, DATE '2026-01-01' + (i % 2)::INTEGER FROM range(100) t(i)"
        ).fetchall()
    assert found == wanted
    again = {"name": "back", "sources": {"in": {"use": "parquet", "with": {"path": "o/"}}}, "destinations": {"out": {"use": "blackhole"}}}
    assert sorted(r["id"] for r in dataflare.run(again, collect=["in"], check=True).table("in").to_pylist()) == list(range(100))


@pytest.mark.parametrize("lane", ["auto", "streaming"])
@pytest.mark.parametrize("path", ["o.csv", "o.jsonl", "o/"])
def test_append_adds_to_what_is_there(here: Path, path: str, lane: str) -> None:
    use = "jsonl" if path == "o.jsonl" else "csv"
    document = {
        "name": "append",
        "sources": {"in": {"use": "generate", "with": {"rows": 3, "columns": {"id": "i", "x": "i * 0.5"}}}},
        "destinations": {"out": {"use": use, "with": {"path": path}, "write": {"mode": "append"}}},
        "runtime": {"lane": lane},
    }
    for _ in range(2):
        dataflare.run(document, check=True)
    target = f"{path}*.csv" if path.endswith("/") else path
    with duckdb.connect() as con:
        assert con.sql(f"SELECT id FROM '{target}' ORDER BY id").fetchall() == [(0,), (0,), (1,), (1,), (2,), (2,)]


def test_json_is_valid_json(here: Path) -> None:
    columns = {
        "a": "'NaN'::DOUBLE",
        "b": "['inf'::DOUBLE, 1.5]",
        "c": "{'x': '-inf'::FLOAT, 'y': NULL}",
        "t": "TIMESTAMPTZ '2026-03-29 01:30:00+02'",
    }
    for lane in ("bulk", "streaming"):
        dataflare.run({"sources": {"in": {"use": "generate", "with": {"rows": 1, "columns": columns}}},
                       "destinations": {"o": {"use": "jsonl", "with": {"path": "o.jsonl"}}}, "runtime": {"lane": lane}}, check=True)  # fmt: skip

        def refuse(text: str) -> None:
            raise AssertionError(f"{text} is no JSON")

        row = json.loads(Path("o.jsonl").read_text(), parse_constant=refuse)
        assert row["a"] is None
        assert row["b"] == [None, 1.5]
        assert row["c"] == {"x": None, "y": None}


def test_types_that_the_sql_engine_has_not_pass_it_by(here: Path) -> None:
    from decimal import Decimal

    table = pa.table({
        "id": pa.array([1, 2], pa.int32()),
        "big": pa.array([Decimal("1" * 60), None], pa.decimal256(60, 0)),
        "zone": pa.array([0, 1], pa.timestamp("us", "Europe/Berlin")),
        "nested": [{"a": [1, None]}, None],
    })  # fmt: skip
    with pa.ipc.new_file("in.arrow", table.schema) as file:
        file.write_table(table)
    dataflare.run({"sources": {"in": {"use": "arrow", "with": {"path": "in.arrow"}}},
                   "processors": [{"id": "m", "use": "map", "with": {"set": {"next": "id + 1"}}}],
                   "destinations": {"o": {"use": "arrow", "with": {"path": "o.arrow"}}}}, check=True)  # fmt: skip
    with pa.memory_map("o.arrow") as file:
        found = pa.ipc.open_file(file).read_all()
    assert found.drop_columns("next").equals(table)


VALUE = st.none() | st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), VALUE, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        max_size=15,
    )
)
def test_values_come_through_every_format(rows: list[tuple[Any, ...]]) -> None:
    """Written by us, read by DuckDB and by us. In CSV an empty text is NULL."""
    table = pa.table(
        {
            "i": pa.array([r[0] for r in rows], pa.int64()),
            "s": pa.array([r[1] for r in rows], pa.string()),
            "f": pa.array([r[2] for r in rows], pa.float64()),
        }
    )
    kinds = {"i": "BIGINT", "s": "VARCHAR", "f": "DOUBLE"}
    for use in ("csv", "jsonl", "parquet"):
        document = {
            "name": "v",
            "sources": {"in": {"use": "generate", "with": {"rows": 0, "columns": {"i": "i"}}}},
            "destinations": {"o": {"use": use, "with": {"path": f"o.{use}"}}},
        }
        dataflare.run(document, inputs={"in": table}, check=True)
        back = {
            "name": "b",
            "sources": {"in": {"use": use, "with": {"path": f"o.{use}", **({} if use == "parquet" else {"columns": kinds})}}},
            "destinations": {"o": {"use": "blackhole"}},
        }
        found = dataflare.run(back, collect=["in"], check=True).table("in").to_pylist()
        wanted = table.to_pylist()
        if use == "csv":
            wanted = [{**r, "s": r["s"] or None} for r in wanted]
        assert found == wanted, use


def test_a_parquet_file_written_in_epochs_is_one_file(here: Path) -> None:
    document = {
        "sources": {"in": {"use": "generate", "with": {"rows": 50_000, "columns": {"id": "i"}}}},
        "destinations": {"o": {"use": "parquet", "with": {"path": "o.parquet"}}},
        "runtime": {"lane": "streaming", "batch": {"rows": 500}},
        "state": {"checkpoint": {"every": "10ms"}},
    }
    dataflare.run(document, check=True)
    assert sorted(pq.read_table("o.parquet")["id"].to_pylist()) == list(range(50_000))
    assert [p.name for p in here.iterdir() if p.name.startswith(".dataflare-")] == []
