"""One component in one worker: its calls, what happens when the worker is lost, and its beginning anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dataflare_plugins.isolation_process.codes import CRASHED, QUARANTINED
from dataflare_plugins.isolation_process.host.connection import Lost
from dataflare_plugins.isolation_process.host.keeper import Keeper, Worker
from dataflare_plugins.isolation_process.host.questions import Questions
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import Batch, ComponentContext, DataflareError
from dataflare_sdk.grants import expand

__all__ = ["Cell", "expected", "listed"]

T = TypeVar("T")
_LOSSES = (Lost, EOFError, TimeoutError, Garbled)
_AGAIN = 2
"""How often a call that may be made again is made again, each time to a fresh worker."""
_SQL = frozenset({"sql", "fuses"})


class Cell:
    """A component and its worker.

    Args:
        keeper: starts workers of the plugin.
        entry: where the component's class is.
        raw: the node's `with:` block.
        path: where it stands in the workflow.
        grants: what the plugin was granted, not yet made concrete.
        ctx: the component's context.

    Attributes:
        ctx: the context.
        features: what the component says it can do; SQL is not asked of it, so it offers none.
        facts: what else it says of itself.
        questions: the host's answers to the worker.
        cancelled: `cancel` was called.
    """

    def __init__(
        self, keeper: Keeper, entry: str, raw: Any, path: Sequence[str | int], grants: Mapping[str, Any], ctx: ComponentContext
    ) -> None:
        self.ctx = ctx
        self.cancelled = False
        self.questions = Questions(ctx)
        self._keeper = keeper
        self._build = (entry, raw, list(path), _around(ctx))
        self._grants = expand(grants, raw if isinstance(raw, Mapping) else {})
        self._worker: Worker | None = None
        self._setup: list[tuple[str, tuple[Any, ...]]] = []
        self._pieces: Iterator[Any] | None = None
        self._ahead: Callable[[], None] | None = None
        self._begin()

    @property
    def alive(self) -> bool:
        """Whether the component still has its worker."""
        return self._worker is not None

    @property
    def deadline(self) -> float:
        """Seconds that a call may take.

        Raises:
            DataflareError: `plugin.crashed`: the component has no worker any more.
        """
        return self._alive().connection.deadline

    def _begin(self) -> None:
        """Start a worker, build the component in it, and bring it to where the last one was."""
        worker = self._worker = self._keeper.start(self._grants, self.ctx)
        answers = {**self.questions.answers, "cancelled": lambda: self.cancelled or bool(self.ctx.cancelled())}
        worker.connection.answers = answers
        worker.connection.tell = self.questions.tell
        try:
            self.facts = expected(self.call("build", *self._build, target="worker"), dict)
            self.features = frozenset(expected(f, str) for f in expected(self.facts.get("features"), frozenset)) - _SQL
            for method, arguments in self._setup:
                self.call(method, *arguments)
        except Garbled as error:
            raise self.lost(error) from error
        except BaseException:
            self.close()
            raise

    def call(
        self, method: str, *arguments: Any, target: str = "component", given: Batch | None = None, seconds: float | None = None
    ) -> Any:
        """Make a call.

        Raises:
            DataflareError: `plugin.crashed`, `plugin.quarantined`, or the plugin's own.
            Exception: as the plugin raised.
        """
        connection = self._alive().connection
        try:
            return connection.call(target, method, *arguments, given=given, seconds=seconds)
        except _LOSSES as error:
            raise self.lost(error) from error

    def prepare(self, method: str, *arguments: Any) -> Any:
        """Make a call that is made again in a fresh worker before anything else."""
        answer = self.call(method, *arguments)
        self._setup = [*self._setup, (method, arguments)][-8:]
        return answer

    def pieces(self, method: str, *arguments: Any, given: Batch | None = None) -> Iterator[Any]:
        """Make a call that is answered piece by piece; a call that is made meanwhile ends it."""
        connection = self._alive().connection
        self._pieces = self._guarded(connection.pieces("component", method, *arguments, given=given))
        return self._pieces

    def ask_ahead(
        self,
        target: str,
        method: str,
        *arguments: Any,
        keep: Callable[[Any], None],
        seconds: float | None = None,
        given: Batch | None = None,
        pieces: bool = False,
    ) -> None:
        """Make a call whose answer is fetched before the next one, by whoever makes it; the worker works meanwhile.

        Args:
            target: as `Connection.call` takes it.
            method: what is called.
            arguments: with what.
            keep: is given the answer, or the error it ended with.
            seconds: how long it may take once somebody waits for it, if not the usual deadline.
            given: the batch among the arguments whose rows the answer may refer to.
            pieces: it is answered piece by piece; the answer is a list of them.
        """
        connection = self._alive().connection
        try:
            connection.ask(target, method, *arguments, given=given)
        except _LOSSES as error:
            raise self.lost(error) from error

        def fetch() -> None:
            try:
                keep(connection.answer(seconds, given=given, pieces=pieces))
            except _LOSSES as error:
                keep(self.lost(error))
            except Exception as error:
                keep(error)

        self._ahead = fetch

    def fetch(self) -> None:
        """Wait for what was asked ahead, if anything was."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._worker is not None:
            ahead()

    def again(self, act: Callable[[], T]) -> T:
        """Do something that may be done again after a worker was lost, in a fresh one."""
        for attempt in range(_AGAIN + 1):
            try:
                if self._worker is None:
                    self._begin()
                return act()
            except Exception as error:
                if attempt == _AGAIN or getattr(error, "code", "") != CRASHED.name:
                    raise
        raise AssertionError

    def lost(self, error: Exception) -> Exception:
        """Let go of a worker that is lost, and return what is to be raised."""
        self.close()
        return self._keeper.failed(error)

    def close(self) -> None:
        """Let go of the worker, if there still is one."""
        worker, self._worker, self._ahead = self._worker, None, None
        if worker is not None:
            worker.close()

    def end(self) -> None:
        """Close the component, then its worker. A worker that is lost on the way is closed all the same."""
        if self._worker is None:
            return
        try:
            self.call("close")
        except DataflareError as error:
            if error.code not in (CRASHED.name, QUARANTINED.name):
                raise
            # What it held went with it: that is closed too, and what ended the run must be told instead.
            self.ctx.log.warning("{}", error.problems[0].message)
        finally:
            self.close()

    def _alive(self) -> Worker:
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            pieces.close()  # type: ignore[attr-defined]
        self.fetch()
        self._keeper.check()
        if self._worker is None:
            raise CRASHED.retriable(f"the worker of the plugin {self._keeper.name!r} is gone")
        return self._worker

    def _guarded(self, pieces: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from pieces
        except _LOSSES as error:
            raise self.lost(error) from error


def expected(value: Any, kind: type[T]) -> T:
    """Return a value that must be of a type.

    Raises:
        Garbled: it is not.
    """
    if not isinstance(value, kind):
        raise Garbled(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def listed(value: Any, kind: type[T]) -> list[T]:
    """Return a list whose values must be of a type.

    Raises:
        Garbled: it is not.
    """
    if not isinstance(value, (list, tuple, frozenset)):
        raise Garbled(f"{type(value).__name__} in place of a list")
    return [expected(v, kind) for v in value]


def _around(ctx: ComponentContext) -> dict[str, Any]:
    return {
        "node": ctx.node,
        "run": ctx.run,
        "base_dir": Path(ctx.base_dir).absolute(),
        "staging_dir": Path(ctx.staging_dir).absolute(),
        "memory": ctx.memory,
        "threads": ctx.threads,
        "linger": ctx.linger,
        "on_record": ctx.on_record,
        "offline": ctx.offline,
    }
