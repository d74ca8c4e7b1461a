"""K5: `state show`, `set` and `reset`: what is kept, what a reset forgets, and names that are not there."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, flow, saved, told


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    db = sqlite3.connect(tmp_path / "shop.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at INTEGER)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(1, 1), (2, 2), (3, 2)])
    db.commit()
    db.close()
    source = {"use": "sqlite", "with": {"path": "shop.db", "table": "t"}, "extract": {"mode": "incremental", "cursor": "at", "key": ["id"]}}
    saved(tmp_path, flow({"s": source}, out={"out": {"use": "blackhole"}}))
    return tmp_path


def read(folder: Path) -> int:
    return int(told(folder, "run", "w.json")["rows"]["read"])


def test_an_offset_that_is_set_counts_once(shop: Path) -> None:
    assert (read(shop), read(shop)) == (3, 0)
    told(shop, "state", "set", "w.json", "--stream", "s", "--offset", '{"v": 1, "cursor": 2, "seen": []}')
    assert (read(shop), read(shop)) == (2, 0)


def test_a_reset_forgets_everything(shop: Path) -> None:
    assert told(shop, "state", "show", "w.json")["streams"] == {}
    assert read(shop) == 3
    shown = told(shop, "state", "show", "w.json", "--stream", "s")["streams"]["s"]
    assert set(shown) == {"offset", "epoch", "fence", "run_id", "saved_at"}
    assert told(shop, "state", "reset", "w.json", "--yes")["forgotten"] == 1
    assert told(shop, "state", "show", "w.json")["streams"] == {}
    told(shop, "state", "set", "w.json", "--stream", "s", "--offset", '{"v": 1, "cursor": 2, "seen": []}')
    told(shop, "state", "reset", "w.json", "--yes")
    assert told(shop, "state", "show", "w.json")["streams"] == {}
    assert read(shop) == 3


def test_one_source_is_reset_alone(shop: Path) -> None:
    assert read(shop) == 3
    told(shop, "state", "reset", "w.json", "--stream", "s", "--yes")
    assert read(shop) == 3


@pytest.mark.parametrize("verb", [["show"], ["reset", "--yes"], ["set", "--offset", "{}"]], ids=lambda v: v[0])
def test_a_source_that_is_not_there(verb: list[str], shop: Path) -> None:
    told_ = told(shop, "state", verb[0], "w.json", "--stream", "nobody", *verb[1:], code=2)
    assert told_["error"]["code"] == "usage.unknown-node"
    assert told_["error"]["fix"] == "there are s"


def test_an_offset_that_is_no_json(shop: Path) -> None:
    assert cli(shop, "state", "set", "w.json", "--stream", "s", "--offset", "[1]").returncode == 2
