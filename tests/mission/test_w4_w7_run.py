"""W4, W7: what `status` counts is what happened; a slow sink makes its source pause, and queues keep to their credit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare_plugins.actors_local.inbox import LocalInbox
from dataflare_plugins.blackhole.destination import BlackholeDestination
from dataflare_plugins.engine.running.resources import ResourceManager

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, step, told
from tests import commands


def test_status_counts_what_happened(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": generate(100)}, step("f", "filter", where="i % 4 = 0")))
    assert told(tmp_path, "status", "w.json")["status"] == "never run"
    run = told(tmp_path, "run", "w.json")
    status = told(tmp_path, "status", "w.json")
    assert status["status"] == "done"
    counts = {n["id"]: (n["rows_in"], n["rows_out"]) for n in status["nodes"]}
    assert counts == {n["id"]: (n["rows_in"], n["rows_out"]) for n in run["nodes"]} == {"s": (100, 100), "f": (100, 25), "out": (25, 25)}


SLOW = """
import time
def slowly(batch):
    time.sleep(0.15)
    return batch
"""


def test_status_watches_a_run_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    settings = {"runtime": {"lane": "streaming", "batch": {"rows": 10}}, "state": {"checkpoint": {"every": "200ms"}}}
    saved(tmp_path, flow({"s": generate(200)}, step("p", "python", file="slow.py", function="slowly"), **settings))
    dataflare_ = [sys.executable, "-m", "dataflare"]
    run = commands.Command([*dataflare_, "run", "w.json", "-q"], cwd=tmp_path)
    watch = commands.Command([*dataflare_, "status", "w.json", "-w", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    seen = []
    try:
        assert watch.stdout is not None
        for line in watch.stdout:
            seen.append(json.loads(line))
            if seen[-1]["status"] == "done":
                break
    finally:
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=30)
    assert run.wait(30) == 0
    assert watch.returncode == 130
    running = [s for s in seen if s["status"] == "running"]
    written = [next((n["rows_in"] for n in s["nodes"] if n["id"] == "out"), 0) for s in running]
    assert written == sorted(written)
    assert 0 < written[-1] <= 200
    assert all(s["checkpoint_age_seconds"] < 60 for s in running if "epoch" in s)
    assert {n["id"]: (n["rows_in"], n["rows_out"]) for n in seen[-1]["nodes"]} == {"s": (200, 200), "p": (200, 200), "out": (200, 200)}


def test_a_slow_sink_makes_the_source_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wide, rows = 1 << 20, 120
    seen: dict[str, Any] = {"held": 0, "read": 0}
    put, share, write = LocalInbox.put, ResourceManager.share, BlackholeDestination.write
    gate = threading.Event()

    def noted(self: LocalInbox, *args: Any, **kwargs: Any) -> Any:
        answer = put(self, *args, **kwargs)
        seen["held"] = max(seen["held"], self.held())
        seen["read"] += 1
        return answer

    def shared(self: ResourceManager, plan: Any) -> Any:
        seen["shares"] = share(self, plan)
        return seen["shares"]

    def slow(self: BlackholeDestination, batch: Any) -> Any:
        gate.wait(0.02)
        return write(self, batch)

    monkeypatch.setattr(LocalInbox, "put", noted)
    monkeypatch.setattr(ResourceManager, "share", shared)
    monkeypatch.setattr(BlackholeDestination, "write", slow)
    source = {"s": generate(rows, i="i", pad=f"repeat('x', {wide})")}
    memory = {"memory": "224MiB", "lane": "streaming", "batch": {"rows": 4}}
    run = dataflare.run(flow(source, out={"out": {"use": "blackhole"}}, runtime=memory), check=True)
    assert run.rows["written"] == rows
    assert seen["held"] <= seen["shares"].inbox + 5 * wide
    assert seen["held"] < rows * wide / 2, "everything was queued: nobody paused"


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
def test_a_row_of_a_gibibyte_is_refused_not_fatal(lane: str, tmp_path: Path) -> None:
    """One row among small ones is larger than all memory: a clear error, and the process stays as small as it was told."""
    pad = "repeat('x', CASE WHEN i = 50 THEN 1073741824 ELSE 10 END)"
    saved(tmp_path, flow({"s": generate(100, i="i", pad=pad)}, runtime={"memory": "512MiB", "lane": lane}))
    run = told(tmp_path, "run", "w.json", code=4)
    assert run["error"]["code"] == "world.out-of-memory"
    assert run["peak_memory_bytes"] < 512 << 20
    assert run["rows"]["written"] == 0
