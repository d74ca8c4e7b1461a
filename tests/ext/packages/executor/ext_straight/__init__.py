"""An executor that came from outside: one thread, one epoch, no resuming. It refuses what it cannot do."""

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import Component, NoConfig, Plan, RunOptions, Workflow, code

NOT_HERE = code(
    "straight.not-here", 3, "The straight executor runs full extractions to their end, nothing else.", "Use the built-in executor."
)


class StraightExecutor(Component[NoConfig]):
    """Runs a plan within `start`: when it returns, the run is over."""

    Config = NoConfig

    def start(self, plan: Plan, workflow: Workflow, options: RunOptions) -> "Ended":
        """Run the plan."""
        from ext_straight.run import StraightRun

        if any((n.settings.get("extract") or {}).get("mode", "full") not in (None, "full") for n in plan.nodes):
            raise NOT_HERE.error("a source is not read in full")
        return Ended(StraightRun(self.ctx.host, plan, workflow).go())


class Ended:
    """The handle of a run that is over."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self._result = result

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once: it has ended."""
        return True

    def cancel(self) -> None:
        """Nothing is left to be cancelled."""

    def snapshot(self) -> Mapping[str, Any]:
        """Return the counts."""
        return {"nodes": self._result["nodes"], "epoch": 1, "run_id": self._result["run_id"]}

    def result(self) -> Mapping[str, Any]:
        """Return status and counts."""
        return self._result
