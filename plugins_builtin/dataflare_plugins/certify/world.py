"""A folder with a workflow around one component, run in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.certify.asked import Asked, Certificate, put_files
from dataflare_plugins.certify.receiving import Receiver

ROWS = 40
"""Rows that a destination is given."""
TIMEOUT = 300
# Batches are slowed down a little, so that few rows make several epochs too.
_RUN = """
import json, runpy, sys
from dataflare_sdk import failpoints
failpoints.arm(json.loads(sys.argv.pop(1)), pace={"task.source.batch": 0.03})
runpy.run_module("dataflare", run_name="__main__")
"""


class World:
    """A folder with a workflow around the component: rows from `generate` or Arrow, to a SQLite table.

    Args:
        folder: an empty one.
        component: of the manifest.
        asked: what the author says of it.
        certificate: what the author says.
        allowed: what lies beside the workflow and says what the plugin may do: file name to content.
    """

    def __init__(
        self, folder: Path, component: Any, asked: Asked, certificate: Certificate, allowed: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        self._component = component
        self._asked = asked
        put_files(certificate, folder)
        for name, content in allowed.items():
            (folder / name).write_text(json.dumps(dict(content)))
        self._receiver = Receiver(folder / asked.receive.into) if asked.receive else None
        (folder / "dataflare.json").write_text(json.dumps(self._workflow(component, asked)))

    def drift(self) -> None:
        """Give the rows of the next run one column more."""
        flow = {**self._workflow(self._component, self._asked, drifted=True), "name": "drifted"}
        (self.folder / "dataflare.json").write_text(json.dumps(flow))

    def _workflow(self, component: Any, asked: Asked, *, drifted: bool = False) -> dict[str, Any]:
        port = {asked.receive.port: self._receiver.port} if asked.receive and self._receiver else {}
        use = {"use": component.name, "with": {**asked.with_, **port}}
        columns = {"id": "i", "name": "'n' || i", **({"more": "i * 2"} if drifted else {})}
        rows = {"use": "generate", "with": {"rows": ROWS, "columns": columns}}
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

    def run(self, failpoint: str | None = None) -> tuple[bool, dict[str, Any]]:
        """Run the workflow, killed once if a failpoint is named; return whether it was, and the document of the last run.

        Raises:
            AssertionError: the run failed.
        """
        killed = failpoint is not None and self._once(failpoint).returncode < 0
        document = self.ended()
        if document["status"] != "done":
            raise AssertionError(f"the run failed: {(document.get('error') or {}).get('message')}")
        return killed, document

    def ended(self) -> dict[str, Any]:
        """Run the workflow and return its document, however it ended."""
        document: dict[str, Any] = json.loads(self._once(None).stdout)
        return document

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
