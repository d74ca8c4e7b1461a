"""ResourceManager: shares out the memory and the threads of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import Component, Host, NoConfig, NodeSpec, Plan, duck
from dataflare_sdk.records import record

BASE = 160 << 20
"""What the process holds with its libraries loaded, before a row moves (measured, bytes)."""


@record
class Shares:
    """What one run may use.

    Attributes:
        engine: bytes for each SQL instance of a node.
        inbox: bytes of credit of one task input.
        threads: threads of a scan.
        batch_rows: rows of a batch at most.
        batch_bytes: bytes of a batch, more or less.
        linger: seconds for which a batch may wait to be filled.
    """

    engine: int
    inbox: int
    threads: int
    batch_rows: int
    batch_bytes: int
    linger: float = 0.1


class ResourceManager(Component[NoConfig]):
    """Divides `runtime.memory` between scans, steps and the queues between tasks.

    Half goes to SQL instances (they spill beyond it), a quarter to what waits in inboxes; the rest is the working
    room of batches in hand. The process itself is taken off first.
    """

    Config = NoConfig

    def share(self, plan: Plan) -> Shares:
        """Return the shares of a plan's nodes."""
        runtime: Mapping[str, Any] = plan.settings.get("runtime") or {}
        batch: Mapping[str, Any] = runtime.get("batch") or {}
        total = int(runtime.get("memory") or 1 << 30)
        usable = max(total - BASE, 64 << 20)
        # Row-wise steps hold one batch; scans and whole-input steps are what memory is for.
        heavy = sum(1 for n in plan.nodes if self._is_heavy(n)) or 1
        queues = sum(len(t.inputs) for t in plan.tasks) or 1
        inbox = usable // 4 // queues
        duck.bound_sessions(usable // 2)
        return Shares(
            engine=max(48 << 20, usable // 2 // heavy),
            inbox=max(1 << 20, min(inbox, 64 << 20)),
            threads=int(runtime.get("threads") or 2),
            batch_rows=int(batch.get("rows") or 65536),
            batch_bytes=max(64 << 10, min(int(batch.get("bytes") or 16 << 20), inbox // 2)),
            linger=0.1 if batch.get("linger") is None else float(batch["linger"]),
        )

    def _is_heavy(self, node: NodeSpec) -> bool:
        """Return True for what holds more than a batch: scans, steps that see their whole input, engines that write."""
        if node.kind == "source":
            return True
        host: Host = self.ctx.host  # type: ignore[assignment]
        features = host.describe(node.kind, node.use).features
        return "spills" in features if node.kind == "destination" else "rowwise" not in features
