"""A newer version of a plugin takes over between two batches of a run that goes on; nothing is lost and nothing comes twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from tests.plugins.plugin_store.building import wheel
from tests.plugins.plugin_store.conftest import Machine

from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime

ROWS, A_BATCH = 60_000, 100
STEP = '''
import os, time
import pyarrow as pa
from dataflare_sdk import Processor, config, option

@config
class StepConfig:
    """Where the sign lies."""

    signs: str = option("A folder.")

class Step(Processor[StepConfig]):
    """Says which version it is; the first one takes its time until there is a sign."""

    Config = StepConfig
    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        return {"": next(iter(inputs.values())).append(pa.field("version", pa.{kind}()))}

    def process(self, batch, input):
        if {slow} and not os.path.exists(self.config.signs + "/go"):
            time.sleep(0.2)
        return [("", batch.with_data(batch.data.append_column("version", pa.array([{version}] * batch.data.num_rows, pa.{kind}()))))]
'''
MANIFEST = """\
manifest: 1
name: acme
version: {version}.0.0
api: ">=1,<2"
publisher: acme.example
isolation: {isolation}
provides:
  - {{kind: processor, name: step, entry: "acme.step:Step", features: [rowwise, one_to_one]}}
capabilities:
  fs: [{{path: "${{config.signs}}", mode: ro, why: "see the sign"}}{more}]
"""


def version(machine: Machine, number: int, *, kind: str = "int64", more: str = "", isolation: str = "process") -> Path:
    step = STEP.replace("{kind}", kind).replace("{version}", str(number)).replace("{slow}", str(number == 1))
    manifest = MANIFEST.format(version=number, more=more, isolation=isolation)
    return wheel(machine.wheels, version=f"{number}.0.0", manifest=manifest, files={"acme/step.py": step})


@pytest.fixture
def running(machine: Machine, confines: None) -> Machine:
    """A machine with the first version, granted, and a workflow that uses it."""
    (machine.work / "signs").mkdir()
    machine.json("plugin", "install", version(machine, 1))
    machine.json("plugin", "grant", "acme")
    document = {
        "dataflare": 1,
        "name": "long",
        "sources": {"s": {"use": "generate", "with": {"rows": ROWS, "columns": {"n": "i"}}}},
        "processors": [{"id": "p", "use": "step", "with": {"signs": str(machine.work / "signs")}}],
        "destinations": {"d": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}, "write": {"mode": "append"}}},
        "runtime": {"lane": "streaming", "batch": {"rows": A_BATCH}},
        "state": {"checkpoint": {"every": "1s"}},
    }
    (machine.work / "dataflare.yaml").write_text(json.dumps(document))
    return machine


@contextmanager
def started(machine: Machine) -> Iterator[Callable[[str], None]]:
    """Run the workflow in a process of its own; gives what waits until it says something."""
    said = machine.root / "said"

    def heard(what: str) -> None:
        until = time.monotonic() + 120
        while what not in said.read_text():
            assert process.poll() is None, (machine.root / "report").read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.05)

    command = [sys.executable, "-c", "from dataflare.cli import main; main()", "run", "--json"]
    with said.open("w") as sink, (machine.root / "report").open("w") as report:
        env = {**machine.env, "DATAFLARE_LOG_LEVEL": "info"}
        process = subprocess.Popen(command, cwd=machine.work, env=env, stdout=report, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            yield heard
            assert process.wait(120) == 0, said.read_text() + (machine.root / "report").read_text()
        finally:
            process.kill()
            process.wait()


def rows(machine: Machine) -> dict[int, int]:
    """Return how many rows each version made, when every row is there once."""
    with duckdb.connect(str(machine.work / "o.duckdb"), read_only=True) as db:
        assert db.execute("SELECT count(*), count(DISTINCT n), min(n), max(n) FROM t").fetchone() == (ROWS, ROWS, 0, ROWS - 1)
        return dict(db.execute("SELECT version, count(*) FROM t GROUP BY 1").fetchall())


def test_a_newer_version_takes_over_while_a_run_goes_on(running: Machine) -> None:
    with started(running) as heard:
        heard("epoch.committed")
        running.json("plugin", "upgrade", version(running, 2))
        heard("plugin.swapped")
    made = rows(running)
    assert set(made) == {1, 2}
    assert made[1] % A_BATCH == 0, "it was swapped within a batch"
    assert json.loads((running.root / "report").read_text())["rows"]["written"] == ROWS


def test_a_version_that_gives_other_columns_is_left_and_the_run_goes_on(running: Machine) -> None:
    with started(running) as heard:
        heard("epoch.committed")
        running.json("plugin", "upgrade", version(running, 2, kind="float64"))
        heard("plugin.swap-refused")
        (running.work / "signs" / "go").touch()
    assert "plugin.not-the-same" in (running.root / "said").read_text()
    assert rows(running) == {1: ROWS}


def test_what_may_be_taken_over(machine: Machine) -> None:
    machine.json("plugin", "install", version(machine, 1))
    machine.json("plugin", "grant", "acme")
    with machine.entered(), Runtime(".") as runtime:
        host = runtime.host
        assert host.newer_plugins() == {}
        asked = ', {path: "/opt/more", mode: ro, why: "more"}'
        machine.run("plugin", "upgrade", str(version(machine, 2, more=asked)))
        assert host.newer_plugins() == {}, "it asks for more, and nobody has agreed"
        machine.json("plugin", "grant", "acme")
        machine.policy(trust="everybody")
        with pytest.raises(DataflareError):
            host.newer_plugins()
        machine.policy()
        assert host.newer_plugins() == {"acme": "2.0.0"}, "what could not be read is not looked at again"
        undo = host.take_over()
        assert host.newer_plugins() == {}
        assert (host.describe("processor", "step").version, runtime.plugins.policy.locks["acme"]["version"]) == ("2.0.0", "2.0.0")
        undo()
        assert (host.describe("processor", "step").version, runtime.plugins.policy.locks["acme"]["version"]) == ("1.0.0", "1.0.0")
        machine.json("plugin", "rollback", "acme")
        assert host.newer_plugins() == {}, "it is what runs here"


def test_what_runs_in_this_process_stays(machine: Machine) -> None:
    machine.json("plugin", "install", version(machine, 1, isolation="inprocess"))
    machine.json("plugin", "grant", "acme", "--in-process")
    with machine.entered(), Runtime(".") as runtime:
        machine.json("plugin", "upgrade", version(machine, 2, isolation="inprocess"))
        machine.json("plugin", "grant", "acme", "--in-process")
        assert runtime.host.newer_plugins() == {}
