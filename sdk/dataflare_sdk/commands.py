"""For plugins that add verbs to the command line: `verb`, `Invocation`, and the `Runtime` they drive."""

from __future__ import annotations

from dataflare.commands import Invocation, verb
from dataflare.config import Layer, explain
from dataflare.contracts import RunHandle, RunOptions, RunReport
from dataflare.discovery import Found, discover
from dataflare.errors import error_json
from dataflare.lifecycle import Runtime, Validation
from dataflare.text import one_line

__all__ = [
    "Found",
    "Invocation",
    "Layer",
    "RunHandle",
    "RunOptions",
    "RunReport",
    "Runtime",
    "Validation",
    "discover",
    "error_json",
    "explain",
    "one_line",
    "verb",
]
