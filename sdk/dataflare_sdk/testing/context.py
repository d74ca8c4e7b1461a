"""A context for components under test: files in a folder, no runtime around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dataflare.contracts import RunInfo


class _Log:
    """Takes log calls and forgets them."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class FakeContext:
    """A `ComponentContext` without a runtime.

    Args:
        folder: base folder; staging lies in it.
        node: id of the node.
        components: builds other components: (kind, name, config) → component. Without it none can be built.
        secrets: what `secret` gives.
    """

    def __init__(
        self,
        folder: Path,
        node: str = "node",
        components: Callable[[str, str, Mapping[str, Any]], Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        on_record: str = "fail",
    ) -> None:
        self.node = node
        self.base_dir = folder
        self.staging_dir = folder / ".dataflare" / "staging" / node
        self.run: RunInfo | None = RunInfo("run-1", "test", "workflow-1", 1_767_225_600_000_000)
        self.memory = 128 << 20
        self.threads = 1
        self.linger = 0.0
        self.on_record = on_record
        self.offline = False
        self.host = None
        self.log: Any = _Log()
        self.metrics: dict[str, float] = {}
        self.gauges: dict[str, float] = {}
        self.audited: list[tuple[str, bool]] = []
        self._components = components
        self._secrets = dict(secrets or {})
        self._state: dict[str, bytes] = {}

    def metric(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter; read it from `metrics`."""
        self.metrics[name] = self.metrics.get(name, 0.0) + value

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge; read it from `gauges`."""
        self.gauges[name] = value

    def clock(self) -> float:
        """Return the time."""
        return time.time()

    def secret(self, ref: str) -> str:
        """Return a secret that was given."""
        return self._secrets[ref]

    def state_get(self, key: str) -> bytes | None:
        """Return a value that was put."""
        return self._state.get(key)

    def state_put(self, key: str, value: bytes) -> None:
        """Keep a value."""
        self._state[key] = value

    def component(self, kind: str, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """Build another component by the function that was given."""
        if self._components is None:
            raise LookupError(f"this test context builds no components ({kind}/{name})")
        return self._components(kind, name, config or {})

    def cancelled(self) -> bool:
        """Return False: nothing is stopped in a test."""
        return False

    def failpoint(self, name: str) -> None:
        """Do nothing: no fault is armed."""

    def audit(self, action: str, allowed: bool) -> None:
        """Keep a record; read it from `audited`."""
        self.audited.append((action, allowed))
