"""`test --update`: the expected rows of failed tests, written anew where they stand."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from dataflare_plugins.workflow_tests.codes import NOT_UPDATED
from dataflare_plugins.workflow_tests.comparing import plain_rows
from dataflare_plugins.workflow_tests.document import Place, Suite
from dataflare_plugins.workflow_tests.judging import expected_of
from dataflare_plugins.workflow_tests.running import Result
from dataflare_sdk import duck
from dataflare_sdk.commands import Invocation
from dataflare_sdk.schema import literal

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*([ .-][A-Za-z0-9_]+)*")
WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "nan", "inf"))


def update_files(call: Invocation, results: Sequence[Result], yes: bool) -> None:
    """Show what would be written, ask, and write it.

    Raises:
        DataflareError: `test.not-updated`: rows do not stand where they can be replaced.
    """
    for suite in dict.fromkeys(r.suite.file for r in results):
        own = [r for r in results if r.suite.file == suite and r.status == "failed" and r.outcome is not None]
        if own:
            _update(call, own, yes)


def _update(call: Invocation, results: Sequence[Result], yes: bool) -> None:
    suite = results[0].suite
    before = suite.file.read_text(encoding="utf-8")
    lines = before.splitlines()
    edits: list[tuple[int, int, list[str]]] = []
    files: dict[Path, pa.Table] = {}
    for result in results:
        for name, raw in suite.cases[result.index].expect.items():
            place: Place = ("tests", result.index, "expect", name)
            wanted = expected_of(suite, place, raw)
            found = result.outcome.tables.get(name) if result.outcome is not None else None
            if found is None or wanted.contains is not None or (wanted.rows is None and wanted.file is None):
                continue
            if wanted.file is not None:
                files[suite.file.parent / wanted.file] = found
            else:
                at = (*place, "rows") if isinstance(raw, Mapping) else place
                named = list(dict.fromkeys(k for row in wanted.rows or () for k in row)) or found.column_names
                edits.append(_edit(suite, lines, at, found.select(named)))
    for start, stop, new in sorted(edits, key=lambda e: e[0], reverse=True):
        lines[start:stop] = new
    after = "\n".join(lines) + "\n"
    shown = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(suite.file), str(suite.file)))
    files = {p: t for p, t in files.items() if p.suffix == ".csv"}
    if not shown and not files:
        return
    call.say(shown + "".join(f"{p}: {t.num_rows} rows\n" for p, t in files.items()), err=True)
    if not yes and not click.confirm(f"Write {suite.file}?", err=True):
        return
    suite.file.write_text(after, encoding="utf-8")
    for path, table in files.items():
        with duck.connect() as db:
            db.register("found", table)
            db.execute(f"COPY found TO {literal(str(path))} (HEADER)")


def _edit(suite: Suite, lines: Sequence[str], place: Place, rows: pa.Table) -> tuple[int, int, list[str]]:
    """Return first line, line behind the last, and the new lines of a list under a key."""
    if place not in suite.marks:
        raise suite.error(NOT_UPDATED, "the expected rows do not stand by themselves", place)
    line, column = suite.marks[place]
    start, indent = line - 1, column - 1
    text = lines[start]
    head = re.match(r"""("[^"]*"|'[^']*'|[^:{}\[\]]+):""", text[indent:])
    if text[:indent].strip(" -") or head is None or re.search(r"[&*!|>]", text[indent + head.end() :].split("#")[0]):
        raise suite.error(NOT_UPDATED, "the expected rows stand in one line with others, or use an anchor", place)
    stop = start + 1
    for i in range(start + 1, len(lines)):
        body = lines[i].lstrip()
        if not body or body.startswith("#"):
            continue
        deep = len(lines[i]) - len(body)
        if deep < indent or (deep == indent and not body.startswith(("- ", "]", "}"))):
            break
        stop = i + 1
    first = text[: indent + head.end()]
    made = [f"{' ' * indent}  - {{{_flow(row)}}}" for row in plain_rows(rows)]
    return start, stop, [first, *made] if made else [f"{first} []"]


def _flow(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{_scalar(k)}: {_scalar(v)}" for k, v in row.items())


def _scalar(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    if isinstance(value, Mapping):
        return f"{{{_flow(value)}}}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(_scalar(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)
