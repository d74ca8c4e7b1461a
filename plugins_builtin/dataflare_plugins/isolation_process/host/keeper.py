"""Starts the workers of one plugin, refuses where the machine cannot confine them, and gives up on a plugin that keeps failing."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_process.codes import BAD_MANIFEST, CRASHED, NOT_CONFINED, QUARANTINED
from dataflare_plugins.isolation_process.host.broker import Broker
from dataflare_plugins.isolation_process.host.connection import Connection, Lost
from dataflare_plugins.isolation_process.host.launcher import Zygote
from dataflare_plugins.isolation_process.host.told import clean
from dataflare_plugins.isolation_process.host.view import Around, confined_policy
from dataflare_plugins.isolation_process.wire.frames import Frames, Garbled
from dataflare_sdk import ComponentContext

__all__ = ["WITHOUT", "Keeper", "Worker"]

WITHOUT = "DATAFLARE_ISOLATION_WITHOUT"
"""Environment variable with more layers, by name, that an operator accepts to be missing."""
_HELD_BY: Mapping[str, frozenset[str]] = {
    "read a forbidden file": frozenset({"root", "landlock"}),
    "write outside": frozenset({"root", "landlock"}),
    "udp socket": frozenset({"seccomp"}),
    "connect": frozenset({"namespaces", "seccomp", "broker"}),
    "signal the parent": frozenset({"namespaces", "landlock"}),
    "start a process": frozenset({"seccomp", "limits"}),
    "execute": frozenset({"seccomp", "landlock"}),
    "new namespace": frozenset({"seccomp"}),
}
"""Canary to the layers that hold it: only without one of them, and with the operator's word, may it sing."""
_MOST_FAILURES, _WITHIN = 5, 60.0
_START = 20.0
_ENVIRONMENT = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class Worker:
    """A worker with what belongs to it.

    Attributes:
        connection: to speak with it.
    """

    def __init__(self, connection: Connection, broker: Broker | None) -> None:
        self.connection = connection
        self._broker = broker

    def close(self) -> None:
        """Kill it and let go of everything."""
        self.connection.close()
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()


class Keeper:
    """The workers of one plugin.

    Args:
        name: the plugin's.
        code: folders and files of its code, and the folders to import it from.
        limits: the manifest's.
        clock: monotonic seconds.

    Attributes:
        report: what the newest worker said of its confinement; None before the first one.
        shared: data goes through shared memory.
        without: layers, by name, that the operator accepts to be missing.
    """

    def __init__(
        self, name: str, code: tuple[list[str], list[str]], limits: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.report: dict[str, Any] | None = None
        self.without: frozenset[str] = frozenset()
        self.shared = hasattr(os, "memfd_create")
        self._code = code
        self._limits = limits
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=_MOST_FAILURES)
        self._quarantined = False
        self._zygote: Zygote | None = None
        self._lock = threading.Lock()

    def start(self, grants: Mapping[str, Any], ctx: ComponentContext | None) -> Worker:
        """Start a worker, confined and waiting for its first call.

        Args:
            grants: what the operator granted, made concrete.
            ctx: context of the component it is for; None for hooks, which get no network and no scratch folder.

        Raises:
            DataflareError: `plugin.not-confined`, `plugin.quarantined`, `plugin.crashed`.
        """
        self.check()
        offline = ctx is None or ctx.offline
        try:
            around = Around(self._limits, {**grants, "net": ()} if offline else grants, Path() if ctx is None else Path(ctx.base_dir))
        except (ValueError, TypeError) as error:
            raise BAD_MANIFEST.error(f"a limit of the plugin {self.name!r} is none: {clean(error, 200)}", path="limits") from None
        policy = confined_policy(around, *self._code, None if ctx is None else _scratch(ctx))
        start = {
            "env": {**_ENVIRONMENT, "HOME": policy["scratch"], "TMPDIR": policy["scratch"], **around.env},
            "path": self._code[1],
            "shared": self.shared,
        }
        audit = (lambda _action, _allowed: None) if ctx is None else ctx.audit
        try:
            worker = self._started(policy, start, around, audit)
        except (Lost, EOFError, TimeoutError, Garbled, OSError) as error:
            raise self.failed(error) from error
        if ctx is not None:
            self._say(ctx, around)
        return worker

    def failed(self, error: Exception) -> Exception:
        """Count a failure and return what is to be raised for it: a failure of the moment, which may be tried again.

        Args:
            error: what happened to the worker.
        """
        with self._lock:
            now = self._clock()
            self._failures.append(now)
            if len(self._failures) == _MOST_FAILURES and now - self._failures[0] <= _WITHIN:
                self._quarantined = True
        if self._quarantined:
            return self._quarantine()
        reasons = {TimeoutError: "did not answer in time", EOFError: "ended", Garbled: f"answered what is no answer: {error}"}
        reason = next((r for kind, r in reasons.items() if isinstance(error, kind)), f"is lost: {error}")
        return CRASHED.retriable(f"the worker of the plugin {self.name!r} {clean(reason, 300)}")

    def check(self) -> None:
        """Refuse a plugin that is quarantined.

        Raises:
            DataflareError: `plugin.quarantined`.
        """
        if self._quarantined:
            raise self._quarantine()

    def close(self) -> None:
        """End everything that is left."""
        with self._lock:
            zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.release()

    def _quarantine(self) -> Exception:
        return QUARANTINED.error(f"the plugin {self.name!r} failed {_MOST_FAILURES} times within {_WITHIN:.0f} s")

    def _fork(self) -> Frames:
        with self._lock:
            for attempt in (1, 2):
                if self._zygote is None:
                    self._zygote = Zygote.acquire()
                try:
                    return Frames(self._zygote.fork(), 0 if self.shared else 1 << 28)
                except EOFError:
                    self._zygote.release()
                    self._zygote = None
                    if attempt == 2:
                        raise
        raise AssertionError

    def _started(self, policy: Mapping[str, Any], start: Mapping[str, Any], around: Around, audit: Callable[[str, bool], None]) -> Worker:
        frames, handles, broker = self._fork(), [], None
        until = time.monotonic() + _START
        try:
            frames.say(policy, until=until)
            frames.receive(until)
            handles.append(frames.descriptor())
            message, _ = frames.receive(until)
            report = message["report"]
            if "broker" in report["enforced"]:
                broker = Broker(frames.descriptor(), around.net, around.names(), audit)
            frames.say(start, until=until)
            report["canaries"] = frames.receive(until)[0]["canaries"]
            self.report = report
            self._judge(report, needs_broker=bool(around.net))
            if broker is not None:
                broker.quiet = False
            connection = Connection(frames, handles[0], around.deadline, processor=around.cpu_per_batch, shared=self.shared)
            handles.clear()
            return Worker(connection, broker)
        except BaseException:
            for handle in handles:
                Connection(frames, handle, 1.0, shared=False).close()
            frames.close()
            if broker is not None:
                broker.close()
            raise

    def _judge(self, report: Mapping[str, Any], *, needs_broker: bool) -> None:
        """Refuse a worker that is not confined as the level promises, unless the operator said so.

        Raises:
            DataflareError: `plugin.not-confined`.
        """
        accepted = {layer.strip() for layer in os.environ.get(WITHOUT, "").split(",")} | self.without
        lacking = {k: v for k, v in report["missing"].items() if k not in accepted and (k != "broker" or needs_broker)}
        gone = accepted & set(report["missing"])
        failed = {k: v for k, v in report["canaries"].items() if not str(v).startswith("held") and not _HELD_BY.get(k, frozenset()) & gone}
        told = [f"{layer} ({clean(reason, 100)})" for layer, reason in lacking.items()]
        told += [f"canary: {name} ({clean(seen, 100)})" for name, seen in failed.items()]
        if told:
            raise NOT_CONFINED.error(f"the plugin {self.name!r} cannot be confined here; missing: {'; '.join(told)}")

    def _say(self, ctx: ComponentContext, around: Around) -> None:
        """Record what a worker was given, and what it lacks."""
        report = self.report or {}
        for layer in report.get("missing", {}):
            ctx.audit(f"isolation without {layer}", True)
            ctx.log.warning("the plugin {} runs without the layer {} of its sandbox, as the operator allows", self.name, layer)
        for path, mode in around.paths:
            ctx.audit(f"fs {path} {mode}", True)
        for name in around.env:
            with suppress(KeyError):
                ctx.audit(f"env {name}", True)


def _scratch(ctx: ComponentContext) -> Path | None:
    """Return the node's staging folder, made when it is not there.

    The folder it lies in is a run's claim: one that was taken away is never made again.
    """
    if ctx.run is None:
        return None
    folder = Path(ctx.staging_dir).absolute()
    if folder.parent.exists() or not folder.parent.parent.exists():
        folder.mkdir(parents=True, exist_ok=True)
    return folder
