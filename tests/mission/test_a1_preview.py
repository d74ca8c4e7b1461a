"""A1: `preview` shows the rows at any node or output, and writes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import Document, cli, flow, generate, saved, step, told


def branching(**out: object) -> Document:
    return flow(
        {"s": generate(10, i="i", v="CASE WHEN i % 2 = 0 THEN i END")},
        step("paid", "filter", where="v > 4"),
        step("way", "route", "paid.else", routes={"low": "i < 2"}, **{"else": "rest"}),
        out={"out": {"use": "csv", "from": ["way.low", "paid"], "with": {"path": "o.csv"}}, "one": {"use": "csv", "from": "way.rest", "with": {"path": "p.csv"}}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("s", [0, 1, 2, 3]),
        ("paid", [6, 8]),
        ("paid.else", [0, 1, 2, 3]),
        ("way.low", [0, 1]),
        ("way.rest", [2, 3, 4, 5]),
        ("one", [2, 3, 4, 5]),
        ("out", [0, 1, 6, 8]),
    ],
)
def test_every_output_can_be_looked_at(node: str, expected: list[int], tmp_path: Path) -> None:
    saved(tmp_path, branching())
    found = told(tmp_path, "preview", "w.json", node, "-n", "4")
    assert found["node"] == node
    assert found["columns"][0] == {"name": "i", "type": "BIGINT"}
    assert sorted(row[0] for row in found["rows"]) == expected
    assert not (tmp_path / "o.csv").exists()
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("node", ["nobody", "paid.nothing", "way", "out.else"])
def test_what_is_not_there_is_a_usage_error(node: str, tmp_path: Path) -> None:
    saved(tmp_path, branching())
    assert told(tmp_path, "preview", "w.json", node, code=2)["error"]["code"].endswith("unknown-node")


def test_a_value_is_one_line_and_moves_nothing(tmp_path: Path) -> None:
    """Rows come from anywhere: a second line of a cell would look like one of ours."""
    saved(
        tmp_path,
        flow(
            {"s": generate(1, v="'a' || chr(10) || 'all is well' || chr(27) || '[2J' || chr(9) || 'b'")},
            out={"out": {"use": "csv", "with": {"path": "o.csv"}}},
        ),
    )
    shown = cli(tmp_path, "preview", "w.json", "s").stdout
    assert "a\\nall is well?[2J\\tb" in shown
    assert len(shown.splitlines()) == 3
