"""The host: builds components and is the runtime's side of the conversation with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare.capabilities import Capabilities, effective
from dataflare.contracts import Observers, Provided, RunEvent, RunInfo, Surroundings
from dataflare.contracts.host import PLAIN
from dataflare.errors import DataflareError
from dataflare.logs import Logger, Logs
from dataflare.manifest import BUILT_IN
from dataflare.plugins import PluginManager
from dataflare.registry import Entry
from dataflare.renewal import Renewal
from dataflare.secrets import Secrets
from dataflare.workflow import dotted

__all__ = ["HostContext", "RuntimeHost"]

_LOGGED_AS = {"run.retried": "warning", "lane.streaming": "info", "schema.changed": "info", "epoch.committed": "info",
              "plugin.swapped": "info", "plugin.swap-refused": "warning"}  # fmt: skip
"""Events of a run to the level they are logged at; its phases are for developers, its progress is for monitors."""


class RuntimeHost:
    """Implements `contracts.Host`.

    Args:
        plugins: loads plugins.
        logs: where records go.
        base_dir: folder of the workflow.
        providers: secret providers that may be asked.

    Attributes:
        listeners: the kernel's own, told every event before the monitors.
        observers: those who listen to the run that is under way.
        workflow: the workflow that is run, for the log.
        failpoint: called with the name of every failpoint a component passes; the engine may set it.
    """

    def __init__(self, plugins: PluginManager, logs: Logs, base_dir: Path, providers: Sequence[str] = ("env", "file")) -> None:
        self.plugins = plugins
        self.logs = logs
        self.base_dir = base_dir
        self.secrets = Secrets(self._ask_secret, logs.redactor, providers)
        self.failpoint: Callable[[str], None] = lambda _name: None
        self.listeners: list[Callable[[RunEvent], None]] = []
        self.workflow = ""
        self.observers: Observers | None = None
        self.renewal = Renewal(plugins)
        self._audited: set[tuple[str, str]] = set()
        plugins.audit = self.audit
        if any("redact" in m.hooks for m in plugins.registry.manifests):
            logs.redactor.ask = lambda text: [s for found in self.hook("redact", text=text) for s in found]

    def describe(self, kind: str, use: str) -> Provided:
        """Return who provides a component, from manifests alone; raises as `contracts.Host` says."""
        return self._described(self.plugins.registry.find(kind, use))

    def provided(self, kind: str | None = None) -> Sequence[Provided]:
        """Return every component of a kind, or of all, by kind and name."""
        return [self._described(entry) for entry in self.plugins.registry.all(kind)]

    def factory(self, kind: str, use: str) -> Any:
        """Load the plugin and return the component's class or function, without building it."""
        return self.plugins.factory(kind, use)

    def build(
        self,
        kind: str,
        use: str,
        config: Mapping[str, Any],
        around: Surroundings = PLAIN,
    ) -> Any:
        """Build a component; raises as `contracts.Host` says."""
        entry = self._entry(kind, use)
        factory = self.plugins.factory(kind, use)
        resolved: Any = self.secrets.resolve(config, around.path)
        if hasattr(factory, "Config"):
            resolved = factory.configure(resolved, around.path)
        try:
            return factory(resolved, HostContext(self, entry, around, name=use))
        except DataflareError as error:
            raise _under(around.path, error) from error

    def emit(self, event: RunEvent) -> None:
        """Log it, and tell all listeners and monitors; a failing one is logged and never fails the run.

        Within a run those outside the kernel are told on threads of their own.
        """
        self._log(event)
        try:
            for listener in tuple(self.listeners):
                listener(event)
        except Exception as error:
            self.logs.bind(run=event.run_id).warning("a monitor failed: {}", repr(error))
        if self.observers is not None:
            self.observers.emit(event)
        else:
            self.tell_hooks(event)

    def tell_hooks(self, event: RunEvent) -> None:
        """Call the hook `run_event` at every plugin that has it; one that fails is logged."""
        for failure in self.plugins.tell("run_event", event=event):
            self.logs.bind(run=event.run_id).warning("a monitor failed: {}", repr(failure))

    def _log(self, event: RunEvent) -> None:
        phase = event.event.startswith("phase.")
        level = "debug" if phase else _LOGGED_AS.get(event.event)
        if level is not None:
            log = self.logs.bind(run=event.run_id, workflow=self.workflow, phase=event.phase)
            # Each phase is a message of its own, or the log would take them for repeats.
            message = f"{event.event} {event.phase}" if phase else event.event
            shown = {k: v for k, v in event.data.items() if k != "message" and not isinstance(v, Mapping)}
            getattr(log, level)(message, **shown)

    def newer_plugins(self) -> Mapping[str, str]:
        """Return name and version of plugins that were put in use since this runtime began."""
        return self.renewal.newer()

    def take_over(self) -> Callable[[], None]:
        """Use those versions for whatever is built next; what is returned takes that back."""
        return self.renewal.take_over()

    def hook(self, name: str, /, **arguments: Any) -> Any:
        """Call a hook by name, without its `dataflare_` prefix."""
        return self.plugins.hook(name, **arguments)

    def redacted(self, text: str) -> str:
        """Return a text that is kept or shown, with every secret that was handed out hidden."""
        return self.logs.redactor.text(text)

    def audit(self, plugin: str, action: str, allowed: bool) -> None:
        """Keep a record of every denial, and of the first use of each capability by each plugin."""
        if allowed and (plugin, action) in self._audited:
            return
        self._audited.add((plugin, action))
        record = {
            "time": time.time(), "plugin": plugin, "action": action, "allowed": allowed,
            "workflow": self.workflow, "folder": str(self.base_dir),
        }  # fmt: skip
        for failure in self.plugins.tell("audit", record=record):
            self.logs.bind(plugin=plugin).warning("an audit log failed: {}", repr(failure))

    def _entry(self, kind: str, use: str) -> Entry | None:
        try:
            return self.plugins.registry.find(kind, use)
        except DataflareError:
            # The factory below says the same, unless an adapter knows the name.
            return None

    def _described(self, entry: Entry) -> Provided:
        manifest, component = entry
        return Provided(
            kind=component.kind,
            name=component.name,
            plugin=manifest.name,
            version=manifest.version,
            origin=manifest.origin,
            hash=manifest.hash,
            features=component.features,
            isolation=self.plugins.level(manifest),
            summary=component.summary,
        )

    def _ask_secret(self, provider: str, name: str) -> str | None:
        # Nobody else may answer for the environment and the secrets folder.
        only = (BUILT_IN,) if provider in ("env", "file") else None
        found: str | None = self.plugins.hook("resolve_secret", only=only, provider=provider, name=name, base_dir=self.base_dir)
        return found


class HostContext:
    """Implements `contracts.ComponentContext` for one component."""

    def __init__(self, runtime: RuntimeHost, entry: Entry | None, around: Surroundings, name: str = "") -> None:
        self._runtime = runtime
        self._around = around
        manifest = entry.manifest if entry else None
        policy = runtime.plugins.policy
        self._plugin = manifest.name if manifest else name
        self._built_in = manifest is not None and manifest.built_in
        self._capabilities = effective(manifest, policy) if manifest else Capabilities(self._plugin)
        inside = manifest is not None and policy.level(manifest) == "inprocess"
        self.host: RuntimeHost | None = runtime if inside else None
        self.node: str = around.node or name
        self.run: RunInfo | None = around.run
        self.base_dir: Path = around.base_dir
        self.staging_dir: Path = around.staging_dir
        self.memory: int = around.memory
        self.threads: int = around.threads
        self.linger: float = around.linger
        self.on_record: str = around.on_record
        self.offline: bool = around.offline

    @property
    def log(self) -> Logger:
        """A logger with run, workflow and node bound."""
        run = self.run.run_id if self.run else ""
        return self._runtime.logs.bind(run=run, workflow=self._runtime.workflow, node=self.node)

    def metric(self, name: str, value: float, **labels: str) -> None:
        """Add `value` to a counter of this node; labels become part of its name."""
        if self._around.count is not None:
            suffix = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            self._around.count(f"{name}{{{suffix}}}" if suffix else name, value)

    def gauge(self, name: str, value: float) -> None:
        """Say how large something of this node is now."""
        if self._around.gauge is not None:
            self._around.gauge(name, value)

    def clock(self) -> float:
        """Return the time, seconds since 1970 UTC."""
        return self._around.clock()

    def secret(self, ref: str) -> str:
        """Return a secret the plugin was granted.

        Raises:
            DataflareError: `capability.denied`, `secret.missing`.
        """
        self._checked(f"secret {ref}", lambda: self._capabilities.need_secret(ref))
        return self._runtime.secrets.get(ref)

    def state_get(self, key: str) -> bytes | None:
        """Return the plugin's own durable value under `key`, or None.

        Raises:
            DataflareError: `capability.denied`.
        """
        self._checked("state", self._capabilities.need_state)
        return None if self._around.state is None else self._around.state.get_value(self._scope, _VALUE + key)

    def state_put(self, key: str, value: bytes) -> None:
        """Keep a durable value under `key`.

        Raises:
            DataflareError: `capability.denied`, also when all its values together outgrow `state.max_bytes`.
        """
        store, scope = self._around.state, self._scope
        sizes: dict[str, int] = json.loads((store.get_value(scope, _SIZES) if store else None) or b"{}")
        sizes[key] = len(value)
        self._checked("state", lambda: self._capabilities.need_state(sum(sizes.values())))
        if store is not None:
            store.put_value(scope, _SIZES, json.dumps(sizes).encode())
            store.put_value(scope, _VALUE + key, value)

    def component(self, kind: str, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """Build another component, with the same surroundings."""
        return self._runtime.build(kind, name, config or {}, replace(self._around, path=()))

    def cancelled(self) -> bool:
        """Return True once the run is being stopped."""
        return self._around.cancelled()

    def failpoint(self, name: str) -> None:
        """Name a place where a fault may be injected; does nothing unless the engine listens."""
        self._runtime.failpoint(name)

    def audit(self, action: str, allowed: bool) -> None:
        """Keep a record of a use or denial of a capability by this plugin."""
        self._runtime.audit(self._plugin, action, allowed)

    @property
    def _scope(self) -> str:
        return f"plugin:{self._plugin}"

    def _checked(self, action: str, check: Callable[[], None]) -> None:
        try:
            check()
        except DataflareError:
            self._runtime.audit(self._plugin, action, allowed=False)
            raise
        if not self._built_in:  # what is built in is granted what its manifest names: nobody decided on it
            self._runtime.audit(self._plugin, action, allowed=True)


# Keys of the state store within a plugin's scope: its values, and the ledger of their sizes.
_VALUE, _SIZES = "value:", "sizes"


def _under(path: tuple[str | int, ...], error: DataflareError) -> DataflareError:
    """Return the error with its problems' paths put under `path`."""
    prefix = dotted(path)
    if prefix is None:
        return error

    def below(inner: str | None) -> str:
        if inner is None or inner == prefix:
            return prefix
        return inner if inner.startswith((prefix + ".", prefix + "[")) else f"{prefix}{'' if inner[0] == '[' else '.'}{inner}"

    return type(error)(*(replace(p, path=below(p.path)) for p in error.problems))
