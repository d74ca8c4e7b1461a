"""Through the engine: the same rows as in Python, bad rows among the dead letters, lost state read again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.plugins.isolation_wasm.building import EXAMPLES, GUESTS, built, example
from tests.plugins.isolation_wasm.loading import MANIFEST

import dataflare

Install = Callable[..., Path]
STEPS = """\
import pyarrow as pa
import pyarrow.compute as pc

def total(batch):
    return batch.append_column("total", pc.multiply(batch["price"], pc.cast(batch["quantity"], pa.float64())))

def shout(batch):
    return batch.set_column(0, "text", pc.ascii_upper(batch["text"]))
"""


def run(folder: Path, steps: list[dict[str, Any]], **more: Any) -> Any:
    """Run steps over rows.parquet and return the run; what arrived lies in out.parquet."""
    flow = {"dataflare": 1, "name": "twins", "sources": {"rows": {"use": "parquet", "with": {"path": "rows.parquet"}}}, "processors": steps}
    last = steps[-1]["id"]
    flow["destinations"] = {"out": {"from": last, "use": "parquet", "with": {"path": "out.parquet"}}}
    (folder / "flow.json").write_text(json.dumps({**flow, **more}))
    return dataflare.run(folder / "flow.json")


def arrived(folder: Path) -> pa.Table:
    return pq.read_table(folder / "out.parquet")


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    dice = random.Random(11)
    rows = 70_000
    table = pa.table(
        {
            "text": [dice.choice([None, "a", "Zoë", "x" * 40, ""]) for _ in range(rows)],
            "price": pa.array([dice.choice([None, dice.random() * 9]) for _ in range(rows)], pa.float64()),
            "quantity": pa.array([dice.choice([None, 1, 5, -3]) for _ in range(rows)], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "steps.py").write_text(STEPS)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder", "columns"),
    [
        ("total", "wasm-c-total", {"text": "VARCHAR", "price": "DOUBLE", "quantity": "BIGINT", "total": "DOUBLE"}),
        ("shout", "wasm-zig-shout", None),
    ],
    ids=["c", "zig"],
)
def test_a_guest_gives_the_rows_python_gives(orders: Path, install: Install, name: str, folder: str, columns: Any) -> None:
    file, wasm = example(folder)
    install(f"example-{folder}", (EXAMPLES / folder / "plugin.yaml").read_text(), {file: wasm})
    isolated = run(orders, [{"id": "step", "use": name}])
    assert isolated.status == "done", isolated.error
    guest = arrived(orders)
    (orders / "out.parquet").unlink()
    python = {"file": "steps.py", "function": name, "columns": columns}
    assert run(orders, [{"id": "step", "use": "python", "with": {k: v for k, v in python.items() if v}}]).status == "done"
    assert guest.num_rows == 70_000
    assert guest.equals(arrived(orders))


def acme(install: Install, guest: str, features: str, lines: str = "limits: {memory: 16MiB, deadline: 300ms}\n") -> None:
    install(
        "acme-guest",
        MANIFEST.format(name="guest", kind="processor", features=features) + lines,
        {"guest.wasm": built(GUESTS / f"{guest}.c")},
    )


@pytest.mark.parametrize("deed", ["trap", "refuse", "middle", "deep"])
def test_bad_rows_become_dead_letters_and_the_others_arrive(tmp_path: Path, install: Install, deed: str) -> None:
    acme(install, "unruly", "rowwise, one_to_one")
    numbers = [13 if i in (7, 1900, 2999) else 1000 + i for i in range(3000)]
    pq.write_table(pa.table({"n": pa.array(numbers, pa.int64()), "s": [str(n) for n in numbers]}), tmp_path / "rows.parquet")
    steps = [{"id": "step", "use": "guest", "with": {"do": deed}}]
    found = run(tmp_path, steps, errors={"on_record": "dead_letter"})
    assert found.status == "done", found.error
    assert found.rows["dead_lettered"] == 3
    assert arrived(tmp_path)["n"].to_pylist() == [n for n in numbers if n != 13]
    assert run(tmp_path, steps).status == "failed", "by default a bad row ends the run"


def test_an_endless_loop_ends_the_run_at_its_deadline(tmp_path: Path, install: Install) -> None:
    acme(install, "unruly", "rowwise, one_to_one", "limits: {memory: 16MiB, deadline: 100ms}\n")
    pq.write_table(pa.table({"n": pa.array([13], pa.int64()), "s": ["x"]}), tmp_path / "rows.parquet")
    found = run(tmp_path, [{"id": "step", "use": "guest", "with": {"do": "spin"}}], errors={"on_record": "dead_letter"})
    assert found.status == "done"
    assert found.rows["dead_lettered"] == 1


def test_state_that_is_lost_takes_the_run_back_and_then_the_plugin_out(tmp_path: Path, install: Install) -> None:
    acme(install, "running", "")
    pq.write_table(pa.table({"n": pa.array([1, 2, 13], pa.int64())}), tmp_path / "rows.parquet")
    found = run(tmp_path, [{"id": "step", "use": "guest"}], errors={"retry": {"attempts": 9, "initial": "1ms"}})
    assert found.status == "failed"
    assert found.error["code"] == "wasm.quarantined"


def test_a_sum_runs_on_over_batches(tmp_path: Path, install: Install) -> None:
    acme(install, "running", "")
    pq.write_table(pa.table({"n": pa.array(range(14, 5000), pa.int64())}), tmp_path / "rows.parquet")
    assert run(tmp_path, [{"id": "step", "use": "guest"}], runtime={"batch": {"rows": 256}}).status == "done"
    assert arrived(tmp_path)["sum"].to_pylist()[-1] == sum(range(14, 5000))
