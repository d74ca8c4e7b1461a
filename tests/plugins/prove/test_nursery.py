"""A run that moves slowly is waited for; one that does not move is stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.child import Order
from dataflare_plugins.prove.nursery import Nursery
from dataflare_sdk import DataflareError

WORKFLOW = """
name: slow
sources: {s: {use: generate, with: {rows: 6, columns: {n: i}}}}
destinations: {d: {use: jsonl, with: {path: out.jsonl}}}
runtime: {lane: streaming, batch: {rows: 1, linger: 0s}}
"""


@pytest.fixture
def order(tmp_path: Path) -> Iterator[Callable[..., Order]]:
    (tmp_path / "w.yaml").write_text(WORKFLOW)
    with Runtime(tmp_path) as runtime:
        workflow = runtime.parse(tmp_path / "w.yaml")
        yield lambda **more: Order(workflow, str(tmp_path), "", "", **more)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path / "runs")
    yield made
    made.close()


def test_a_slow_run_is_waited_for(nursery: Nursery, order: Callable[..., Order]) -> None:
    """It takes longer than the patience with what does not move."""
    done: dict[str, Any] = nursery.finish(order(pace=1.5), patience=4.0)
    assert (done["status"], done["rows"]["written"]) == ("done", 6)


def test_a_run_that_does_not_move_is_stuck(nursery: Nursery, order: Callable[..., Order]) -> None:
    with pytest.raises(DataflareError, match="does not come to its end") as caught:
        nursery.finish(order(pace=300.0), patience=3.0)
    assert caught.value.code == "prove.stuck"
    assert "in sleep" in str(caught.value) or "failpoint" in str(caught.value)
