"""The context of a component in a worker: everything that reaches outside is a question to the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_process.codes import NOT_HERE
from dataflare_plugins.isolation_process.worker.talk import Talk
from dataflare_sdk import RunInfo

__all__ = ["WorkerContext"]


class _Log:
    """Logger of loguru's call form; what is logged goes to the host with the next message."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def bind(self, **labels: Any) -> _Log:
        """Return itself: run and node are the host's to say."""
        del labels
        return self

    def debug(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what only a developer wants to know."""
        self._say("debug", message, args, extra)

    def info(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what happened."""
        self._say("info", message, args, extra)

    def warning(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what somebody should look at."""
        self._say("warning", message, args, extra)

    def error(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what failed."""
        self._say("error", message, args, extra)

    exception = error

    def _say(self, level: str, message: str, args: tuple[Any, ...], extra: Mapping[str, Any]) -> None:
        self._talk.tell("log", level, str(message.format(*args, **extra) if args else message))


class WorkerContext:
    """Implements `ComponentContext` for the one component of a worker.

    Args:
        talk: the channel to the host.
        around: what the host says: node, folders, memory, run.
    """

    def __init__(self, talk: Talk, around: Mapping[str, Any]) -> None:
        self._talk = talk
        self.node: str = around["node"]
        self.run: RunInfo | None = around["run"]
        self.base_dir: Path = around["base_dir"]
        self.staging_dir: Path = around["staging_dir"]
        self.memory: int = around["memory"]
        self.threads: int = around["threads"]
        self.linger: float = around["linger"]
        self.on_record: str = around["on_record"]
        self.offline: bool = around["offline"]
        self.host = None
        self.log = _Log(talk)

    def metric(self, name: str, value: float, **labels: str) -> None:
        """Add `value` to a counter of this node."""
        self._talk.tell("metric", str(name), float(value), {str(k): str(v) for k, v in labels.items()})

    def gauge(self, name: str, value: float) -> None:
        """Say how large something of this node is now."""
        self._talk.tell("gauge", str(name), float(value))

    def clock(self) -> float:
        """Return the time, seconds since 1970 UTC."""
        return float(self._talk.ask("clock"))

    def secret(self, ref: str) -> str:
        """Return a secret the plugin was granted.

        Raises:
            DataflareError: `capability.denied`, `secret.missing`.
        """
        return str(self._talk.ask("secret", ref))

    def state_get(self, key: str) -> bytes | None:
        """Return the plugin's own durable value under `key`, or None."""
        found: bytes | None = self._talk.ask("state_get", key)
        return found

    def state_put(self, key: str, value: bytes) -> None:
        """Keep a durable value under `key`."""
        self._talk.ask("state_put", key, bytes(value))

    def component(self, kind: str, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """Refuse: a component of the host has no place in a sandbox.

        Raises:
            DataflareError: `plugin.not-isolated`.
        """
        del config
        raise NOT_HERE.error(f"the component {kind}/{name} is not to be had at the isolation level process")

    def cancelled(self) -> bool:
        """Return True once the run is being stopped."""
        return bool(self._talk.ask("cancelled"))

    def failpoint(self, name: str) -> None:
        """Name a place where a fault may be injected."""
        self._talk.ask("failpoint", name)

    def audit(self, action: str, allowed: bool) -> None:
        """Do nothing: what an isolated plugin does is recorded by those who isolate it."""
