"""ErrorHandler: what becomes of a row that a step cannot take, and when enough is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_plugins.engine.running.budget import BUDGET, ErrorBudget
from dataflare_plugins.engine.running.letter_input import LetterOrigin
from dataflare_plugins.engine.running.monitor import Counts
from dataflare_sdk import (
    CODES,
    Batch,
    Component,
    DataflareError,
    DeadLetter,
    NoConfig,
    Plan,
    Problem,
    RestartPolicy,
    RetriableError,
    RowRejection,
    code,
)
from dataflare_sdk.dead_letters import HIDDEN, change_of, column_types, values_at
from dataflare_sdk.plans import output_schemas
from dataflare_sdk.values import plain

STEP_FAILED = code("data.step-failed", 1, "A step failed on a row.", "Mend the row or the step, or set `errors.on_record`.")
MAX_CALLS = 2_000
"""Calls a bisection of one batch may cost before its rest counts as failed."""

Outputs = list[tuple[str, Batch]]


class ErrorHandler(Component[NoConfig]):
    """Applies the policy for bad rows: fail, skip, or dead letter; keeps the budget. One per task."""

    Config = NoConfig

    def begin(self, plan: Plan, run_id: str) -> ErrorHandler:
        """Take the policies of a plan and return itself."""
        self._run_id = run_id
        self._plan = plan
        self._nodes = {n.id: n for n in plan.nodes}
        self._masked = masked_columns(plan)
        budget = (plan.settings.get("errors") or {}).get("budget") or {}
        self._budget = ErrorBudget(float(budget["ratio"]), int(budget.get("per") or 10_000)) if budget else None
        self._letters: list[DeadLetter] = []
        return self

    def take_letters(self) -> list[DeadLetter]:
        """Return the dead letters since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def isolate(
        self,
        node: str,
        component: Any,
        batch: Batch,
        input: str,
        error: Exception,
        counts: Counts,
    ) -> tuple[Outputs, set[int]]:
        """Run a batch that failed again, giving up only its bad rows, and say which (by index) those were.

        Raises:
            DataflareError: the failure is not a row's (a lost connection, a bug), or the policy is `fail`.
        """
        if not is_row_error(error):
            raise error
        attempted = component.attempt(batch, input)
        if attempted is None:
            if "rowwise" not in component.features:
                raise error
            attempted = self._bisect(lambda part: component.process(part, input), batch, error)
        outputs, rejections = attempted
        self.reject(node, rejections, batch, counts)
        return list(outputs), {r.index for r in rejections if r.index is not None}

    def isolate_write(self, node: str, component: Any, batch: Batch, error: Exception, counts: Counts) -> int:
        """Write a batch that a destination refused whole, giving up only its bad rows; returns rows written."""
        if not is_row_error(error):
            raise error
        written = 0

        def write(part: Batch) -> Outputs:
            nonlocal written
            refused = component.write(part)
            self.reject(node, refused, part, counts)
            written += part.data.num_rows - len(refused)
            return []

        _, rejections = self._bisect(write, batch, error)
        self.reject(node, rejections, batch, counts)
        return written

    def _bisect(
        self, call: Callable[[Batch], Iterable[tuple[str, Batch]]], batch: Batch, error: Exception
    ) -> tuple[Outputs, list[RowRejection]]:
        outputs: Outputs = []
        rejections: list[RowRejection] = []
        calls = 0
        waiting: list[tuple[int, int, Exception | None]] = [(0, batch.data.num_rows, error)]
        while waiting:
            start, length, failed = waiting.pop()
            if failed is None:
                calls += 1
                try:
                    outputs += list(call(batch.slice(start, length)))
                    continue
                except Exception as raised:
                    if not is_row_error(raised):
                        raise
                    failed = raised
            if length == 1 or calls >= MAX_CALLS:
                rejections += [_rejection(failed, start + i) for i in range(length)]
                continue
            half = length // 2
            waiting += [(start + half, length - half, None), (start, half, None)]
        return outputs, rejections

    def reject(self, node: str, rejections: Sequence[RowRejection], batch: Batch | None, counts: Counts) -> None:
        """Apply the policy of a node to rows it refused."""
        for rejection in rejections:
            policy = str(rejection.detail.get("policy") or self._nodes[node].settings.get("on_record") or "fail")
            if policy == "fail" and batch is not None and isinstance(batch.origin, LetterOrigin):
                policy = "dead_letter"  # it is one already, and stays one
            if policy == "fail":
                raise self._failure(node, rejection, batch)
            if policy == "skip":
                counts.skipped += 1
            else:
                counts.dead_lettered += 1
                self._letters.append(self._letter(node, rejection, batch))
        if self._budget is not None:
            self._budget.failed(node, [r.index for r in rejections])

    def passed(self, node: str, rows: int) -> None:
        """Count a batch that went through a node, its bad rows included, against the budget.

        Raises:
            DataflareError: `data.error-budget`.
        """
        if self._budget is not None:
            self._budget.passed(node, rows)

    def _failure(self, node: str, rejection: RowRejection, batch: Batch | None) -> DataflareError:
        letter = self._letter(node, rejection, batch)
        at = ", ".join(f"{k} {v}" for k, v in (letter.position or {}).items())
        mend = CODES[rejection.code].mend if rejection.code in CODES else STEP_FAILED.mend
        message = f"'{node}' cannot take a row: {rejection.cause}" + (f" (at {at})" if at else "")
        position = letter.position or {}
        return DataflareError(
            Problem(
                code=rejection.code,
                message=message,
                file=position.get("file"),
                line=position.get("line"),
                path=node,
                fix=mend,
            )
        )

    def _letter(self, node: str, rejection: RowRejection, batch: Batch | None) -> DeadLetter:
        """Return the letter of a refused row: what its source read, and what the step was handed where that is something else."""
        spec = self._nodes[node]
        letter = DeadLetter(
            run_id=self._run_id,
            step=node,
            code=rejection.code,
            # It is kept: what a step says of a row may hold what the step was handed.
            cause=rejection.cause if self.ctx.host is None else self.ctx.host.redacted(rejection.cause),
            position=rejection.position,
            plan_hash=self._plan.hash,
            file_hash=str(self._plan.settings.get("file_hash") or ""),
            plugin=spec.plugin,
            plugin_version=spec.version,
            plugin_hash=spec.hash,
        )
        if batch is None or rejection.index is None:
            if spec.kind == "source":
                types = column_types(next(iter(output_schemas(spec).values()))) if spec.schemas else ()
                letter = replace(letter, source=node, types=types)
            return replace(letter, **self._held(node, rejection.row), raw=None if self._masked.get(node) else rejection.raw)
        index, origin = rejection.index, batch.origin
        seen = values_at(batch.data, index)
        letter = replace(letter, change=change_of(batch, index))
        if origin is None:
            return replace(letter, **self._held(node, rejection.row or seen), types=column_types(batch.data.schema))
        read = values_at(origin.data, origin.index(index))
        made = replace(
            letter,
            source=origin.source,
            stream=batch.stream,
            position=rejection.position or origin.position(index),
            types=column_types(origin.data.schema),
            **self._held(origin.source, rejection.row or read),
        )
        if isinstance(origin, LetterOrigin):
            made = origin.again(made, index)
        if batch.data.schema.equals(origin.data.schema) and seen == read:
            return made
        held = self._held(node, seen)
        return replace(made, input=held["row"], input_masked=held["masked"], input_types=column_types(batch.data.schema))

    def _held(self, node: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a row as it is kept where it leaves a node: columns masked downstream are hidden, and named."""
        if row is None:
            return {"row": None, "masked": ()}
        hidden = [name for name in row if name in self._masked.get(node, ())]
        return {"row": {k: HIDDEN if k in hidden else plain(v) for k, v in row.items()}, "masked": tuple(hidden)}


def is_row_error(error: Exception) -> bool:
    """Return True for a failure that some row caused, False for one of the world, the file or a capability."""
    if isinstance(error, RetriableError):
        return False
    if isinstance(error, DataflareError):
        return error.exit_code == 1 and error.code != BUDGET.name
    return not isinstance(error, (MemoryError, OSError))


def restart_policy(plan: Plan) -> RestartPolicy:
    """Return how often and how fast a run is tried again after a failure of the moment."""
    retry = (plan.settings.get("errors") or {}).get("retry") or {}
    return RestartPolicy(
        attempts=int(retry.get("attempts", 5)),
        backoff=str(retry.get("backoff") or "exponential"),
        initial=float(retry.get("initial", 1.0)),
        max=float(retry.get("max", 60.0)),
    )


def masked_columns(plan: Plan) -> dict[str, frozenset[str]]:
    """Return source id to its columns that a `mask` step hides anywhere downstream, by lineage of names.

    A column that is renamed on its way to the mask cannot be traced by name; then every column of that source
    that carries a masked name or feeds one is hidden as far as names tell.
    """
    hidden: dict[str, set[str]] = {}
    for node in plan.nodes:
        columns = node.config.get("columns") if node.use == "mask" else None
        if isinstance(columns, Mapping):
            for upstream in _upstream(plan, node.id):
                hidden.setdefault(upstream, set()).update(columns)
    return {k: frozenset(v) for k, v in hidden.items()}


def _upstream(plan: Plan, node: str) -> set[str]:
    found = {node}
    while True:
        more = {e.source for e in plan.edges if e.target in found} - found
        if not more:
            return found
        found |= more


def _rejection(error: Exception, index: int) -> RowRejection:
    if isinstance(error, DataflareError):
        return RowRejection(code=error.code, cause=error.problems[0].message, index=index)
    cause = str(error) or type(error).__name__
    return RowRejection(code=STEP_FAILED.name, cause=f"{type(error).__name__}: {cause}", index=index)
