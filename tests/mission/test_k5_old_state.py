"""K5: a run goes on with the state that the first version of every step of time kept.

`golden/state-2026-11-27.zip` is the folder of a workflow after its first run, in the form that its name dates: windows, sessions, keys, waiting rows
of two streams and a table, each as chunks of a checkpoint. It is never made anew; a new form gets a file of its own beside it.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from flows import sqlite_rows, told

MORE = [
    {"n": 4, "k": 2, "at": "2026-01-01 00:13:30", "m": 40, "k2": 1, "at2": "2026-01-01 00:14:30"},
    {"n": 5, "k": 2, "at": "2026-01-01 01:30:00", "m": 50, "k2": 2, "at2": "2026-01-01 01:30:00"},
]


def test_state_of_the_first_form_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parent / "golden" / "state-2026-11-27.zip") as kept:
        kept.extractall(tmp_path)
    (tmp_path / "in" / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MORE))
    assert told(tmp_path, "run", "w.yaml")["rows"]["late"] == 1  # row 4, for the step without lateness

    def rows(columns: str, table: str) -> list[tuple[object, ...]]:
        return sqlite_rows(tmp_path / "o.db", f"SELECT {columns} FROM {table} ORDER BY 1, 2")

    windows = [("00:00", 1, 1, 1), ("00:10", 1, 1, 3), ("00:10", 2, 2, 6)]  # 00:12 and 00:13:30 share one
    assert rows("substr(window_start, 12, 5), k, n, CAST(total AS INTEGER)", "tumbling") == windows
    assert rows("substr(window_start, 12, 5), k, ids", "sessions") == [("00:01", 1, "[1]"), ("00:12", 2, "[2,4]"), ("00:14", 1, "[3]")]
    assert rows("n, k", "first") == [(1, 1), (2, 2), (5, 2)]
    assert rows("n, m", "pairs") == [(1, 10), (2, 20), (3, 40), (4, 20), (5, 50)]
    assert rows("n, m", "beside") == [(1, 10), (2, 20), (3, 10), (4, 50), (5, 50)]
