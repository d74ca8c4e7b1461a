"""`dataflare preview`: the first rows at a node; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflare_plugins.commands.common import file_argument, params_of, table, workflow_options
from dataflare_sdk.commands import Invocation, RunOptions, verb

if TYPE_CHECKING:
    from dataflare_sdk import Node, Workflow


@click.command("preview")
@file_argument
@click.argument("node")
@click.option("-n", "--rows", default=20, show_default=True, type=click.IntRange(min=1), help="How many rows.")
@workflow_options
@verb
def preview(call: Invocation, file: Path, node: str, rows: int, params: tuple[str, ...], profile: str | None) -> int:
    """Show the first rows that leave NODE, running only what leads to it."""
    from dataflare_plugins.commands.codes import NO_NODE
    from dataflare_sdk import DataflareError, Problem
    from dataflare_sdk.schema import duck_type
    from dataflare_sdk.values import plain

    with call.runtime(file.parent, {"runtime.lane": "streaming"}, profile) as runtime:
        workflow = runtime.parse(file, params_of(params), profile)
        runtime.authorize("preview", workflow.name)
        names = [n.id for n in workflow.nodes]
        shown = node
        target = next((n for n in workflow.nodes if n.id == node.partition(".")[0]), None)
        if target is None:
            raise NO_NODE.error(f"there is no node '{node}'", fix=f"there are {', '.join(names)}")
        if target.kind == "destination":
            # What it would get is what its inputs give: one as it is, several in union.
            workflow = _looked_at(workflow, target)
            shown = node if len(target.inputs) > 1 else "".join(target.inputs)
        report = runtime.run(workflow, RunOptions(limit=(shown, rows), collect=(shown,)))
    if report.status == "failed":
        raise DataflareError(*(Problem(**p) for p in report.document["problems"] if p["severity"] == "error"))
    found = report.tables[shown].slice(0, rows)
    columns = [{"name": f.name, "type": duck_type(f.type)} for f in found.schema]
    values = [[plain(v) for v in row.values()] for row in found.to_pylist()]
    call.emit({"dataflare": 1, "command": "preview", "node": node, "columns": columns, "rows": values})
    if not call.json:
        call.say(table(values, [c["name"] for c in columns]))
    return 0


def _looked_at(workflow: Workflow, target: Node) -> Workflow:
    """Return the workflow with a destination that only counts in the place of `target`."""
    return replace(workflow, nodes=tuple(replace(n, use="blackhole", config={}, blocks={}) if n is target else n for n in workflow.nodes))
