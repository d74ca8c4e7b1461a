"""Actors: a job supervisor and its tasks, nothing deeper. A message is a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from dataflare.contracts.batch import Message
from dataflare.records import record


@record
class RestartPolicy:
    """How often and how fast a failing actor is started again.

    Attributes:
        attempts: restarts before the failure is final; 0 means none.
        backoff: `exponential` or `constant`.
        initial: seconds before the first restart.
        max: longest pause, seconds.
        within: failures older than this many seconds are forgotten.
    """

    attempts: int = 0
    backoff: str = "exponential"
    initial: float = 1.0
    max: float = 60.0
    within: float = 3600.0

    def delay(self, attempt: int) -> float:
        """Return the pause in seconds before restart number `attempt` (from 1)."""
        if self.backoff == "constant":
            return min(self.initial, self.max)
        return float(min(self.initial * 2.0 ** min(attempt - 1, 60), self.max))


class Inbox(Protocol):
    """What a task reads: one ordered queue per input, each bounded in bytes. No credit, no message."""

    def put(self, input: str, message: Message, size: int, timeout: float | None = None) -> bool | None:
        """Append to an input; wait while its credits are out. A message larger than all credits passes alone.

        Returns:
            True: it is there. False: the inbox was closed, nobody will read it. None: `timeout` seconds passed, it is
            not there.
        """
        ...

    def get(self, skip: Collection[str] = (), timeout: float | None = None) -> tuple[str, Message] | None:
        """Take the next message of any input that is not in `skip`, fairly, and give its credits back.

        Returns:
            (input, message), or None when `timeout` seconds passed or the inbox was closed.
        """
        ...

    def close(self) -> None:
        """Wake everybody who waits; later puts and gets return at once."""
        ...


class ActorRef(Protocol):
    """A handle on a running actor; may stand for one in another process or on another node."""

    name: str

    def tell(self, message: Any) -> None:
        """Send a control message, without waiting for it to be handled."""
        ...

    def alive(self) -> bool:
        """Return True until it has stopped for good."""
        ...


class ActorSystem(Protocol):
    """Runs actors: threads in this process, processes, or a cluster."""

    def inbox(self, name: str, inputs: Mapping[str, int]) -> Inbox:
        """Make the inbox of a task: input name to bytes of credit."""
        ...

    def spawn(
        self,
        name: str,
        behaviour: Callable[[Callable[[float | None], Any]], None],
        *,
        policy: RestartPolicy | None = None,
        on_exit: Callable[[str, BaseException | None], None] | None = None,
    ) -> ActorRef:
        """Start an actor.

        Args:
            name: unique in this system.
            behaviour: runs the actor until it is done; is handed `receive(timeout)`, which returns the next
                control message or None. Called again for every restart.
            policy: restarts after an exception; by default none, the failure is final.
            on_exit: told once the actor has stopped for good, with its exception if it failed.
        """
        ...

    def stop(self, timeout: float = 5.0) -> bool:
        """Ask every actor to stop and wait; True when all have."""
        ...
