"""`dataflare preview`: the first rows at a node; nothing is written."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_plugins.commands.common import file_argument, params_of, table, workflow_options
from dataflare_sdk.commands import Invocation, RunOptions, verb


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
    from dataflare_sdk.values import plain

    with call.runtime(file.parent, {"runtime.lane": "streaming"}, profile) as runtime:
        workflow = runtime.parse(file, params_of(params), profile)
        names = [n.id for n in workflow.nodes if n.kind != "destination"]
        target = next((n for n in workflow.nodes if n.id == node), None)
        if target is None:
            raise NO_NODE.error(f"there is no node '{node}'", fix=f"there are {', '.join(names)}")
        # What a destination would get is what its input gives.
        node = target.inputs[0].partition(".")[0] if target.kind == "destination" else node
        report = runtime.run(workflow, RunOptions(limit=(node, rows), collect=(node,)))
    if report.status == "failed":
        raise DataflareError(*(Problem(**p) for p in report.document["problems"] if p["severity"] == "error"))
    found = report.tables[node].slice(0, rows)
    columns = [{"name": f.name, "type": str(f.type)} for f in found.schema]
    values = [[plain(v) for v in row.values()] for row in found.to_pylist()]
    call.emit({"dataflare": 1, "command": "preview", "node": node, "columns": columns, "rows": values})
    if not call.json:
        call.say(table(values, [c["name"] for c in columns]))
    return 0
