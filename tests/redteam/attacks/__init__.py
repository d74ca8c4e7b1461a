"""What a stranger's plugin may try. Every attack is a function that is given a `Target` and returns what it got.

They are plain Python with the standard library only: the same code runs as a plugin inside the sandbox and, as a control,
inside private namespaces as a user who is not root. An attack has worked when it returns the secret text of the target or
`OVER`, or when somebody outside noticed it (a file changed, a victim died, a server was reached). What stops one is an
exception, whichever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

OVER = "OVER"
"""Returned by an attack on a resource that got more than its limit."""

ATTACKS: dict[str, Attack] = {}


class Attack(NamedTuple):
    """One attack.

    Attributes:
        name: as `make redteam CASE=` takes it.
        run: does it.
        what: one line for people.
        needs: parts of the target it is about: `net`, `victim`, `limits`; `dies`: it works by ending its own process without a word.
    """

    name: str
    run: Callable[[Any], str]
    what: str
    needs: frozenset[str]


def attack(*needs: str) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Make a function one of the attacks; its name with dashes is the case's, its docstring what people read."""

    def made(function: Callable[[Any], str]) -> Callable[[Any], str]:
        name = function.__name__.replace("_", "-")
        ATTACKS[name] = Attack(name, function, (function.__doc__ or "").strip(), frozenset(needs))
        return function

    return made


def load() -> dict[str, Attack]:
    """Return all attacks by name."""
    from . import files, network, processes, resources  # noqa: F401 - they fill the table

    return ATTACKS
