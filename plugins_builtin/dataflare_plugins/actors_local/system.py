"""The local actor system: every actor is a thread, supervised one for one."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.actors_local.inbox import LocalInbox
from dataflare_sdk import Component, NoConfig, RestartPolicy

Behaviour = Callable[[Callable[[float | None], Any]], None]


class LocalActor:
    """One actor on one thread: its control mailbox and the loop that restarts its behaviour."""

    def __init__(
        self,
        name: str,
        behaviour: Behaviour,
        policy: RestartPolicy,
        on_exit: Callable[[str, BaseException | None], None] | None,
        stopping: threading.Event,
    ) -> None:
        self.name = name
        self._behaviour = behaviour
        self._policy = policy
        self._on_exit = on_exit
        self._stopping = stopping
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def tell(self, message: Any) -> None:
        """Send a control message; it is handled in order, later."""
        self._mail.put(message)

    def alive(self) -> bool:
        """Return True until the actor has stopped for good."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait for the end; True when it came within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _receive(self, timeout: float | None) -> Any:
        """Return the next control message, or None when `timeout` seconds passed (0: only look)."""
        try:
            if timeout == 0:
                return self._mail.get_nowait()
            return self._mail.get(timeout=timeout)
        except queue.Empty:
            return None

    def _run(self) -> None:
        failures: deque[float] = deque()
        error: BaseException | None = None
        while True:
            try:
                self._behaviour(self._receive)
                error = None
                break
            except BaseException as raised:
                error = raised
            now = time.monotonic()
            failures.append(now)
            while failures and now - failures[0] > self._policy.within:
                failures.popleft()
            if len(failures) > self._policy.attempts or self._stopping.wait(self._policy.delay(len(failures))):
                break
        if self._on_exit is not None:
            self._on_exit(self.name, error)


class LocalActorSystem(Component[NoConfig]):
    """Runs actors as threads. Failures of one never touch another; whoever spawned it decides what follows."""

    Config = NoConfig

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._actors: list[LocalActor] = []
        self._inboxes: list[LocalInbox] = []
        self._stopping = threading.Event()

    def inbox(self, name: str, inputs: Mapping[str, int]) -> LocalInbox:  # noqa: ARG002 - names matter on a wire
        """Make the inbox of a task: input name to bytes of credit."""
        made = LocalInbox(inputs)
        self._inboxes.append(made)
        return made

    def spawn(
        self,
        name: str,
        behaviour: Behaviour,
        *,
        policy: RestartPolicy | None = None,
        on_exit: Callable[[str, BaseException | None], None] | None = None,
    ) -> LocalActor:
        """Start an actor; see `dataflare.contracts.ActorSystem.spawn`."""
        actor = LocalActor(name, behaviour, policy or RestartPolicy(), on_exit, self._stopping)
        self._actors.append(actor)
        actor.start()
        return actor

    def stop(self, timeout: float = 5.0) -> bool:
        """Close every inbox, end restarts and wait; True when all actors have stopped."""
        self._stopping.set()
        for inbox in self._inboxes:
            inbox.close()
        deadline = time.monotonic() + timeout
        joined = [actor.join(max(0.0, deadline - time.monotonic())) for actor in self._actors]  # all, not until the first
        return all(joined)

    def close(self) -> None:
        """Stop everything."""
        self.stop()
