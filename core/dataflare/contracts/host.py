"""The host: what in-process engine parts ask of the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dataflare.contracts.component import RunInfo
from dataflare.contracts.monitor import RunEvent
from dataflare.records import field, record


@record
class Provided:
    """One component that some plugin provides, known from its manifest alone.

    Attributes:
        kind: kind of component.
        name: its name.
        plugin: the plugin's name, its `version`, and `origin`: the distribution it came in.
        hash: hash of the plugin's manifest, part of a plan's identity.
        features: what the manifest says it can do.
        isolation: level it runs at under the policy in force.
        summary: one line for people.
    """

    kind: str
    name: str
    plugin: str
    version: str
    origin: str
    hash: str
    features: tuple[str, ...] = ()
    isolation: str = "inprocess"
    summary: str = ""


@record
class Surroundings:
    """What a component built for a node of a workflow finds around it; becomes its `ComponentContext`.

    Attributes:
        node: the node's id.
        run: the run, None at plan time.
        base_dir: where relative paths start.
        staging_dir: the node's private scratch folder.
        memory: bytes for buffers.
        threads: threads it may use.
        on_record: `fail`, `skip` or `dead_letter`.
        offline: True under `validate`.
        state: the state store for `state_get` and `state_put`, None when there is none.
        cancelled: tells whether the run is being stopped.
        count: receives `(name, value)` of every metric.
        gauge: receives `(name, value)` of every gauge.
        path: where the node's `with:` block stands in the document, put before the paths of errors.
        linger: seconds for which a batch may wait to be filled.
        clock: gives the time, seconds since 1970 UTC; virtual in tests of a workflow.
    """

    node: str = ""
    run: RunInfo | None = None
    base_dir: Path = Path()
    staging_dir: Path = Path(".dataflare")
    memory: int = 256 << 20
    threads: int = 1
    on_record: str = "fail"
    offline: bool = False
    state: Any = None
    cancelled: Callable[[], bool] = bool
    count: Callable[[str, float], None] | None = None
    gauge: Callable[[str, float], None] | None = None
    path: tuple[str | int, ...] = field(default_factory=tuple)
    linger: float = 0.1
    clock: Callable[[], float] = time.time


PLAIN = Surroundings()
"""Around a component that is built outside a run."""


class Host(Protocol):
    """The runtime as engine parts and commands see it: `ctx.host`, for in-process plugins only."""

    def describe(self, kind: str, use: str) -> Provided:
        """Return who provides a component, from manifests alone.

        Args:
            kind: kind of component.
            use: name as a workflow gives it: `csv`, `acme/csv`, `csv@>=1,<2`, `wasm:csv`.

        Raises:
            DataflareError: `plugin.unknown` (exit 3, with the nearest name), `plugin.ambiguous`.
        """
        ...

    def provided(self, kind: str | None = None) -> Sequence[Provided]:
        """Return every component of a kind, or of all, by name."""
        ...

    def factory(self, kind: str, use: str) -> Any:
        """Load the plugin and return the component's class or function, without building it."""
        ...

    def build(self, kind: str, use: str, config: Mapping[str, Any], around: Surroundings = PLAIN) -> Any:
        """Build a component: resolve `${secret:}`, check the configuration, check capabilities.

        Raises:
            DataflareError: `plugin.*`, `config.*`, `secret.*`, `capability.denied`, with paths under
                `around.path`; nothing is left open.
        """
        ...

    def emit(self, event: RunEvent) -> None:
        """Tell all monitors. A failing monitor is logged and never fails the run."""
        ...

    def newer_plugins(self) -> Mapping[str, str]:
        """Return name and version of the plugins of the store that were put in use since the runtime began.

        Only those that do not run in this process, and that the operator granted. Cheap: it may be asked every second.
        """
        ...

    def take_over(self) -> Callable[[], None]:
        """Use what `newer_plugins` told for whatever is built next; what is returned takes that back."""
        ...

    def hook(self, name: str, /, **arguments: Any) -> Any:
        """Call a hook by name, without its `dataflare_` prefix."""
        ...

    def redacted(self, text: str) -> str:
        """Return a text that is kept or shown, with every secret that was handed out hidden."""
        ...
