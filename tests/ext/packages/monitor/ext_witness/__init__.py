"""A monitor that came from outside: it writes every event down, and can stand in for the built-in counter of rows."""

import json
import os
from typing import Any

from dataflare_sdk import Monitor, NoConfig, RunEvent, hookimpl


@hookimpl
def dataflare_run_event(event: RunEvent) -> None:
    """Append the event to the file that the environment names."""
    with open(os.environ["EXT_WITNESS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(event.to_json(), default=str) + "\n")


class CountingMonitor:
    """Hands everything on to the built-in monitor, and adds a line to what is reported.

    The built-in is asked for by its publisher's name, so that it is found although this one is preferred.
    """

    def __init__(self, config: Any, ctx: Any) -> None:
        self.__dict__["_inner"] = ctx.host.build("monitor", "dataflare/workflow", {})

    def report(self, plan: Any) -> dict[str, Any]:
        """Return the built-in's report with a mark of who watched."""
        return {**self._inner.report(plan), "watched_by": "ext-witness"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)


class Witness(Monitor[NoConfig]):
    """Writes down what a workflow that names it has it told."""

    features = frozenset({"metrics"})

    def _note(self, *what: Any) -> None:
        with open(os.environ["EXT_WITNESS"] + ".told", "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def begin(self, run_id: str, workflow: Any) -> None:
        """Write down whose run it is."""
        self._note("begin", run_id, workflow.name)

    def planned(self, plan: Any) -> None:
        """Write down the nodes."""
        self._note("planned", [node.id for node in plan.nodes])

    def hear(self, event: RunEvent) -> None:
        """Write down the event."""
        self._note("hear", event.event)

    def end(self, document: Any) -> None:
        """Write down the counts."""
        self._note("end", document["status"], document["rows"]["written"])

    def close(self) -> None:
        """Write down that it is over."""
        self._note("close")
