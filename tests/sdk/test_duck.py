"""DuckDB connections: what sessions of the process may always do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflare_sdk import duck


def test_sessions_read_json_under_any_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    monkeypatch.setattr(duck, "_shared", None)  # an instance of its own: the bound would stay with the others
    try:
        duck.bound_sessions(1 << 20)
        with duck.session() as one, duck.session() as other:
            readers = [c.sql(f"FROM read_json('{file}', maximum_object_size={8 << 20})").to_arrow_reader(1) for c in (one, other)]
            assert [r.read_all().to_pylist() for r in readers] == [[{"a": 1}, {"a": 2}]] * 2
    finally:
        assert duck._shared is not None
        duck._shared.close()
