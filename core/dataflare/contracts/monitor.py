"""Run events, and the monitors that listen to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dataflare.records import field, record

if TYPE_CHECKING:
    from dataflare.contracts.executor import Plan
    from dataflare.errors import Problem
    from dataflare.workflow import Workflow


class Observers(Protocol):
    """Everybody who listens to one run; none of them can hold it up, or end it.

    Attributes:
        patience: seconds that the end of the run waits for them.
    """

    patience: float

    def begin(self, log: Callable[..., None], redacted: Callable[[Any], Any]) -> Observers:
        """Begin with nobody, and return itself.

        Args:
            log: takes `(message, *values)` for what goes wrong with a listener.
            redacted: hides secrets in plain values.
        """
        ...

    def hear(self, name: str, hear: Callable[[RunEvent], None]) -> None:
        """Have a function told every event."""
        ...

    def add(self, name: str, monitor: Monitor, begin: Callable[[], None]) -> None:
        """Have a monitor told everything, beginning with `begin`."""
        ...

    def planned(self, plan: Plan) -> None:
        """Tell every monitor the plan."""
        ...

    def emit(self, event: RunEvent) -> None:
        """Tell everybody of an event; returns at once."""
        ...

    def end(self, document: Mapping[str, Any]) -> Sequence[Problem]:
        """Tell every monitor how it ended, wait for all as long as the patience lasts, and return what went wrong with them."""
        ...


PHASES = ("initialise", "prepare", "execute", "monitor", "complete", "clean_up")
"""The six phases of a run in order; a run that fails or resumes says `recover` for `complete`."""

SIGNALS = ("metrics", "traces", "lineage", "webhook")
"""What a workflow can ask a monitor for under `observe:`; the features of a monitor name those it gives."""


@record
class RunEvent:
    """Something that happened in a run.

    Attributes:
        time: seconds since 1970 UTC.
        run_id: the run.
        phase: one of `PHASES`, or `recover`.
        event: `run.started`, `phase.started`, `phase.ended`, `progress`, `epoch.committed`, `run.retried`, `lane.streaming`,
            `schema.changed`, `plugin.swapped`, `plugin.swap-refused`, `run.ended` …
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


class Monitor(Protocol):
    """Hears of one run: metrics, traces, lineage, messages. Named by a workflow under `observe:`.

    features: those of `SIGNALS` that it gives; `ctx.node` is the one it was asked for.

    All methods are called in order on one thread that is the monitor's own, behind a queue of bounded length: it may wait for a
    network, and the run never waits for it. What it raises is logged and noted in the run's document. Once a run has ended its
    monitors have a few seconds (`observe.patience`) for what is left. `validate` makes and closes one too: the constructor opens nothing.
    """

    def begin(self, run_id: str, workflow: Workflow) -> None:
        """Take note of the run. When this raises, nothing else is told, and `close` is called."""
        ...

    def planned(self, plan: Plan) -> None:
        """Take note of the plan; not called for a run that fails before it has one."""
        ...

    def hear(self, event: RunEvent) -> None:
        """Take note of an event. Of several `progress` that wait only the newest is told."""
        ...

    def end(self, document: Mapping[str, Any]) -> None:
        """Take note of the end: the document that `run --json` prints."""
        ...

    def close(self) -> None:
        """Release everything. Not called when the monitor hangs and the run's patience is over."""
        ...
