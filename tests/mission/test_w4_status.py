"""W4: `status` shows rows, bytes, state, lag and the checkpoint's age of every node, of a run that another process is at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, told
from tests.gated import ROWS, WRITTEN, Gated
from tests.servers.receiver import until


def test_a_run_under_way_node_by_node(tmp_path: Path) -> None:
    run = Gated(tmp_path)
    try:
        run.allow(1)
        # Before the first checkpoint there is only what goes on now.
        early = until(lambda: (s := told(tmp_path, "status", "w.json"))["nodes"] and s)
        if "epoch" not in early:
            assert [n["rows_in"] for n in early["nodes"]] == [0, 0, 0, 0]
            assert "no checkpoint yet" in cli(tmp_path, "status", "w.json").stdout
        assert early["nodes"][0]["live"]["rows_in"] >= 100
        run.advance(lambda: run.written() > 300)
        status = until(lambda: (s := told(tmp_path, "status", "w.json")).get("epoch", 0) > 1 and s)
        nodes = {n["id"]: n for n in status["nodes"]}
        assert list(nodes) == ["s", "g", "f", "o"]
        assert 0 < nodes["o"]["rows_out"] <= run.written() < WRITTEN
        assert nodes["s"]["rows_out"] == nodes["g"]["rows_in"]
        assert nodes["s"]["bytes"] >= 8 * nodes["s"]["rows_out"]
        assert nodes["o"]["late"] == nodes["o"]["skipped"] == 0
        assert status["checkpoint_age_seconds"] >= 0
        text = cli(tmp_path, "status", "w.json").stdout
        assert text.splitlines()[1].split()[:3] == ["node", "kind", "in"]
        for word in ("bytes", "late", "in now", "bytes now", "behind by", "checkpoint", "epoch"):
            assert word in text, text
    finally:
        run.finish()
    done = told(tmp_path, "status", "w.json")
    assert done["status"] == "done"
    assert done["nodes"][0]["rows_in"] == ROWS
    assert all("live" not in n for n in done["nodes"])
    assert json.loads(json.dumps(done)) == done
    assert "now" not in cli(tmp_path, "status", "w.json").stdout
