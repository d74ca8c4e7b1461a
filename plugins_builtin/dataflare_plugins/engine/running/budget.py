"""The error budget: how many of how many rows may fail at a node before the breaker opens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dataflare_sdk import code

BUDGET = code(
    "data.error-budget",
    1,
    "More rows failed than `errors.budget` allows; the breaker opened.",
    "Look at the dead letters, mend the cause, then run again.",
)


@dataclass(slots=True)
class _Window:
    rows: int = 0
    bad: int = 0
    waiting: list[int | None] = field(default_factory=list)


class ErrorBudget:
    """Counts rows in windows of `per`, in the order they come: batches of any size give the same verdict.

    Args:
        ratio: share of a window's rows that may fail.
        per: rows of a window.
    """

    def __init__(self, ratio: float, per: int) -> None:
        self._ratio = ratio
        self._per = per
        self._windows: dict[str, _Window] = {}

    def failed(self, node: str, indices: Iterable[int | None]) -> None:
        """Note rows of the batch in hand that failed, by their index in it where that is known."""
        self._windows.setdefault(node, _Window()).waiting += indices

    def passed(self, node: str, rows: int) -> None:
        """Count a batch of so many rows, those that failed among them.

        Raises:
            DataflareError: `data.error-budget`.
        """
        window = self._windows.setdefault(node, _Window())
        last = max(rows - 1, 0)
        bad = sorted(last if i is None else min(i, last) for i in window.waiting)
        window.waiting = []
        at = 0
        while at < rows:
            took = min(self._per - window.rows, rows - at)
            here = sum(1 for i in bad if at <= i < at + took)
            window.rows, window.bad, at = window.rows + took, window.bad + here, at + took
            self._judge(node, window)
            if window.rows >= self._per:
                window.rows = window.bad = 0

    def _judge(self, node: str, window: _Window) -> None:
        # A hair's breadth for ratios that binary fractions only come near: 0.1 of 30 is 3.
        if window.bad > self._ratio * self._per * (1 + 1e-12):
            raise BUDGET.error(f"{window.bad} of {window.rows} rows failed at '{node}'; the budget is {self._ratio:g} of {self._per}")
