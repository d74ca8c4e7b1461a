"""Reads test files: every problem at once, each with its line and column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.workflow_tests.blocks import Case, TestFile
from dataflare_plugins.workflow_tests.codes import NOT_A_TEST
from dataflare_sdk import DataflareError, ErrorCode, Problem
from dataflare_sdk.commands import Runtime
from dataflare_sdk.fields import json_schema, parse
from dataflare_sdk.records import record

ENDINGS = (".test.yaml", ".test.yml", ".test.json")
Place = tuple[str | int, ...]


@record
class Suite:
    """A test file.

    Attributes:
        file: where it is.
        workflow: the workflow it tests.
        cases: its tests, in order.
        marks: path in the document to (line, column).
    """

    file: Path
    workflow: Path
    cases: tuple[Case, ...]
    marks: Mapping[Place, tuple[int, int]]

    def error(self, kind: ErrorCode, message: str, place: Sequence[str | int], fix: str | None = None) -> DataflareError:
        """Return an error about a place in the file."""
        more = {"fix": fix} if fix else {}
        return kind.error(message, **more, **self.place(place))

    def place(self, path: Sequence[str | int]) -> dict[str, Any]:
        """Return file, line, column and path of a place, or of the nearest thing around it that has one."""
        here = tuple(path)
        while here and here not in self.marks:
            here = here[:-1]
        line, column = self.marks.get(here, (1, 1))
        return {"file": str(self.file), "line": line, "column": column, "path": _dotted(path)}


def load(runtime: Runtime, file: Path) -> Suite:
    """Read a test file.

    Raises:
        DataflareError: `workflow.syntax` and its like, `test.invalid`.
    """
    parser = runtime.host.build("parser", "workflow", {})
    document = parser.load(file)
    bare = Suite(file, file, (), dict(document.marks))
    try:
        made = parse(TestFile, document.value if document.value is not None else {})
    except DataflareError as error:
        raise DataflareError(*(_placed(bare, p) for p in error.problems)) from error
    name = made.workflow or file.name.replace(".test.", ".", 1)
    suite = Suite(file, file.parent / name, tuple(made.tests), bare.marks)
    names: set[str] = set()
    for i, case in enumerate(made.tests):
        if case.name in names:
            raise suite.error(NOT_A_TEST, f"there are two tests named '{case.name}'", ("tests", i, "name"))
        names.add(case.name)
    return suite


def found(path: Path) -> list[Path]:
    """Return the test files that a path means: itself, those beside a workflow, or all below a folder."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.name.endswith(ENDINGS) and not _hidden(p.relative_to(path)))
    if path.name.endswith(ENDINGS):
        return [path]
    stem = path.name.rpartition(".")[0] or path.name
    return [p for p in (path.with_name(stem + e) for e in ENDINGS) if p.exists()]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of test files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "DataFlare workflow tests", **json_schema(TestFile)}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _placed(suite: Suite, problem: Problem) -> Problem:
    parts = [int(p[1:-1]) if p.startswith("[") else p for p in re.findall(r"\[\d+\]|[^.\[\]]+", problem.path or "")]
    where = suite.place(parts)
    return replace(problem, code=NOT_A_TEST.name, file=where["file"], line=where["line"], column=where["column"])


def _dotted(path: Sequence[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
