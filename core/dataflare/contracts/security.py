"""Security providers: who may do what, and where secrets come from. All fail closed."""

from __future__ import annotations

from typing import Protocol

from dataflare.records import record


@record
class Decision:
    """An authoriser's answer; any deny wins.

    Attributes:
        allow: yes or no.
        reason: shown to the person who was refused.
        provider: who decided.
    """

    allow: bool
    reason: str = ""
    provider: str = ""


class SecretProvider(Protocol):
    """Knows secrets by reference: `${secret:PROVIDER/NAME}` in a workflow."""

    def resolve(self, name: str) -> str | None:
        """Return the secret, or None when this provider does not have it. Never logs it."""
        ...
