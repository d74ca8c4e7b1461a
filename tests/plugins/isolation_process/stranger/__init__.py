"""A plugin of somebody else. Its hooks hear of runs and decide who may do what."""

from dataflare_sdk import Decision, Problem, hookimpl


@hookimpl
def dataflare_run_event(event):
    if event.event == "boom":
        raise ValueError("a bad monitor")


@hookimpl
def dataflare_authorize(action, resource):
    return Decision(action == "run", "only runs", "stranger")


@hookimpl
def dataflare_check_workflow(workflow, plan):
    return [Problem("stranger.note", f"{workflow.name} has {len(workflow.nodes)} nodes", severity="note")]
