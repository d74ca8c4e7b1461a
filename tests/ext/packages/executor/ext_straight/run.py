"""One run from its sources to its destinations, on the caller's thread."""

import time
from pathlib import Path
from typing import Any

from dataflare_sdk import Batch, Checkpoint, End, Host, NodeSpec, Partition, Plan, RunInfo, Surroundings, Target, Workflow
from dataflare_sdk.claim import claim
from dataflare_sdk.plans import extract_of_spec, input_schemas, prepared, write_from
from dataflare_sdk.state_store import open_state


class StraightRun:
    """Builds every node once, and hands each batch on as soon as it is there."""

    def __init__(self, host: Host, plan: Plan, workflow: Workflow) -> None:
        self._host = host
        self._plan = plan
        self._workflow = workflow
        self._built: dict[str, Any] = {}
        self._counts = {n.id: {"rows_in": 0, "rows_out": 0} for n in plan.nodes}

    def go(self) -> dict[str, Any]:
        """Run it and return the engine's part of the report."""
        store = open_state(self._host, self._workflow)
        try:
            self._lease = store.acquire(self._plan.workflow)
            micros = time.time_ns() // 1000
            self._run = RunInfo(f"straight-{self._lease.fence}", self._plan.workflow, self._lease.workflow_id, micros)
            store.begin_run(self._run.run_id, {"run_id": self._run.run_id, "plan": self._plan.to_json()})
            self._move(store)
        finally:
            for component in self._built.values():
                component.close()
            store.close()
        return self._report()

    def _move(self, store: Any) -> None:
        base = Path(self._plan.base_dir)
        self._staging = claim(base / ".dataflare" / "staging" / self._lease.workflow_id, self._lease.fence)
        for node in self._plan.nodes:
            self._built[node.id] = self._prepared(node)
        offsets = {n.id: self._read(n) for n in self._plan.nodes if n.kind == "source"}
        for node in self._plan.nodes:
            if node.kind == "processor":
                self._hand_on(node, self._built[node.id].flush())
        targets = [self._built[n.id] for n in self._plan.nodes if n.kind == "destination"]
        for target in targets:
            target.prepare(1, True)
        store.log(Checkpoint(1, self._run.run_id, self._plan.hash, {}, offsets, final=True, run_started=self._run.started))
        for target in targets:
            target.commit(1, offsets, True)
        store.done(1, finished={"status": "done"})

    def _prepared(self, node: NodeSpec) -> Any:
        around = Surroundings(node.id, self._run, Path(self._plan.base_dir), self._staging / node.id)
        made = self._host.build(node.kind, node.use, node.config, around)
        if node.kind == "processor":
            return prepared(made, node)
        if node.kind == "destination":
            write = write_from(node.settings.get("write") or {}, node.settings.get("schema") or {})
            schema = next(iter(input_schemas(node).values()))
            made.open(Target(self._run.workflow_id, node.id, self._run.run_id, self._lease.fence, schema, write, self._plan.hash))
        return made

    def _read(self, node: NodeSpec) -> dict[str, Any]:
        extract, source, offset = extract_of_spec(node), self._built[node.id], {}
        for raw in node.partitions:
            reader = source.open(Partition(raw["id"], raw["stream"], raw["spec"]), extract, None)
            try:
                while not isinstance(message := reader.read(4096, 1 << 24, time.monotonic() + 5), End):
                    if message is not None:
                        self._counts[node.id]["rows_in"] += message.data.num_rows
                        offset = dict(message.offset or {})
                        self._hand_on(node, [("", message)])
            finally:
                reader.close()
        return offset

    def _hand_on(self, node: NodeSpec, outputs: Any) -> None:
        for output, batch in outputs:
            self._counts[node.id]["rows_out"] += batch.data.num_rows
            for edge in self._plan.edges:
                if edge.source == node.id and edge.output == output:
                    self._take(self._plan.node(edge.target), batch, edge.input)

    def _take(self, node: NodeSpec, batch: Batch, input: str) -> None:
        wanted = input_schemas(node)[input]
        self._counts[node.id]["rows_in"] += batch.data.num_rows
        batch = batch.with_data(batch.data.select(wanted.names))
        if node.kind == "processor":
            self._hand_on(node, self._built[node.id].process(batch, input))
            return
        assert not self._built[node.id].write(batch), "a destination refused a row"
        self._counts[node.id]["rows_out"] += batch.data.num_rows

    def _report(self) -> dict[str, Any]:
        none = dict.fromkeys(("filtered", "skipped", "dead_lettered", "seconds"), 0)
        nodes = [{"id": n.id, "kind": n.kind, "plugin": n.use, **self._counts[n.id], **none} for n in self._plan.nodes]
        read = sum(n["rows_in"] for n in nodes if n["kind"] == "source")
        written = sum(n["rows_out"] for n in nodes if n["kind"] == "destination")
        rows = {"read": read, "written": written, "filtered": 0, "skipped": 0, "dead_lettered": 0, "late": 0}
        return {"status": "done", "run_id": self._run.run_id, "lane": "straight", "rows": rows, "nodes": nodes}
