"""Incremental reading of files: by name and time, with columns that an earlier run has settled."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import dataflare
from dataflare.lifecycle import Runtime

FORMATS = ["csv", "jsonl", "parquet", "arrow"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()


def put(use: str, name: str, **columns: list[Any]) -> None:
    table, path = pa.table(columns), f"in/{name}.{use}"
    if use == "arrow":
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        duckdb.from_arrow(table).query("t", f"COPY t TO '{path}' (FORMAT {'json' if use == 'jsonl' else use})")


def run(use: str) -> dataflare.Run:
    source = {"use": use, "with": {"path": "in/"}, "extract": {"mode": "incremental"}}
    out = {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}}
    return dataflare.run({"name": "w", "sources": {"s": source}, "destinations": {"out": out}})


def rows() -> list[tuple[Any, ...]]:
    with duckdb.connect("o.duckdb") as con:
        return con.execute("FROM t ORDER BY ALL").fetchall()


@pytest.mark.parametrize("use", FORMATS)
def test_what_was_found_once_is_not_guessed_again(use: str) -> None:
    put(use, "a", id=[1], v=[2])
    assert run(use).rows["read"] == 1
    put(use, "b", id=[2], v=["no number"])
    failed = run(use)
    assert (failed.status, failed.rows["read"]) == ("failed", 0)
    assert failed.error is not None
    assert failed.error["code"].startswith("data.")
    for path in Path("in").iterdir():  # files that were read may be moved away
        path.unlink()
    nothing = run(use)
    assert (nothing.status, nothing.rows["read"], nothing.error) == ("done", 0, None)
    put(use, "c", id=[3], v=[4], w=["new"])
    assert run(use).status == "done"
    assert rows() == [(1, 2, None), (3, 4, "new")]


def test_no_file_at_all_is_an_error_the_first_time() -> None:
    failed = run("csv")
    assert failed.error is not None
    assert failed.error["code"] == "world.missing-input"


@pytest.fixture
def guarded() -> Iterator[str]:
    """Serve one file to whoever knows the password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = "Basic " + base64.b64encode(b"me:pa ss").decode()
            self.send_response(200 if self.headers.get("Authorization") == wanted else 401)
            self.end_headers()
            self.wfile.write(b"id\n1\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://me:pa%20ss@127.0.0.1:{server.server_port}/a.csv"
    server.shutdown()
    thread.join()
    server.server_close()


def test_user_and_password_of_an_address_are_used_and_not_shown(guarded: str) -> None:
    document = {"name": "w", "sources": {"s": {"use": "csv", "with": {"path": guarded}}}, "destinations": {"out": {"use": "blackhole"}}}
    assert dataflare.run(document, check=True).rows["read"] == 1
    document["sources"] = {"s": {"use": "csv", "with": {"path": guarded.replace("me:", "you:")}}}
    failed = dataflare.run(document)
    assert failed.error is not None
    assert "401" in failed.error["message"]
    assert "pa%20ss" not in json.dumps(failed.document)


def test_validate_knows_offline_what_the_last_run_saw(guarded: str) -> None:
    document = {
        "name": "w",
        "sources": {"s": {"use": "csv", "with": {"path": guarded}}},
        "processors": [{"id": "m", "use": "map", "with": {"set": {"x": "id + 1"}}}],
        "destinations": {"out": {"use": "blackhole"}},
    }

    def codes(where: str) -> list[str]:
        document["processors"] = [{"id": "m", "use": "map", "with": {"set": {"x": where}}}]
        with Runtime(Path()) as runtime:
            return [p.code for p in runtime.validate(runtime.parse(document)).problems]

    assert codes("idd + 1") == ["workflow.unknown-schema"]
    codes("id + 1")
    dataflare.run(document, check=True)
    assert codes("id + 1") == []
    assert codes("idd + 1") == ["expression.unknown-column"]
