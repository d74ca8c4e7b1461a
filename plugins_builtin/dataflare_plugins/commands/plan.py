"""`dataflare plan`: what a run would do, as text, as a picture, and as data that `run --plan` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, guarantees, next_times, params_of, table, workflow_options
from dataflare_sdk.commands import Invocation, verb


@click.command("plan")
@file_argument
@workflow_options
@click.option("--format", "form", type=click.Choice(["text", "mermaid", "svg"]), default="text", help="Text, or a picture of the graph.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@click.option("--diff", is_flag=True, help="The rows a run would add, change and delete.")
@click.option("--lane", type=click.Choice(["auto", "bulk", "streaming"]), help="Which way the rows go.")
@verb
def plan(
    call: Invocation, file: Path, params: tuple[str, ...], profile: str | None, form: str, output: Path | None, diff: bool, lane: str | None
) -> int:
    """Show the tasks, lanes, types and guarantee of a workflow."""
    from dataflare_sdk import DataflareError

    if diff:
        from dataflare_plugins.commands.diff import show_diff

        return show_diff(call, file, params_of(params), profile)
    with call.runtime(file.parent, {"runtime.lane": lane} if lane else {}, profile) as runtime:
        workflow = runtime.parse(file, params_of(params), profile)
        found = runtime.validate(workflow, offline=False)
    if found.plan is None:
        raise DataflareError(*(p for p in found.problems if p.severity == "error"))
    times = next_times(workflow)
    document = {**document_of(found.plan.to_json()), **({"schedule": {"next": times}} if times else {})}
    text = _text(document) if form == "text" else _picture(document, form)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    call.emit(document)
    if not call.json:
        call.report(found.problems)
        call.say(f"wrote {output}" if output else text)
    return 0


def document_of(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the document of `plan --json`; its `plan` is what `run --plan` runs."""
    lanes = {n: t["lane"] for t in plan["tasks"] for n in t["nodes"]}
    nodes = []
    for node in plan["nodes"]:
        if node["kind"] == "destination":
            columns = node["settings"]["inputs"][0]["schema"]["columns"]
            origin = {c["name"]: plan["lineage"].get(f"{node['id']}.{c['name']}") for c in columns}
            columns = [{**c, "from": origin[c["name"]]} for c in columns]
        else:
            schema = node["schemas"].get("") or next(iter(node["schemas"].values()))
            columns = [{**c, "from": None} for c in schema["columns"]]
        nodes.append({"id": node["id"], "kind": node["kind"], "plugin": node["use"], "lane": lanes[node["id"]], "columns": columns})
    return {
        "dataflare": 1,
        "command": "plan",
        "workflow": plan["workflow"],
        "tasks": plan["tasks"],
        "nodes": nodes,
        "edges": plan["edges"],
        "guarantee": plan["guarantee"],
        "notes": plan["notes"],
        "plan": plan,
    }


def _text(document: dict[str, Any]) -> str:
    tasks = [(t["id"], t["lane"], t["why"]) for t in document["tasks"]]
    nodes = [(n["id"], n["kind"], n["plugin"], ", ".join(f"{c['name']} {c['type']}" for c in n["columns"])) for n in document["nodes"]]
    parts = [table(nodes, ("node", "kind", "plugin", "columns")), "", table(tasks, ("task", "lane", "why")), ""]
    return "\n".join([*parts, *guarantees(document["guarantee"]), *(f"  note: {n}" for n in document["notes"]), *_next(document)])


def _next(document: dict[str, Any]) -> list[str]:
    return ["  next: " + ", ".join(document["schedule"]["next"])] if "schedule" in document else []


def _picture(document: dict[str, Any], form: str) -> str:
    from dataflare_plugins.commands import picture

    nodes = [(n["id"], n["kind"], n["plugin"]) for n in document["nodes"]]
    edges = [(e["source"], e["output"], e["target"]) for e in document["edges"]]
    return picture.mermaid(nodes, edges) if form == "mermaid" else picture.svg(nodes, edges)
