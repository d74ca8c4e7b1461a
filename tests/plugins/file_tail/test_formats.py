"""Lines of every format and encoding become the rows that DuckDB makes of the same file; what is none is a letter with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.file_tail.driver import TAIL, Tail, append, lines

from dataflare_plugins.file_tail.source import FileTailSource
from dataflare_sdk import DataflareError, ExtractSpec
from dataflare_sdk.testing import FakeContext, SourceSuite


def rows(tail: Tail) -> list[dict[str, Any]]:
    return [row for b in tail.batches for row in b.data.to_pylist()]


def test_text_is_every_line_as_it_is(tmp_path: Path) -> None:
    append(tmp_path / "app.log", '\ufeffeins\r\n\n zw\u00f6lf \nd"rei,\n'.encode())
    tail = Tail(tmp_path, format="text", metadata=["file", "line", "position"]).until(4)
    assert [r["value"] for r in rows(tail)] == ["eins", "", " zw\u00f6lf ", 'd"rei,']
    assert [(r["_file"], r["_line"], r["_position"]) for r in rows(tail)] == [
        ("app.log", 1, 0),
        ("app.log", 2, 9),
        ("app.log", 3, 10),
        ("app.log", 4, 19),
    ]
    tail.close()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "koi8-r", "shift_jis", "utf-8"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    texts = {
        "latin-1": "\u00e4\u00f6\u00fc",
        "cp1252": "5 \u20ac",
        "koi8-r": "\u043f\u0440\u0438",
        "shift_jis": "\u65e5\u672c\u8868",
        "utf-8": "\U0001f600",
    }
    made = [f'{{"v": "{texts[encoding]}{i}"}}' for i in range(5)]
    append(tmp_path / "app.log", "".join(x + "\n" for x in made).encode(encoding))
    tail = Tail(tmp_path, encoding=encoding, columns={"v": "VARCHAR"}).until(5)
    assert tail.values == [f"{texts[encoding]}{i}" for i in range(5)]
    tail.close()


@pytest.mark.parametrize("format", ["jsonl", "text", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "shift_jis"])
def test_bad_bytes_are_a_letter_with_line_and_byte(format: str, encoding: str, tmp_path: Path) -> None:
    good = {"jsonl": b'{"n": 1}\n', "text": b"one\n", "csv": b"1\n"}[format]
    head = b"n\n" if format == "csv" else b""
    append(tmp_path / "app.log", head + good + b"\xff\xfe \x81\n" + good)
    tail = Tail(tmp_path, format=format, encoding=encoding).until(3)
    [bad] = tail.rejected
    assert bad.code == "data.bad-encoding"
    assert bad.position == {"file": "app.log", "line": 2 + (format == "csv"), "position": len(head + good)}
    assert r"\xff" in bad.raw
    assert len(tail.values) == 2
    tail.close()


def test_poison_lines_of_json(tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines([0]) + b'no json\n\n[1]\n{"n": "x"}\n{"n": 1, "new": 2}\n{}\n' + lines([2]))
    tail = Tail(tmp_path, rows=3).until(7)
    assert tail.values == [0, 1, None, 2]
    assert [(r.code, r.position["line"], r.raw) for r in tail.rejected] == [
        ("data.bad-json", 2, "no json"), ("data.bad-json", 4, "[1]"), ("data.bad-value", 5, '{"n": "x"}'),
    ]  # fmt: skip
    text = (tmp_path / "app.log").read_bytes()
    for r in tail.rejected:
        assert text[r.position["position"] :].startswith(r.raw.encode())
    tail.close()


@pytest.mark.parametrize("format", ["jsonl", "text", "csv"])
def test_a_line_that_is_too_long(format: str, tmp_path: Path) -> None:
    good = {"jsonl": b'{"n": 1}\n', "text": b"one\n", "csv": b"1\n"}[format]
    log = tmp_path / "app.log"
    append(log, (b"n\n" if format == "csv" else b"") + good + b"x" * 5000)
    tail = Tail(tmp_path, format=format, max_message="1000B")
    tail.until(1).quiet()
    append(log, b"y" * 3_000_000)
    tail.quiet()
    assert len(tail.seen) == 1
    append(log, b"\n" + good + b"z" * 1001 + b"\n" + good)
    tail.until(5)
    first, second = tail.rejected
    assert (first.code, second.code) == ("data.message-too-large",) * 2
    assert "3005000" in first.cause
    assert len(first.raw) <= 65536
    assert first.raw.startswith("xxx")
    assert len(tail.values) == 3
    start = tail.batches[0].offset
    again = Tail(tmp_path, offset=start, until=tail.offset, format=format, max_message="1000B").whole()
    assert (again.values, [r.position for r in again.rejected]) == (tail.values, [r.position for r in tail.rejected])
    again.close()
    tail.close()


CSV = 'id;name;d\n1;a;2024-01-01\n2;"b;\n""c""";NA\n3;;2024-02-30\n4;x\n5;y;2024-03-01\n'


def test_csv_is_what_duckdb_reads(tmp_path: Path) -> None:
    (tmp_path / "whole.csv").write_text(CSV)
    kinds = {"id": "INTEGER", "name": "VARCHAR", "d": "DATE"}
    tail = Tail(tmp_path, format="csv", columns=kinds, null_values=["NA"], metadata=["line"], rows=2)
    for char in CSV.encode():
        append(tmp_path / "app.log", bytes([char]))
    tail.until(5)
    with duckdb.connect() as con:
        wanted = (
            con.sql(
                f"SELECT * FROM read_csv('{tmp_path}/whole.csv', delim=';', quote='\"', escape='\"', columns={kinds!r}, header=true, nullstr=['', 'NA'], ignore_errors=true, auto_detect=false)"
            )
            .to_arrow_table()
            .to_pylist()
        )
    assert [{k: v for k, v in r.items() if k != "_line"} for r in rows(tail)] == wanted
    assert [r["_line"] for r in rows(tail)] == [2, 3, 7]
    assert [(r.code, r.position["line"]) for r in tail.rejected] == [("data.bad-value", 5), ("data.ragged-row", 6)]
    tail.close()


def test_csv_headers_are_each_files_own(tmp_path: Path) -> None:
    append(tmp_path / "a.csv", b"n,x\n1,a\n2,b\n")
    append(tmp_path / "b.csv", b"x,n,more\nc,3,0\n")
    tail = Tail(tmp_path, path="*.csv", format="csv", columns={"n": "BIGINT", "x": "VARCHAR"})
    tail.until(3)
    append(tmp_path / "a.csv", b"4,d\n")
    again = Tail(tmp_path, offset=tail.offset, path="*.csv", format="csv", columns={"n": "BIGINT", "x": "VARCHAR"})
    again.until(1)
    assert sorted((r["n"], r["x"]) for r in [*rows(tail), *rows(again)]) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    append(tmp_path / "c.csv", b"y\n1\n")
    with pytest.raises(DataflareError, match=r"data\.missing-column"):
        again.quiet()
    again.close()
    tail.close()


def test_a_quote_that_is_never_closed_costs_its_line(tmp_path: Path) -> None:
    append(tmp_path / "app.log", b'n\n1\n"2\n3\n' + b"4\n" * 600 + b"5\n")
    tail = Tail(tmp_path, format="csv", max_message="1000B").until(604)
    assert [(r.code, r.position["line"]) for r in tail.rejected] == [("data.unbalanced-quote", 3)]
    assert tail.values == [1, 3, *[4] * 600, 5]
    tail.close()


def test_columns_are_learned_and_kept(tmp_path: Path) -> None:
    source = FileTailSource(FileTailSource.configure({"path": "*.log"}), FakeContext(tmp_path, "log"))
    with pytest.raises(DataflareError, match=r"file-tail\.no-columns"):
        source.discover(TAIL, None)
    source.ctx.offline = True
    assert source.discover(TAIL, None)[0].schema is None


@pytest.mark.parametrize(
    ("config", "path"),
    [({"encoding": "utf-16"}, "encoding"), ({"encoding": "nope"}, "encoding"), ({"columns": {"n": "NOPE"}}, "columns.n"), ({"format": "text", "columns": {"n": "INT"}}, "columns"), ({"columns": {"_file": "INT"}, "metadata": ["file"]}, "metadata")],
)  # fmt: skip
def test_what_is_refused(config: dict[str, Any], path: str, tmp_path: Path) -> None:
    with pytest.raises(DataflareError) as found:
        FileTailSource(FileTailSource.configure({"path": "a.log", **config}), FakeContext(tmp_path)).discover(TAIL, None)
    assert (found.value.exit_code, found.value.problems[0].path) == (3, path)
    assert found.value.problems[0].fix


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_it_is_written_and_read_the_lines_are_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    values = data.draw(st.lists(st.text(st.characters(blacklist_characters="\n\r", codec="utf-8"), max_size=20), max_size=25))
    raw = "".join(v + "\n" for v in values).encode()
    tail = Tail(folder, format="text", rows=data.draw(st.integers(1, 5)))
    tail.ctx.linger = 0.0
    at = 0
    (folder / "app.log").touch()
    while at < len(raw):
        size = data.draw(st.integers(1, 40))
        append(folder / "app.log", raw[at : at + size])
        at += size
        if data.draw(st.booleans()):
            tail.reader.look()
            tail.next(0.0)
        if data.draw(st.integers(0, 5)) == 0:
            before, batches = tail, tail.batches
            tail.close()
            tail = Tail(folder, offset=before.offset, format="text", rows=data.draw(st.integers(1, 5)))
            tail.batches = [*batches]
    tail.until(len(values))
    assert tail.values == ["" if v == "\ufeff" and i == 0 else v.removeprefix("\ufeff") if i == 0 else v for i, v in enumerate(values)]
    tail.close()


def _once(folder: Path, **config: Any) -> Any:
    """Return what makes the source of a `--once` run: it stops where the file ended when it began."""

    class Once(FileTailSource):
        def open(self, partition: Any, extract: ExtractSpec, offset: Any, until: Any = None) -> Any:
            return super().open(partition, extract, offset, until if until is not None else self.position(partition, extract))

    return lambda ctx: Once(Once.configure({"path": "app.log", **config}), ctx)


@pytest.mark.parametrize("format", ["jsonl", "csv", "text"])
def test_suite(format: str, tmp_path: Path) -> None:
    text = {"jsonl": '{{"id": {0}, "name": "n{0}"}}\n', "csv": "{0},n{0}\n", "text": "line {0}\n"}[format]
    (tmp_path / "app.log").write_text(("id,name\n" if format == "csv" else "") + "".join(text.format(i) for i in range(12)))
    config: dict[str, Any] = {"format": format, "metadata": ["line"]}
    if format != "text":
        config["columns"] = {"id": "BIGINT", "name": "VARCHAR"}

    def make(ctx: Any) -> FileTailSource:
        ctx.linger = 0.0
        made: FileTailSource = _once(tmp_path, **config)(ctx)
        return made

    SourceSuite(make, folder=tmp_path, extract=TAIL).assert_conforms()
