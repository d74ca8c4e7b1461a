"""What the verbs share: the workflow argument, and what is said of nodes and guarantees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflare_sdk.commands import one_line

if TYPE_CHECKING:
    from dataflare_sdk import Workflow

FILE = "dataflare.yaml"


def file_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument FILE, by default `dataflare.yaml`."""
    return click.argument("file", default=FILE, metavar="[FILE]", type=click.Path(path_type=Path))(function)


def workflow_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-p` and `--profile`."""
    function = click.option("--profile", metavar="NAME", help="Lay a profile of the file over it.")(function)
    return click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Give a parameter.")(function)


def params_of(given: Sequence[str]) -> dict[str, str]:
    """Read `-p name=value` options.

    Raises:
        click.BadParameter: one has no `=`.
    """
    made = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="-p")
        made[name] = value
    return made


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Return plain columns for people, numbers to the right."""
    texts = [[_cell(c) for c in row] for row in rows]
    head = [one_line(h) for h in head]
    widths = [max(len(r[i]) for r in [list(head), *texts]) for i in range(len(head))]
    right = [all(isinstance(r[i], (int, float)) for r in rows) if rows else False for i in range(len(head))]
    lines = [list(head), ["─" * w for w in widths], *texts]
    return "\n".join(
        "  ".join(c.rjust(w) if to_right else c.ljust(w) for c, w, to_right in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if isinstance(value, float) else one_line(str(value))


def size(count: float) -> str:
    """Return bytes for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def next_times(workflow: Workflow) -> list[str]:
    """Return the next three times of a workflow's schedule; none when it has no schedule."""
    block = workflow.settings.get("schedule")
    if block is None:
        return []
    from datetime import UTC, datetime

    from dataflare_sdk.schedules import Schedule

    return [t.isoformat() for t in Schedule(block).upcoming(datetime.now(UTC))]


def guarantees(given: Mapping[str, str]) -> list[str]:
    """Return a line per destination."""
    return [f"  {name}: rows appear {promise.replace('_', ' ')}" for name, promise in given.items()]
