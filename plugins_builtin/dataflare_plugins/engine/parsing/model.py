"""From a merged document to the workflow model: every rule of the format, all problems at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_plugins.engine.parsing.blocks import (
    NODE_NOT_YET,
    NOT_YET,
    DestinationBlock,
    ProcessorBlock,
    SourceBlock,
    WorkflowBlock,
)
from dataflare_plugins.engine.parsing.observe import monitors
from dataflare_sdk import SIGNALS, DataflareError, Marks, Node, Problem, Workflow, code
from dataflare_sdk.fields import nearest, parse

UNKNOWN_KEY = code("workflow.unknown-key", 3, "A key that the format does not have.", "Remove it, or use a key it has.")
INVALID = code("workflow.invalid-value", 3, "A value has the wrong type or shape.", "Give a value of the type named.")
MISSING_KEY = code("workflow.missing-key", 3, "A required key is missing.", "Add the key.")
NOT_YET_CODE = code("workflow.not-yet", 3, "A key of the format whose feature is not built yet.", "Remove it for now.")
BAD_ID = code("workflow.bad-id", 3, "An id has characters it may not have.", "Use letters, digits, _ and -, beginning with a letter.")
DUPLICATE_ID = code("workflow.duplicate-id", 3, "Two nodes have the same id.", "Rename one of them.")
NO_SOURCE = code("workflow.no-source", 3, "A workflow needs at least one source.", "Add one under `sources:`.")
NO_DESTINATION = code("workflow.no-destination", 3, "A workflow needs at least one destination.", "Add one under `destinations:`.")
UNKNOWN_NODE = code("workflow.unknown-node", 3, "`from` names a node that does not exist.", "Use the id of a source or processor.")
SAME_INPUT = code("workflow.same-input", 3, "`from` names the same rows twice.", "Name them once; a self join is a `sql` of one input.")
AMBIGUOUS = code("workflow.ambiguous-input", 3, "Several sources and no `from`: the input is not clear.", "Say `from: SOURCE`.")
CYCLE = code("workflow.cycle", 3, "Nodes feed each other in a circle.", "Change the `from` of one of them.")
NEEDS_KEY = code("workflow.needs-key", 3, "An upsert needs the columns that identify a row.", "Add `write: {key: [...]}`.")
NEEDS_CURSOR = code("workflow.needs-cursor", 3, "An incremental extraction needs a cursor column.", "Add `extract: {cursor: ...}`.")
UNREAD = code("workflow.unread", 3, "A node whose rows nobody reads.", "Remove it, or read `from` it.")

ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
FILE_SOURCES = frozenset(("csv", "jsonl", "parquet", "arrow"))
"""Sources whose incremental extraction goes by file name and time, without a cursor."""
_CODES = {"config.unknown-key": UNKNOWN_KEY, "config.invalid": INVALID, "config.missing-key": MISSING_KEY}
_SETTINGS = ("errors", "state", "runtime", "observe", "delivery", "plugins", "timezone", "schedule")


class ModelMaker:
    """Checks one merged document and makes the model of it."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        marks: Marks,
        file: str | None,
        base: str,
        stem: str,
        params: Mapping[str, Any],
        features: Callable[[str], Collection[str]],
    ) -> None:
        self._raw = dict(raw)
        self._marks = marks
        self._file = file
        self._base = base
        self._stem = stem
        self._params = params
        self._features = features
        self._problems: list[Problem] = []
        self._monitors: list[dict[str, Any]] = []

    def make(self) -> Workflow:
        """Return the model.

        Raises:
            DataflareError: everything that is wrong, sorted by place.
        """
        document = dict(self._raw)
        top = self._top()
        nodes = [*self._sources(), *self._processors(), *self._destinations()]
        self._check_ids(nodes)
        if not any(n.kind == "source" for n in nodes) and not self._wrong_under("sources"):
            self._add(NO_SOURCE, "there is no source", ("sources",))
        if not any(n.kind == "destination" for n in nodes) and not self._wrong_under("destinations"):
            self._add(NO_DESTINATION, "there is no destination", ("destinations",))
        nodes = self._connected(nodes)
        if len({n.id for n in nodes}) == len(nodes):
            self._check_cycles(nodes)
        nodes = self._with_defaults(nodes)
        if self._problems:
            raise DataflareError(*sorted(self._located(), key=lambda p: (p.line or 0, p.column or 0)))
        assert top is not None
        settings = {k: v for k in _SETTINGS if (v := _plain(getattr(top, k))) is not None}
        if top.observe is not None:
            told = {k: v for k, v in settings["observe"].items() if k not in SIGNALS}
            settings["observe"] = {**told, "monitors": self._monitors}
        given = self._raw.get("state")
        settings["state_given"] = isinstance(given, Mapping) and "checkpoint" in given
        settings["params"] = dict(self._params)
        return Workflow(
            name=top.name or self._stem,
            nodes=tuple(nodes),
            settings=settings,
            file=self._file,
            base_dir=self._base,
            marks=self._marks,
            document=document,
        )

    # -- blocks ------------------------------------------------------------------------------------------

    def _top(self) -> WorkflowBlock | None:
        for path, name in NOT_YET:
            self._refuse_early(path, name)
        mode = self._raw.get("runtime", {}).get("mode") if isinstance(self._raw.get("runtime"), Mapping) else None
        if mode in ("edge", "cloud"):
            self._add(NOT_YET_CODE, f"`runtime.mode: {mode}` is not built yet", ("runtime", "mode"))
            self._raw["runtime"] = {k: v for k, v in self._raw["runtime"].items() if k != "mode"}
        for name, kind in (("sources", dict), ("processors", list), ("destinations", dict)):
            if self._raw.get(name, kind()) is None:
                self._raw[name] = kind()
        found: WorkflowBlock | None = self._parsed(WorkflowBlock, self._raw, ())
        if found is not None and found.observe is not None:
            self._monitors = monitors(found.observe, lambda message, path: self._add(INVALID, message, path))
        if found is not None and found.timezone != "UTC":
            self._check_timezone(found.timezone)
        if found is not None and found.schedule is not None:
            self._check_schedule(found.schedule)
        return found

    def _check_schedule(self, block: Any) -> None:
        from dataflare_sdk.schedules import Schedule

        try:
            Schedule(_plain(block))
        except DataflareError as error:
            self._problems += error.problems

    def _check_timezone(self, name: str) -> None:
        import zoneinfo

        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            self._add(INVALID, f"there is no time zone '{name}'", ("timezone",))

    def _refuse_early(self, path: tuple[str, ...], name: str) -> None:
        """Refuse a key that is known and not built yet, and take it away so that it is told once."""
        parent: Any = self._raw
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, Mapping) else None
        if not isinstance(parent, Mapping) or path[-1] not in parent:
            return
        self._add(NOT_YET_CODE, f"`{name}` is not built yet", path)
        rest = {k: v for k, v in parent.items() if k != path[-1]}
        if len(path) == 1:
            self._raw = rest
        else:
            self._raw[path[0]] = rest

    def _sources(self) -> list[Node]:
        made = []
        for name, raw in self._mapping("sources"):
            path = ("sources", name)
            block = self._parsed(SourceBlock, self._node(raw, path), path)
            if block is None:
                continue
            extract = _plain(block.extract) or {}
            extract["key"] = list(_listed(extract.get("key")))
            features = self._features(block.use)
            endless = "full" not in features and "incremental" in features
            if endless and not _says_mode(raw):
                # What never ends (a topic, a queue) cannot be read whole: each run goes on where the last one stopped.
                extract["mode"] = "incremental"
            mode = extract.get("mode", "full")
            if mode == "incremental" and not extract.get("cursor") and not endless and _bare(block.use) not in FILE_SOURCES:
                self._add(NEEDS_CURSOR, f"'{name}' is read incrementally and has no cursor", (*path, "extract"))
            if block.partition is not None:
                extract["partition"] = _plain(block.partition)
            blocks = {"extract": extract, **_given(block, "errors")}
            made.append(Node(name, "source", block.use, block.with_, (), blocks, path))
        return made

    def _processors(self) -> list[Node]:
        raw = self._raw.get("processors") or []
        made = []
        for i, item in enumerate(raw if isinstance(raw, list) else []):
            path = ("processors", i)
            block = self._parsed(ProcessorBlock, self._node(item, path), path)
            if block is not None:
                made.append(
                    Node(block.id, "processor", block.use, block.with_, _listed(block.from_), _given(block, "errors", "partition"), path)
                )
        return made

    def _destinations(self) -> list[Node]:
        made = []
        for name, raw in self._mapping("destinations"):
            path = ("destinations", name)
            block = self._parsed(DestinationBlock, self._node(raw, path), path)
            if block is None:
                continue
            blocks = _given(block, "errors", "schema", "write")
            if "write" in blocks:
                blocks["write"]["key"] = list(_listed(blocks["write"].get("key")))
            made.append(Node(name, "destination", block.use, block.with_, _listed(block.from_), blocks, path))
        return made

    def _mapping(self, name: str) -> list[tuple[str, Any]]:
        raw = self._raw.get(name)
        return list(raw.items()) if isinstance(raw, Mapping) else []

    def _node(self, raw: Any, path: tuple[str | int, ...]) -> Any:
        """Take what is not built yet out of a node, and read an empty `with:` as an empty mapping."""
        if not isinstance(raw, Mapping):
            return raw
        for name in NODE_NOT_YET:
            if name in raw:
                self._add(NOT_YET_CODE, f"`{name}` is not built yet", (*path, name))
        kept = {k: v for k, v in raw.items() if k not in NODE_NOT_YET}
        return {**kept, "with": {}} if "with" in kept and kept["with"] is None else kept

    def _parsed(self, kind: type[Any], raw: Any, path: tuple[str | int, ...]) -> Any:
        try:
            return parse(kind, raw, path)
        except DataflareError as error:
            for problem in error.problems:
                known = _CODES.get(problem.code)
                self._problems.append(problem if known is None else replace(problem, code=known.name))
            return None

    # -- the graph ---------------------------------------------------------------------------------------

    def _check_ids(self, nodes: Sequence[Node]) -> None:
        seen: dict[str, Node] = {}
        for node in nodes:
            path = (*node.path, "id") if node.kind == "processor" else node.path
            if not ID.fullmatch(node.id):
                self._add(BAD_ID, f"'{node.id}' is no id", path)
            if node.id in seen:
                self._add(DUPLICATE_ID, f"the id '{node.id}' is a {seen[node.id].kind}'s already", path)
            seen.setdefault(node.id, node)

    def _connected(self, nodes: Sequence[Node]) -> list[Node]:
        """Fill in `from`: the item above, the only source, the last processor."""
        sources = [n.id for n in nodes if n.kind == "source"]
        processors = [n for n in nodes if n.kind == "processor"]
        ids = {n.id: n for n in nodes}
        made = []
        for node in nodes:
            if node.kind != "source" and not node.inputs:
                node = replace(node, inputs=self._default_input(node, sources, processors))
            for i, reference in enumerate(node.inputs):
                self._check_reference(node, reference, i, ids)
            made.append(node)
        return made

    def _default_input(self, node: Node, sources: Sequence[str], processors: Sequence[Node]) -> tuple[str, ...]:
        above = [p for p in processors if p.path < node.path] if node.kind == "processor" else list(processors)
        if above:
            return (above[-1].id,)
        if len(sources) > 1:
            self._add(AMBIGUOUS, f"'{node.id}' has no `from`, and there are several sources: {', '.join(sources)}", node.path)
        return (sources[0],) if len(sources) == 1 else ()

    def _check_reference(self, node: Node, reference: str, index: int, ids: Mapping[str, Node]) -> None:
        name = reference if reference in ids else reference.partition(".")[0]
        path = (*node.path, "from") if (*node.path, "from", index) not in self._marks else (*node.path, "from", index)
        if reference in node.inputs[:index]:
            self._add(SAME_INPUT, f"'{reference}' is read already", path)
        if name not in ids:
            readable = [n.id for n in ids.values() if n.kind != "destination"]
            near = nearest(name, readable)
            fix = f"did you mean '{near}'?" if near else f"there are {', '.join(readable) or 'none'}"
            self._add(UNKNOWN_NODE, f"there is no node '{name}'", path, fix)
        elif ids[name].kind == "destination":
            self._add(UNKNOWN_NODE, f"'{name}' is a destination; nothing can be read from it", path)

    def _check_cycles(self, nodes: Sequence[Node]) -> None:
        ids = {n.id for n in nodes}
        before = {n.id: {r if r in ids else r.partition(".")[0] for r in n.inputs} & ids for n in nodes}
        left = dict(before)
        while True:
            free = [n for n, b in left.items() if not b & left.keys()]
            if not free:
                break
            for n in free:
                del left[n]
        if left:
            # Only nodes that are read by one of the circle are in it.
            circle = _circle(left)
            at = next(n for n in nodes if n.id == circle[0])
            path = (*at.path, "from") if (*at.path, "from") in self._marks else at.path
            self._add(CYCLE, f"these nodes feed each other: {' → '.join([*circle, circle[0]])}", path)

    def _with_defaults(self, nodes: Sequence[Node]) -> list[Node]:
        """Fill in the write mode from the extraction of what is upstream, and check what it needs."""
        made = []
        for node in nodes:
            if node.kind == "destination":
                write = dict(node.blocks.get("write") or {})
                modes = self._modes(node, nodes)
                mode = write.get("mode") or ("upsert" if "cdc" in modes else "append" if "incremental" in modes else "overwrite")
                write["mode"] = "upsert" if mode == "update" else mode
                write.setdefault("key", [])
                # Changes bring their key with them: the planner takes it from the source.
                if write["mode"] == "upsert" and not write["key"] and "cdc" not in modes:
                    self._add(NEEDS_KEY, f"'{node.id}' is written by upsert and has no key", (*node.path, "write"))
                node = replace(node, blocks={**node.blocks, "write": write})
            made.append(node)
        return made

    def _modes(self, node: Node, nodes: Sequence[Node]) -> set[str]:
        """Return how the sources upstream of a node are read."""
        ids = {n.id: n for n in nodes}
        seen: set[str] = set()
        waiting = list(node.inputs)
        modes = set[str]()
        while waiting:
            reference = waiting.pop()
            name = reference if reference in ids else reference.partition(".")[0]
            if name in seen or name not in ids:
                continue
            seen.add(name)
            modes.add((ids[name].blocks.get("extract") or {}).get("mode", "full") if ids[name].kind == "source" else "full")
            waiting += ids[name].inputs
        return modes

    # -- problems ----------------------------------------------------------------------------------------

    def _wrong_under(self, name: str) -> bool:
        return any((p.path or "").partition(".")[0].partition("[")[0] == name for p in self._problems)

    def _add(self, kind: Any, message: str, path: Iterable[str | int], fix: str | None = None) -> None:
        place = Workflow("", (), file=self._file, marks=self._marks).place(*path)
        self._problems.append(kind.problem(message, fix=fix, **place))

    def _located(self) -> list[Problem]:
        from dataflare_plugins.engine.places import parse_path

        blank = Workflow("", (), file=self._file, marks=self._marks)
        return [p if p.line is not None else replace(p, **{**blank.place(*parse_path(p.path)), "path": p.path}) for p in self._problems]


def _circle(before: Mapping[str, set[str]]) -> list[str]:
    """Return one circle among nodes that each wait for another of them."""
    walk: list[str] = []
    here = min(before)
    while here not in walk:
        walk.append(here)
        here = min(n for n in before[here] if n in before)
    return sorted_circle(walk[walk.index(here) :][::-1])


def sorted_circle(circle: list[str]) -> list[str]:
    """Return a circle beginning with its first name, so that it is told the same way every time."""
    start = circle.index(min(circle))
    return circle[start:] + circle[:start]


def _says_mode(raw: Any) -> bool:
    extract = raw.get("extract") if isinstance(raw, Mapping) else None
    return isinstance(extract, Mapping) and "mode" in extract


def _bare(use: str) -> str:
    return use.rpartition("/")[2].partition("@")[0]


def _listed(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _given(block: Any, *names: str) -> dict[str, Any]:
    return {n: v for n in names if (v := _plain(getattr(block, n))) is not None}


def _plain(value: Any) -> Any:
    """Return a parsed block as plain values, durations in seconds and sizes in bytes, without what is None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name.removesuffix("_"), _plain(getattr(value, f.name))) for f in dataclasses.fields(value))
        return {k: v for k, v in pairs if v is not None}
    return value
