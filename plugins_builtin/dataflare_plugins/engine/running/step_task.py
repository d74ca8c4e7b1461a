"""The loop of steps behind several inputs, and how barriers of several inputs become one."""

from __future__ import annotations

from typing import Any

from dataflare_plugins.engine.running.chain import Chain, Stopped
from dataflare_plugins.engine.running.environment import Environment, edge_key
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.signals import (
    Begin,
    Passed,
    Ready,
    Receive,
)
from dataflare_sdk import (
    Barrier,
    End,
    Pause,
    TaskSpec,
    Watermark,
)
from dataflare_sdk.failpoints import declare, failpoint

declare("task.step.snapshot")


class StepTask:
    """Processes what arrives on several inputs, aligned on barriers."""

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler

    def run(self, receive: Receive) -> None:
        """Run the task from its first message to its last."""
        self._env.send(Ready(self.spec.id))
        begin = receive(None)
        if not isinstance(begin, Begin):
            return
        chain = Chain(self.spec, self._env, self._handler, begin.counts)
        try:
            chain.restore(begin.states)
            self._loop(chain)
        finally:
            chain.close()

    def _loop(self, chain: Chain) -> None:
        targets = {edge_key(e): e for e in self.spec.inputs}
        aligned = Aligner(self._env, self.spec)
        while True:
            got = aligned.ready() if chain.ahead else aligned.next()
            if got is None:
                chain.settle()  # there is nothing else to be done meanwhile
                continue
            name, message = got
            if isinstance(message, Barrier):
                failpoint("task.step.snapshot")
                states = chain.pass_barrier(message, aligned.watermarks)
                self._env.send(Passed(self.spec.id, message.epoch, states, chain.counted(), self._handler.take_letters()))
                if message.final:
                    return
            elif isinstance(message, End):
                chain.flush()
                chain.forward(message)
            elif isinstance(message, Pause):
                chain.forward(message)
            else:
                edge = targets[name]
                chain.process(edge.target, edge.input, message)


class Aligner:
    """Reads an inbox so that barriers, ends and pauses come out once, when every input has brought its own.

    Attributes:
        watermarks: input to the watermarks of its newest barrier.
    """

    def __init__(self, env: Environment, spec: TaskSpec) -> None:
        self._inbox = env.inboxes[spec.id]
        self._inputs = [edge_key(e) for e in spec.inputs]
        self._blocked: set[str] = set()
        self._ends: dict[str, End | Pause] = {}
        self.watermarks: dict[str, tuple[Watermark, ...]] = {}

    def next(self) -> tuple[str, Any]:
        """Return (input, batch), or ("", mark) once it has arrived on every input.

        Raises:
            Stopped: the inbox was closed.
        """
        got = self._next(None)
        if got is None:
            raise Stopped
        return got

    def ready(self) -> tuple[str, Any] | None:
        """Return what `next` would, if it need not wait for it."""
        return self._next(0.0)

    def _next(self, timeout: float | None) -> tuple[str, Any] | None:
        while True:
            got = self._inbox.get(self._blocked, timeout)
            if got is None:
                return None
            name, message = got
            if isinstance(message, Barrier):
                self._blocked.add(name)
                self.watermarks[name] = message.watermarks
                if len(self._blocked) == len(self._inputs):
                    self._blocked.clear()
                    return "", message
            elif isinstance(message, (End, Pause)):
                self._ends[name] = message
                if len(self._ends) == len(self._inputs):
                    ends, self._ends = self._ends, {}
                    paused = any(isinstance(m, Pause) for m in ends.values())
                    return "", Pause() if paused else End()
            else:
                return name, message
