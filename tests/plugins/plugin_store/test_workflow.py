"""A workflow with a stranger's step: refused with the command to run, then run."""

from __future__ import annotations

import json

from tests.plugins.plugin_store.building import wheel
from tests.plugins.plugin_store.conftest import Machine

STEP = '''
import pathlib
from dataflare_sdk import Processor, config, option
pathlib.Path("ran").write_text("")

@config
class StepConfig:
    """Nothing of interest."""

    column: str = option("A column.", default="n")

class Step(Processor[StepConfig]):
    """Passes rows on."""

    Config = StepConfig
    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        return {"": next(iter(inputs.values()))}

    def process(self, batch, input):
        return [("", batch)]
'''
LINES = """\
manifest: 1
name: acme
version: 1.0.0
api: ">=1,<2"
publisher: acme.example
provides:
  - {kind: processor, name: step, entry: "acme.step:Step", features: [rowwise, one_to_one]}
capabilities: {secrets: [{ref: T, why: "log in"}]}
"""
WORKFLOW = """\
dataflare: 1
sources: {a: {use: generate, with: {rows: 3, seed: 1, columns: {n: i}}}}
processors: [{id: s, use: step}]
destinations: {o: {use: csv, with: {path: o.csv}}}
"""


def test_a_workflow_runs_once_its_plugin_is_granted(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, manifest=LINES, files={"acme/step.py": STEP}))
    (machine.work / "dataflare.yaml").write_text(WORKFLOW)
    for verb in ("validate", "run"):
        refused = machine.run(verb)
        assert refused.returncode == 6
        assert "dataflare.yaml:3:" in refused.stdout + refused.stderr
        assert "dataflare plugin grant acme" in refused.stdout + refused.stderr
    assert machine.json("run", status=6)["error"]["code"] == "plugin.not-granted"
    assert not (machine.work / "ran").exists()
    machine.json("plugin", "grant", "acme", "--in-process")
    done = machine.spawn("run", "--json")
    assert json.loads(done.stdout)["rows"]["written"] == 3, done.stderr
    machine.json("plugin", "revoke", "acme")
    assert machine.json("run", status=6)["error"]["code"] == "plugin.not-granted"


def test_a_lower_level_than_asked_for_is_not_a_grant(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, manifest=LINES + "isolation: process\n"))
    done = machine.run("plugin", "grant", "acme", "--in-process")
    assert (done.returncode, "isolation: in policy.yaml" in done.stderr) == (2, True)
    assert "capabilities" not in machine.lock()["acme"]
