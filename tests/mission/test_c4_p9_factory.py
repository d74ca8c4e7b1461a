"""C4, P9: a wrong configuration is told at its place with nothing opened; what was built is closed on every path."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare_plugins.files.csv_source import CsvSource
from dataflare_plugins.filter.processor import FilterProcessor
from dataflare_plugins.map.processor import MappingProcessor
from dataflare_plugins.sqlite.destination import SqliteDestination

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, step

BUILT = (CsvSource, FilterProcessor, MappingProcessor, SqliteDestination)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """Count how often components are built and closed."""
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("id\n1\n2\n")
    found: Counter[str] = Counter()

    def counting(kind: type, method: str, sign: int) -> None:
        original = getattr(kind, method)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            found[kind.__name__] += sign
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, method, wrapped)

    for kind in BUILT:
        counting(kind, "__init__", 1)
        counting(kind, "close", -1)
    return found


def document(lane: str = "streaming", **wrong: Any) -> dict[str, Any]:
    source = {"use": "csv", "with": {"path": "in.csv", **wrong.get("source", {})}}
    out = {"use": "sqlite", "with": {"path": "o.db", "table": "t", **wrong.get("out", {})}}
    steps = [step("f", "filter", where=wrong.get("where", "id > 0")), step("m", "map", set={"x": wrong.get("x", "id + 1")})]
    return flow({"s": source}, *steps, out={"out": out}, runtime={"lane": lane})


@pytest.mark.parametrize(
    ("wrong", "code", "where"),
    [
        ({"source": {"prot": 1}}, "config.unknown-key", "sources.s.with.prot"),
        ({"source": {"header": "maybe"}}, "config.invalid", "sources.s.with.header"),
        ({"source": {"columns": {"id": "NUMBR"}}}, "config.bad-type", "sources.s.with.columns.id"),
        ({"out": {"table": 5}}, "config.invalid", "destinations.out.with.table"),
        ({"where": "idd > 0"}, "expression.unknown-column", "processors[0].with.where"),
        ({"x": "lower(id"}, "expression", "processors[1].with.set.x"),
    ],
)
def test_a_wrong_configuration_is_told_at_its_place(wrong: dict[str, Any], code: str, where: str, tally: Counter[str]) -> None:
    run = dataflare.run(document(**wrong))
    assert run.error is not None
    assert run.error["code"].startswith(code)
    assert run.error["where"] == where
    assert not Path("o.db").exists(), "something was opened"
    assert not [n for n, left in tally.items() if left > 0], tally


@pytest.mark.parametrize("failing", [(CsvSource, "open"), (FilterProcessor, "output_schemas"), (SqliteDestination, "prepare"), (SqliteDestination, "open"),
                                     (SqliteDestination, "write"), (SqliteDestination, "commit"), (MappingProcessor, "output_schemas"), None])  # fmt: skip
def test_what_was_built_is_closed(failing: tuple[type, str] | None, tally: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("made for this test")

    if failing is not None:
        monkeypatch.setattr(*failing, broken)
    run = dataflare.run(document())
    assert run.status == ("done" if failing is None else "failed")
    if failing is None or failing[1] != "output_schemas":
        assert set(tally) == {k.__name__ for k in BUILT}
    assert not [n for n, left in tally.items() if left > 0], tally
