"""Base class for monitors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare.contracts import Plan, RunEvent
from dataflare.workflow import Workflow
from dataflare_sdk.component import C, Component


class Monitor(Component[C]):
    """Hears of one run on a thread of its own; see `dataflare.contracts.Monitor` for the meaning of every method.

    What a monitor does not override it does not care for.
    """

    def begin(self, run_id: str, workflow: Workflow) -> None:
        """Take note of the run; open what is needed here, not in the constructor."""

    def planned(self, plan: Plan) -> None:
        """Take note of the plan."""

    def hear(self, event: RunEvent) -> None:
        """Take note of an event."""

    def end(self, document: Mapping[str, Any]) -> None:
        """Take note of the end."""
