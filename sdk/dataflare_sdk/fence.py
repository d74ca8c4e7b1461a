"""Fences: a number that grows with every run, so that a stopped process that wakes up cannot write any more."""

from __future__ import annotations

from dataflare.errors import code

FENCED = code(
    "state.fenced",
    4,
    "Another run has taken this workflow over; this one may not write any more.",
    "Let the other run finish, or stop it.",
)


def check_fence(held: int, mine: int, what: str) -> None:
    """Refuse to go on behind a newer run.

    Raises:
        DataflareError: `state.fenced`.
    """
    if held > mine:
        raise FENCED.error(f"{what} was claimed by a newer run (fence {held}, this run has {mine})")
