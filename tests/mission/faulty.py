"""Faulty inputs, made by name: what a table row of docs/guides/faults.md speaks of."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CSV = "id,name,amount\n1,a,1.5\n2,b,2.5\n3,c,3.5\n"
JSON = '{"id": 1, "name": "a", "amount": 1.5}\n{"id": 2, "name": "b", "amount": 2.5}\n{"id": 3, "name": "c", "amount": 3.5}\n'
COLUMNS = {"id": "BIGINT", "name": "VARCHAR", "amount": "DOUBLE"}

Maker = Callable[[Path], str]
"""Writes the input into a folder and returns the path a workflow names."""


def text(name: str, content: str | bytes) -> Maker:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return make


def packed(name: str, content: str, keep: float) -> Maker:
    def make(folder: Path) -> str:
        raw = gzip.compress("".join(f"{content.splitlines()[1]}\n" for _ in range(50_000)).encode(), 1)
        (folder / name).write_bytes(raw[: int(len(raw) * keep)])
        return name

    return make


def folder_of_nothing(folder: Path) -> str:
    (folder / "in").mkdir()
    return "in"


def cut_parquet(folder: Path) -> str:
    pq.write_table(pa.table({"id": [1], "name": ["a"], "amount": [1.5]}), folder / "whole.parquet")
    raw = (folder / "whole.parquet").read_bytes()
    (folder / "in.parquet").write_bytes(raw[: len(raw) // 2])
    (folder / "whole.parquet").unlink()
    return "in.parquet"


def other_columns(folder: Path) -> str:
    pq.write_table(pa.table({"id": [1], "title": ["a"]}), folder / "in.parquet")
    return "in.parquet"


FAULTS: dict[tuple[str, str], Maker] = {
    ("ragged rows", "csv"): text("in.csv", "id,name,amount\n1,a,1.5\n2,b\n3,c,3.5,9\n4,d,4.5\n"),
    ("wrong type", "csv"): text("in.csv", "id,name,amount\n1,a,1.5\nx,b,2.5\n3,c,3.5\n"),
    ("wrong type", "jsonl"): text("in.jsonl", '{"id": 1, "name": "a"}\n{"id": "x", "name": "b"}\n{"id": 3, "name": "c"}\n'),
    ("bad UTF-8", "csv"): text("in.csv", b"id,name,amount\n1,a,1.5\n2,\xff\xfe,2.5\n3,c,3.5\n"),
    ("bad UTF-8", "jsonl"): text("in.jsonl", b'{"id": 1, "name": "a"}\n{"id": 2, "name": "\xff\xfe"}\n{"id": 3, "name": "c"}\n'),
    ("broken line", "jsonl"): text("in.jsonl", '{"id": 1, "name": "a"}\n{"id": 2, "na\n{"id": 3, "name": "c"}\n'),
    ("no object", "jsonl"): text("in.jsonl", '{"id": 1, "name": "a"}\n[1, 2]\n{"id": 3, "name": "c"}\n'),
    ("unbalanced quote", "csv"): text("in.csv", 'id,name,amount\n1,a,1.5\n2,"b,2.5\n3,c,3.5\n'),
    ("truncated .gz", "csv"): packed("in.csv.gz", CSV, 0.5),
    ("truncated .gz", "jsonl"): packed("in.jsonl.gz", JSON, 0.5),
    ("cut in half", "parquet"): cut_parquet,
    ("empty file", "csv"): text("in.csv", ""),
    ("empty file", "jsonl"): text("in.jsonl", ""),
    ("empty file", "parquet"): text("in.parquet", ""),
    ("header only", "csv"): text("in.csv", "id,name,amount\n"),
    ("header twice", "csv"): text("in.csv", "id,name,amount\n1,a,1.5\nid,name,amount\n3,c,3.5\n"),
    ("folder without files", "csv"): folder_of_nothing,
    ("folder without files", "parquet"): folder_of_nothing,
    ("missing column", "csv"): text("in.csv", "id,title,amount\n1,a,1.5\n"),
    ("missing column", "parquet"): other_columns,
    ("no such file", "csv"): lambda folder: "absent.csv",
    ("no such file", "jsonl"): lambda folder: "absent.jsonl",
    ("no such file", "parquet"): lambda folder: "absent.parquet",
}


def workflow(kind: str, path: str, policy: str, lane: str) -> dict:
    """Return a workflow that reads a faulty input and writes CSV."""
    return {
        "name": "faulty",
        "sources": {"in": {"use": kind, "with": {"path": path, "columns": COLUMNS}}},
        "processors": [{"id": "more", "use": "map", "with": {"set": {"twice": "id * 2"}}}],
        "destinations": {"out": {"use": "csv", "with": {"path": "out.csv"}}},
        "errors": {"on_record": policy},
        "runtime": {"lane": lane},
    }
