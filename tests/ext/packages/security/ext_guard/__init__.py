"""A security provider that came from outside: who may do what stands in a file that the environment names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_sdk import Decision, hookimpl


def _rules() -> dict[str, Any]:
    rules: dict[str, Any] = json.loads(Path(os.environ["EXT_GUARD"]).read_text(encoding="utf-8"))
    return rules


@hookimpl
def dataflare_authenticate(credentials: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the roles of whoever is known."""
    roles = _rules()["people"].get(credentials["user"])
    return None if roles is None else {"name": credentials["user"], "roles": roles}


@hookimpl
def dataflare_authorize(principal: Mapping[str, Any], action: str, resource: str) -> Decision | None:
    """Allow what a role of the person allows; say nothing of a resource without rules."""
    rules = _rules()["resources"].get(resource)
    if rules is None:
        return None
    allowed = any(action in rules.get(role, ()) for role in principal["roles"])
    return Decision(allowed, f"{principal['name']} is {', '.join(principal['roles']) or 'nobody'}", "ext-guard")
