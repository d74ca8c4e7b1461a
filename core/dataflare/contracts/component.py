"""What every component is, and what the runtime gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dataflare.records import record

if TYPE_CHECKING:
    from dataflare.contracts.host import Host


@record
class RunInfo:
    """The run a component lives in.

    Attributes:
        run_id: random id of this run; a resumed run keeps the id of the run it resumes.
        workflow: name of the workflow.
        workflow_id: random id made at the workflow's first run and kept in state.
        started: when the run began, microseconds since 1970 UTC; what `now()` means everywhere in it.
        timezone: time zone of expressions, `UTC` unless the workflow says otherwise.
    """

    run_id: str
    workflow: str
    workflow_id: str
    started: int
    timezone: str = "UTC"


class ComponentContext(Protocol):
    """The runtime's side of the conversation with one component; the only way out of a plugin.

    Everything that reaches outside (secrets, state, other components) is checked against the plugin's
    effective capabilities, in-process too, and raises `capability.denied` (exit 6) when refused.

    Attributes:
        node: id of the workflow node, or the component's own name outside a workflow.
        run: the run, or None while a workflow is only validated or planned.
        base_dir: folder that relative paths of the workflow file start from.
        staging_dir: private scratch folder of this node, kept from run to run. The newest run has it to itself: what
            an older process still does there goes nowhere.
        memory: bytes of memory this component may use for buffers.
        threads: threads it may use.
        linger: seconds for which a batch may wait to be filled by what is still coming.
        on_record: policy for a bad row: `fail`, `skip` or `dead_letter` (components only report bad
            rows; the engine applies the policy. It is here so that a reader may choose a cheaper way).
        offline: True while nothing but local files may be touched (`validate`).
        host: the runtime itself, for in-process engine parts; None for a plugin from elsewhere.
    """

    node: str
    run: RunInfo | None
    base_dir: Path
    staging_dir: Path
    memory: int
    threads: int
    linger: float
    on_record: str
    offline: bool
    host: Host | None

    @property
    def log(self) -> Any:
        """A logger with run and node bound: `debug info warning error`, loguru's call form."""
        ...

    def metric(self, name: str, value: float, **labels: str) -> None:
        """Add `value` to a counter of this node."""
        ...

    def gauge(self, name: str, value: float) -> None:
        """Say how large something of this node is now; the newest value counts.

        `lag_rows`, `lag_bytes`, `lag_seconds` (how far a source is behind, until it is durable everywhere) and
        `slot_wal_bytes` (what a server keeps for it) are shown by `status`, also while the run is under way. All are metrics: those
        and `state_bytes` of their own name, any other as `component_level` with its name as a label.
        """
        ...

    def clock(self) -> float:
        """Return the time, seconds since 1970 UTC; virtual in tests."""
        ...

    def secret(self, ref: str) -> str:
        """Return a secret the plugin was granted.

        Raises:
            DataflareError: `capability.denied`, or `secret.missing` when no provider has it.
        """
        ...

    def state_get(self, key: str) -> bytes | None:
        """Return the plugin's own durable value under `key`, or None."""
        ...

    def state_put(self, key: str, value: bytes) -> None:
        """Keep a durable value under `key`; counts against the `state.max_bytes` granted."""
        ...

    def component(self, kind: str, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """Build another component (an expression engine, a format, a lookup) by kind and name."""
        ...

    def cancelled(self) -> bool:
        """Return True once the run is being stopped."""
        ...

    def failpoint(self, name: str) -> None:
        """Name a place where a fault may be injected; does nothing unless one is armed."""
        ...

    def audit(self, action: str, allowed: bool) -> None:
        """Keep a record of a use or denial of a capability by this plugin: `net db.example:5432`, `fs /data/x`.

        For whoever isolates the plugin; what the context itself is asked for is recorded by the context.
        """
        ...


class Component(Protocol):
    """Anything a registry can build: made with its checked configuration and its context."""

    def close(self) -> None:
        """Release everything it holds. Called on every path, also after a failure, at most once."""
        ...
