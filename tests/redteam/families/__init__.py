"""Attacks that are data rather than code of a plugin: one module for each family, each with its judge and its controls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from tests.redteam import control
from tests.redteam.bench import Bench, Case, Seen

CASES: dict[str, Case] = {}

Attack = Callable[[Bench], Seen]


def case(level: str, expected: str | tuple[str, ...], check: Callable[[], control.Outcome]) -> Callable[[Attack], Attack]:
    """Make a function one of the cases: its name with dashes is the case's, its docstring what people read.

    Args:
        level: where the attack is stopped.
        expected: what may come of it.
        check: the control.
    """

    def made(function: Attack) -> Attack:
        name = function.__name__.replace("_", "-")
        assert name not in CASES, name

        @functools.wraps(function)
        def attack(folder: Path) -> Seen:
            return function(Bench(folder))

        CASES[name] = Case(
            name, level, (function.__doc__ or "").strip(), (expected,) if isinstance(expected, str) else expected, attack, check
        )
        return function

    return made


def load() -> dict[str, Case]:
    """Return the cases of all families by name."""
    from tests.redteam.families import arrow, hooks, manifests, secret, terminal, wasm, wheels  # noqa: F401 - they fill the table

    return CASES
