"""A workflow with everything outside it replaced: sources by given rows, destinations by tables of the occasion, state by a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.workflow_tests import tables
from dataflare_plugins.workflow_tests.blocks import Case, Rows
from dataflare_plugins.workflow_tests.codes import NOT_A_TEST, NOT_GIVEN, UNKNOWN_NODE, UNSET, UNSUPPORTED
from dataflare_plugins.workflow_tests.document import Place, Suite
from dataflare_plugins.workflow_tests.source import OP, write
from dataflare_sdk import DataflareError, Node, Workflow
from dataflare_sdk.commands import Runtime
from dataflare_sdk.fields import nearest, parse
from dataflare_sdk.records import record

UNSET_MARK = "\N{REPLACEMENT CHARACTER}unset:"
SELF_MADE = frozenset({"generate"})
"""Sources that need no rows given: they make the same ones everywhere."""
HOURLY = 3600.0


@record
class Standing:
    """A workflow ready to be tested.

    Attributes:
        workflow: the workflow on its stand-ins.
        advances: seconds that pass after each step.
        sources: ids of the sources that give the test's rows.
        destinations: destination to the file of its table.
        collect: nodes and outputs whose rows are looked at.
    """

    workflow: Workflow
    advances: tuple[float, ...]
    sources: tuple[str, ...]
    destinations: Mapping[str, Path]
    collect: tuple[str, ...]


def parsed(runtime: Runtime, suite: Suite, case: Case) -> Workflow:
    """Read the workflow for a test: a variable of the environment that is not set is none's fault yet.

    Raises:
        DataflareError: what is wrong with the workflow.
    """
    env = {**os.environ, **case.env}
    parser = runtime.host.build("parser", "workflow", {})

    def parse_with(known: Mapping[str, str]) -> Workflow:
        made: Workflow = parser.parse(suite.workflow, params=case.params, profile=case.profile, flags=runtime.flags, env=known)
        return made

    try:
        return parse_with(env)
    except DataflareError as error:
        unset = [re.search(r"'(\w+)'", p.message) for p in error.problems if p.code == "config.unset-variable"]
        if len(unset) != len(error.problems):
            raise
        return parse_with({**env, **{found[1]: UNSET_MARK + found[1] for found in unset if found}})


def known_types(runtime: Runtime, workflow: Workflow) -> dict[str, dict[str, str]]:
    """Return source to its columns with their types, as far as they are known offline: declared, sampled, or kept by `discover`."""
    found: dict[str, dict[str, str]] = {}
    for source in workflow.of("source"):
        stand_in = Node("out", "destination", "blackhole", {}, (source.id,), {"write": {"mode": "append", "key": []}}, ())
        alone = replace(workflow, nodes=(source, stand_in), settings={**workflow.settings, "delivery": None, "state": None})
        try:
            plan = runtime.validate(alone, collect=(source.id,)).plan
        except DataflareError:
            plan = None
        columns = None if plan is None else plan.node(source.id).schemas.get("")
        if columns:
            found[source.id] = {c["name"]: c["type"] for c in columns["columns"]}
        elif (declared := _declared(source)) is not None:
            found[source.id] = declared
    return found


def _declared(source: Node) -> dict[str, str] | None:
    """Return the `columns:` of a source whose plugin cannot be asked, if they are types."""
    from dataflare_sdk import schema as schemas

    columns = source.config.get("columns")
    if not isinstance(columns, Mapping) or not columns:
        return None
    try:
        return tables.types_of(schemas.from_names({str(k): str(v) for k, v in columns.items()}))
    except Exception:
        return None


def stand_in(suite: Suite, index: int, workflow: Workflow, types: Mapping[str, Mapping[str, str]], folder: Path, gate: str) -> Standing:
    """Replace everything that is outside the workflow.

    Args:
        suite: the test file.
        index: of the test.
        workflow: the workflow as `parsed` gave it.
        types: what is known of the sources' columns.
        folder: for the rows, the tables and the state.
        gate: name of the gate that lets the rows out.

    Raises:
        DataflareError: `test.*`.
    """
    return _Maker(suite, index, workflow, types, folder, gate).make()


class _Maker:
    def __init__(
        self, suite: Suite, index: int, workflow: Workflow, types: Mapping[str, Mapping[str, str]], folder: Path, gate: str
    ) -> None:
        self._suite, self._workflow, self._types, self._folder, self._gate = suite, workflow, types, folder, gate
        self._case, self._place = suite.cases[index], ("tests", index)
        self._ids = {n.id: n for n in workflow.nodes}

    def make(self) -> Standing:
        case = self._case
        for block in ("given", "mocks"):
            for name in getattr(case, block):
                self._known(name, (*self._place, block, name))
        steps, advances = self._steps()
        given = {n.id for n in self._workflow.of("source") if any(n.id in step for step in steps)}
        for node in self._workflow.of("source"):
            if node.id not in given and node.use.partition("@")[0] not in SELF_MADE and node.id not in case.mocks:
                raise self._error(NOT_GIVEN, f"the source '{node.id}' is given no rows", "given", fix=f"Add `{node.id}: []`.")
        nodes, mocked = self._replaced(given)
        self._write_rows(steps, mocked)
        wanted, destinations = self._expected(nodes)
        settings = {k: v for k, v in self._workflow.settings.items() if k not in ("observe", "delivery", "schedule")}
        settings["state"] = {"store": "sqlite", "path": str(self._folder / "state.db"), "checkpoint": {"every": HOURLY, "rows": None}}
        errors = dict(settings.get("errors") or {})
        errors["retry"] = {"attempts": 0, "backoff": "constant", "initial": 0.0, "max": 0.0}
        settings |= {"errors": errors, "runtime": {**(settings.get("runtime") or {}), "lane": "streaming"}}
        made = replace(self._workflow, nodes=tuple(nodes), settings=settings)
        self._all_set(made)
        return Standing(made, tuple(advances), tuple(sorted({*given, *mocked})), destinations, wanted)

    # -- rows --------------------------------------------------------------------------------------------

    def _steps(self) -> tuple[list[dict[str, tuple[Any, Place]]], list[float]]:
        """Return for each step source to rows with their place, and how long passes after each."""
        case = self._case
        steps: list[dict[str, tuple[Any, Place]]] = []
        advances: list[float] = []
        if case.given or not case.steps:
            steps.append({s: (raw, (*self._place, "given", s)) for s, raw in case.given.items()})
            advances.append(0.0)
        for i, step in enumerate(case.steps):
            place = (*self._place, "steps", i)
            if step.rows:
                for name in step.rows:
                    if self._known(name, (*place, "rows", name)).kind != "source":
                        raise self._suite.error(UNKNOWN_NODE, f"'{name}' is no source", (*place, "rows", name))
                steps.append({s: (raw, (*place, "rows", s)) for s, raw in step.rows.items()})
                advances.append(0.0)
            if step.advance:
                if not steps:
                    steps.append({})
                    advances.append(0.0)
                advances[-1] += step.advance
        if advances[-1] > 0:  # what time brought about is looked at before the sources end
            steps.append({})
            advances.append(0.0)
        return steps, advances

    def _write_rows(self, steps: list[dict[str, tuple[Any, Place]]], mocked: Mapping[str, pa.Table]) -> None:
        for name in {s for step in steps for s in step} | mocked.keys():
            folder = self._folder / "given" / name
            folder.mkdir(parents=True)
            parts = [self._rows(name, *step[name]) if name in step else None for step in steps] if name not in mocked else []
            if name in mocked:
                parts = [mocked[name], *[None] * (len(steps) - 1)]
            schema = self._schema(name, parts)
            for i, part in enumerate(parts):
                write(folder, i, schema.empty_table() if part is None else _in(schema, part))

    def _rows(self, name: str, raw: Any, place: Place) -> pa.Table:
        node, block = self._ids[name], self._block(raw, place)
        types = {**self._types.get(name, {}), **block.columns}
        changes = (node.blocks.get("extract") or {}).get("mode") == "cdc"
        if changes and types:
            types = {**types, OP: "VARCHAR"}
        found = self._table(block, raw, place, types)
        return self._with_ops(found, place) if changes else found

    def _with_ops(self, found: pa.Table, place: Place) -> pa.Table:
        ops = found.column(OP).to_pylist() if OP in found.column_names else [None] * found.num_rows
        for i, op in enumerate(ops):
            if op not in (None, "c", "u", "d", "r"):
                raise self._suite.error(NOT_A_TEST, f"'{op}' is no kind of change: c, u, d or r", (*place, i, OP))
        kept = found.drop_columns([OP]) if OP in found.column_names else found
        return kept.append_column(OP, pa.array([op or "c" for op in ops], pa.string()))

    def _block(self, raw: Any, place: Place) -> Rows:
        if isinstance(raw, Mapping):
            try:
                return parse(Rows, raw)
            except DataflareError as error:
                raise DataflareError(
                    *(self._suite.error(NOT_A_TEST, p.message, (*place, p.path or "")).problems[0] for p in error.problems)
                ) from None
        return Rows(rows=raw)

    def _table(self, block: Rows, raw: Any, place: Place, types: Mapping[str, str]) -> pa.Table:
        if (block.rows is None) == (block.file is None):
            raise self._suite.error(NOT_A_TEST, "expected a list of rows, or one of `rows` and `file`", place)
        if block.file is not None:
            return tables.from_file(self._suite, block.file, (*place, "file"), types)
        inner = (*place, "rows") if isinstance(raw, Mapping) else place
        return tables.from_rows(self._suite, block.rows, inner, types)

    def _schema(self, name: str, parts: list[pa.Table | None]) -> pa.Schema:
        """Return the columns of all steps of a source."""
        from dataflare_sdk import schema as schemas

        real = [p.schema for p in parts if p is not None and p.num_columns]
        if not real:
            raise self._error(
                NOT_GIVEN, f"the columns of '{name}' are not known", "given", name, fix="Give `{rows: [], columns: {name: type}}`."
            )
        return real[0] if all(s == real[0] for s in real) else schemas.union(real)

    # -- nodes -------------------------------------------------------------------------------------------

    def _replaced(self, given: set[str]) -> tuple[list[Node], dict[str, pa.Table]]:
        nodes, mocked = [], dict[str, pa.Table]()
        for node in self._workflow.nodes:
            if node.kind == "destination":
                nodes.append(self._destination(node))
            elif node.kind == "source":
                nodes.append(self._source(node) if node.id in given else node)
            elif node.id in self._case.mocks:
                nodes.append(self._mock(node, mocked))
            else:
                nodes.append(node)
        return _read_by_somebody(nodes), mocked

    def _source(self, node: Node, key: list[str] | None = None) -> Node:
        raw = self._case.given.get(node.id)
        extract = dict(node.blocks.get("extract") or {})
        if key is None:
            key = list(raw.get("key") or extract.get("key") or []) if isinstance(raw, Mapping) else list(extract.get("key") or [])
        if extract.get("mode") == "cdc" and not key:
            raise self._error(NOT_GIVEN, f"the changes of '{node.id}' have no key", "given", node.id, fix="Give `{key: [id], rows: […]}`.")
        kept = {k: v for k, v in extract.items() if k in ("mode", "cursor", "key", "idle", "on_unchanged")}
        config = {"gate": self._gate, "folder": str(self._folder / "given" / node.id), "key": key}
        errors = {k: v for k, v in node.blocks.items() if k == "errors"}
        return replace(node, kind="source", use="test-rows", config=config, inputs=(), blocks={**errors, "extract": kept})

    def _mock(self, node: Node, mocked: dict[str, pa.Table]) -> Node:
        raw, place = self._case.mocks[node.id], (*self._place, "mocks", node.id)
        block = self._block(raw, place)
        rows = self._table(block, raw, place, block.columns)
        if not rows.num_columns:
            raise self._suite.error(NOT_GIVEN, f"the columns of '{node.id}' are not known", place, "Give `columns` too.")
        if "lookup" in node.config:
            path = self._folder / f"lookup.{node.id}.arrow"
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
            return replace(node, config={**node.config, "lookup": {"use": "arrow", "with": {"path": str(path)}}})
        if any(i.startswith(f"{node.id}.") for n in self._workflow.nodes for i in n.inputs):
            raise self._suite.error(UNSUPPORTED, f"'{node.id}' has several outputs and cannot be mocked", place)
        mocked[node.id] = rows
        return self._source(replace(node, blocks={}), [])

    def _destination(self, node: Node) -> Node:
        if "{stream}" in str(node.config):
            raise self._error(UNSUPPORTED, f"'{node.id}' takes several streams, for which tests have no rows yet")
        blocks = {k: v for k, v in node.blocks.items() if k in ("write", "schema", "errors")}
        return replace(node, use="duckdb", config={"path": str(self._table_of(node.id)), "table": node.id}, blocks=blocks)

    def _table_of(self, destination: str) -> Path:
        return self._folder / f"{destination}.duckdb"

    def _expected(self, nodes: list[Node]) -> tuple[tuple[str, ...], dict[str, Path]]:
        """Return which nodes are collected, and where the destinations are."""
        collect, there = [], {n.id: n for n in nodes}
        for name in self._case.expect:
            place = (*self._place, "expect", name)
            node = self._known(name if name in self._ids else name.partition(".")[0], place)
            if node.kind != "destination":
                if self._case.crash_after is not None:
                    raise self._suite.error(UNSUPPORTED, f"'{name}' keeps no rows over a crash; look at a destination", place)
                if node.id in there:
                    collect.append(name)
        return tuple(collect), {n.id: self._table_of(n.id) for n in nodes if n.kind == "destination"}

    def _all_set(self, made: Workflow) -> None:
        """Refuse variables that are not set where they are needed."""
        for node in made.nodes:
            text = str((node.config, node.blocks))
            if UNSET_MARK in text:
                name = text.partition(UNSET_MARK)[2].split("'")[0].split('"')[0]
                raise self._error(UNSET, f"'{node.id}' needs the variable {name}, which is not set")

    def _known(self, name: str, place: Place) -> Node:
        if name not in self._ids:
            near = nearest(name, list(self._ids))
            fix = f"did you mean '{near}'?" if near else f"there are {', '.join(self._ids)}"
            raise self._suite.error(UNKNOWN_NODE, f"there is no node '{name}'", place, fix)
        return self._ids[name]

    def _error(self, kind: Any, message: str, *inner: str | int, fix: str | None = None) -> DataflareError:
        return self._suite.error(kind, message, (*self._place, *inner), fix)


def _in(schema: pa.Schema, part: pa.Table) -> pa.Table:
    """Return rows in all columns of their source."""
    columns = [part.column(f.name).cast(f.type) if f.name in part.column_names else pa.nulls(part.num_rows, f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _read_by_somebody(nodes: list[Node]) -> list[Node]:
    """Leave out what only led to a node that is mocked."""
    ids = {n.id for n in nodes}
    kept = {n.id for n in nodes if n.kind == "destination"}
    while True:
        more = {i if i in ids else i.partition(".")[0] for n in nodes if n.id in kept for i in n.inputs} - kept
        if not more:
            return [n for n in nodes if n.id in kept]
        kept |= more
