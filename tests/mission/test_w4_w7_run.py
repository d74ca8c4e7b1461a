"""W4, W7: what `status` counts is what happened; a slow sink makes its source pause, and queues keep to their credit."""

from __future__ import annotations

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


def test_status_counts_what_happened(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": generate(100)}, step("f", "filter", where="i % 4 = 0")))
    assert told(tmp_path, "status", "w.json")["status"] == "never run"
    run = told(tmp_path, "run", "w.json")
    status = told(tmp_path, "status", "w.json")
    assert status["status"] == "done"
    counts = {n["id"]: (n["rows_in"], n["rows_out"]) for n in status["nodes"]}
    assert counts == {n["id"]: (n["rows_in"], n["rows_out"]) for n in run["nodes"]} == {"s": (100, 100), "f": (100, 25), "out": (25, 25)}


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
