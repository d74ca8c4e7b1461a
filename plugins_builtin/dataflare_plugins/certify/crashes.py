"""Crashes: a workflow around the component is killed with SIGKILL and run again; what arrives is compared with a run that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.certify.asked import Asked, Certificate, put_files
from dataflare_plugins.certify.checking import FAILED, NOT_RUN, PASSED, Result
from dataflare_plugins.certify.receiving import Receiver

FAILPOINTS = ("task.source.batch:1", "state.log.after:1", "task.sink.committed:1")
ROWS = 40
TIMEOUT = 300
KINDS = ("source", "processor", "destination")
# Batches are slowed down a little, so that few rows make several epochs too.
_RUN = """
import json, runpy, sys
from dataflare_sdk import failpoints
failpoints.arm(json.loads(sys.argv.pop(1)), pace={"task.source.batch": 0.03})
runpy.run_module("dataflare", run_name="__main__")
"""


def crash(
    component: Any, certificate: Certificate, level: str, allowed: Mapping[str, Mapping[str, Any]], read_back: Any
) -> Iterator[Result]:
    """Kill a workflow with the component in it at each failpoint.

    Args:
        component: of the manifest.
        certificate: what the author says.
        level: for the results.
        allowed: what lies beside the workflow and says what the plugin may do: file name to content.
        read_back: returns the rows of a destination, by its `Asked` and folder.
    """
    name = f"{component.kind}/{component.name}"
    asked = certificate.components.get(name)
    if asked is None or component.kind not in KINDS:
        return
    wanted: Counter[Any] | None = None
    for failpoint in (None, *FAILPOINTS):
        check = f"survives-a-kill-at-{(failpoint or '').partition(':')[0]}"
        with tempfile.TemporaryDirectory(prefix="dataflare-certify-") as place:
            world = _World(Path(place), component, asked, certificate, allowed)
            try:
                killed, document = world.run(failpoint)
                found = Counter(read_back(asked, world.folder) or () if component.kind == "destination" else world.arrived())
            except Exception as error:
                yield Result(name, level, check if failpoint else "runs-in-a-workflow", FAILED, f"{type(error).__name__}: {error}"[:500])
                return
            finally:
                world.close()
        if failpoint is None:
            wanted = found
            yield Result(name, level, "runs-in-a-workflow", PASSED if found else FAILED, "" if found else "no row arrived")
        elif not killed:
            yield Result(name, level, check, NOT_RUN, "the run was over before it")
        else:
            reason = _compared(wanted or Counter(), found, next(iter(document["guarantee"].values())))
            yield Result(name, level, check, FAILED if reason else PASSED, reason)


def _compared(wanted: Counter[Any], found: Counter[Any], guarantee: str) -> str:
    lost, doubled = wanted - found, found - wanted
    if lost:
        return f"{lost.total()} rows were lost, for example {next(iter(lost))}"
    if doubled and guarantee == "exactly_once":
        return f"{doubled.total()} rows came twice, for example {next(iter(doubled))}"
    strange = [row for row in doubled if row not in wanted]
    return f"a row came that should not: {strange[0]}" if strange else ""


class _World:
    """A folder with a workflow around the component: rows from `generate` or Arrow, to a SQLite table."""

    def __init__(
        self, folder: Path, component: Any, asked: Asked, certificate: Certificate, allowed: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        put_files(certificate, folder)
        for name, content in allowed.items():
            (folder / name).write_text(json.dumps(dict(content)))
        self._receiver = Receiver(folder / asked.receive.into) if asked.receive else None
        (folder / "dataflare.json").write_text(json.dumps(self._workflow(component, asked)))

    def _workflow(self, component: Any, asked: Asked) -> dict[str, Any]:
        port = {asked.receive.port: self._receiver.port} if asked.receive and self._receiver else {}
        use = {"use": component.name, "with": {**asked.with_, **port}}
        rows = {"use": "generate", "with": {"rows": ROWS, "columns": {"id": "i", "name": "'n' || i"}}}
        kept = {"use": "sqlite", "with": {"path": ".arrived.db", "table": "t"}, "write": {"mode": "append"}}
        flow: dict[str, Any] = {"sources": {"in": rows}, "destinations": {"out": kept}, "name": "certified"}
        if component.kind == "source":
            flow["sources"] = {"in": {**use, **({"extract": dict(asked.extract)} if asked.extract else {})}}
        elif component.kind == "destination":
            mode = next((m for m in ("append", "overwrite", "upsert") if m in component.features), "append")
            flow["destinations"] = {"out": {**use, "write": {"mode": mode, **({"key": ["id"]} if mode == "upsert" else {})}}}
        else:
            flow["sources"] = {name: self._arrow(name, columns) for name, columns in asked.inputs.items()}
            flow["processors"] = [{"id": "it", **use, **({"from": list(asked.inputs)} if len(asked.inputs) > 1 else {})}]
        flow["runtime"] = {"lane": "streaming", "batch": {"rows": 5}}
        flow["state"] = {"checkpoint": {"rows": 10}}
        return flow

    def close(self) -> None:
        """Stop what ran beside the workflow."""
        if self._receiver is not None:
            self._receiver.close()

    def _arrow(self, name: str, columns: Mapping[str, Any]) -> dict[str, Any]:
        table = pa.table(dict(columns))
        with pa.OSFile(str(self.folder / f".{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return {"use": "arrow", "with": {"path": f".{name}.arrow"}}

    def run(self, failpoint: str | None) -> tuple[bool, dict[str, Any]]:
        """Run the workflow, killed once if a failpoint is named; return whether it was, and the document of the last run."""
        killed = failpoint is not None and self._once(failpoint).returncode < 0
        done = self._once(None)
        document: dict[str, Any] = json.loads(done.stdout)
        if done.returncode != 0:
            raise AssertionError(f"the run failed: {(document.get('error') or {}).get('message')}")
        return killed, document

    def _once(self, failpoint: str | None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, json.dumps(failpoint), "run", "dataflare.json", "--once", "--json"]
        # A module of the folder must not stand in for one of ours.
        env = {**os.environ, "PYTHONSAFEPATH": "1"}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    def arrived(self) -> list[Any]:
        """Return the rows that stand in the table."""
        import sqlite3

        with sqlite3.connect(self.folder / ".arrived.db") as db:
            return db.execute("SELECT * FROM t").fetchall()
