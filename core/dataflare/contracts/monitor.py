"""Run events: what monitors, lineage and logs listen to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare.records import field, record

PHASES = ("initialise", "prepare", "execute", "monitor", "complete", "clean_up")
"""The six phases of a run in order; a run that fails or resumes says `recover` for `complete`."""


@record
class RunEvent:
    """Something that happened in a run.

    Attributes:
        time: seconds since 1970 UTC.
        run_id: the run.
        phase: one of `PHASES`, or `recover`.
        event: `phase.started`, `phase.ended`, `epoch.committed`, `task.restarted`, `progress` …
        data: details, JSON-able, free of secrets and of row values.
    """

    time: float
    run_id: str
    phase: str
    event: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the event as one plain object."""
        return {
            "time": self.time,
            "run_id": self.run_id,
            "phase": self.phase,
            "event": self.event,
            **({"data": dict(self.data)} if self.data else {}),
        }
