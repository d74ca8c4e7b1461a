"""Codes of the command line."""

from __future__ import annotations

from dataflare_sdk import code

BAD_PLAN = code("run.bad-plan", 3, "A plan document cannot be read.", "Write it anew with `dataflare plan --json`.")
EXISTS = code("init.exists", 4, "A file that would be written exists.", "Give --force, or another folder.")
NO_RUN = code("usage.unknown-run", 2, "There is no run of that id.", "See `dataflare runs list`.")
NO_NODE = code("usage.unknown-node", 2, "There is no node of that id.", "Use the id of a node of the workflow.")
NO_TEMPLATE = code("usage.unknown-template", 2, "There is no template of that name.", "See `dataflare init --list`.")
