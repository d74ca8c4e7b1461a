"""A4 (a): a program runs workflows, hands rows in as Arrow, and takes rows out of any node or output."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import dataflare
from dataflare.errors import DataflareError

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, step

OUT = {"out": {"use": "blackhole"}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_is_run(tmp_path: Path) -> None:
    run = dataflare.run(saved(tmp_path, flow({"s": generate(3)})))
    assert (run.status, run.rows["written"], run.error) == ("done", 3, None)
    assert run.nodes["out"]["rows_in"] == 3
    assert (tmp_path / "o.jsonl").read_text() == '{"i":0}\n{"i":1}\n{"i":2}\n'


def test_rows_go_in_and_come_out_as_arrow() -> None:
    given = pa.table({"i": [1, 2, 3], "s": ["a", "b", None]})
    run = dataflare.run(
        flow({"s": {"use": "csv", "with": {"path": "absent.csv"}}}, step("f", "filter", where="i > 1"), out=OUT),
        inputs={"s": given}, collect=["f"], check=True,
    )  # fmt: skip
    assert pa.table(run).to_pydict() == {"i": [2, 3], "s": ["b", None]}
    assert duckdb.sql("SELECT count(*) FROM run").fetchall() == [(2,)]


def test_any_node_or_output_is_collected_with_all_its_columns() -> None:
    document = flow({"s": generate(10, i="i", v="i * 2")}, step("f", "filter", where="i > 7"), step("m", "map", select=["i"]), out=OUT)
    run = dataflare.run(document, collect=["s", "f", "f.else", "out"], check=True)
    assert {n: run.table(n).num_rows for n in ("s", "f", "f.else", "out")} == {"s": 10, "f": 2, "f.else": 8, "out": 2}
    assert run.table("s").column_names == run.table("f.else").column_names == ["i", "v"]
    assert run.table("out").column_names == ["i"]
    with pytest.raises(ValueError, match="collect one node"):
        run.__arrow_c_stream__()


def test_an_empty_result_has_its_columns() -> None:
    run = dataflare.run(flow({"s": generate(3)}, step("f", "filter", where="i > 7"), out=OUT), collect=["f"], check=True)
    assert pa.table(run).to_pydict() == {"i": []}


@pytest.mark.parametrize(
    ("what", "names"), [("collect", ["nobody"]), ("collect", ["f.nothing"]), ("inputs", {"nobody": pa.table({"i": [1]})})]
)
def test_a_wrong_name_is_told(what: str, names: object) -> None:
    run = dataflare.run(flow({"s": generate(3)}, step("f", "filter", where="i > 7"), out=OUT), **{what: names})  # type: ignore[arg-type]
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["code"] == "run.unknown-node"
    assert run.error["fix"]


def test_failures_are_in_the_run_or_raised() -> None:
    wrong = flow({"s": {"use": "nothing"}})
    assert dataflare.run(wrong).status == "failed"
    with pytest.raises(DataflareError, match=r"plugin\.unknown"):
        dataflare.run(wrong, check=True)


def test_it_can_be_awaited() -> None:
    run = asyncio.run(dataflare.run_async(flow({"s": generate(3)}, out=OUT), collect=["s"], check=True))
    assert run.table("s").num_rows == 3


def test_a_library_leaves_the_process_alone(capfd: pytest.CaptureFixture[str]) -> None:
    import signal

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    dataflare.run({"sources": {"s": {"use": "nothing"}}, "destinations": OUT})
    dataflare.run(flow({"s": generate(3)}, out=OUT), check=True)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr() == ("", "")
