"""The table: every attack, at the level that has to stop it, with what may come of it and its control."""

from __future__ import annotations

from pathlib import Path

from tests.redteam import attacks, control, families, isolated
from tests.redteam.bench import Case
from tests.redteam.isolated import Seen

BY_LIMITS = ("denied", "contained")
"""What may come of an attack on a resource: it is told no, or its process is ended."""


def load() -> dict[str, Case]:
    """Return all cases by name: what a plugin's code tries in its sandbox, then the other families."""
    tried = {name: _tried(chosen) for name, chosen in attacks.load().items()}
    others = families.load()
    assert not tried.keys() & others.keys()
    return {**tried, **others}


def _tried(chosen: attacks.Attack) -> Case:
    def attack(folder: Path) -> Seen:
        return isolated.run(chosen, folder)

    expected = BY_LIMITS if "limits" in chosen.needs else ("denied",)
    return Case(chosen.name, "process", chosen.what, expected, attack, lambda: control.run(chosen.name))
