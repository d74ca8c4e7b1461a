"""`dataflare dlq replay`: dead letters through the workflow once more, as a run of their own.

Letters that were refused at the same step are one replay. It claims them, and is then a run like any other, only that
its source are the letters: an epoch marks its letters as replayed in the transaction that logs it, and the checkpoint
rows of the destinations decide after a crash. A replay that was not finished is finished first.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataflare_plugins.commands.letters import able, pages
from dataflare_plugins.commands.run import exit_of, watched
from dataflare_sdk import Checkpoint, DataflareError, DeadLetter, LetterFilter, Node, Workflow, code
from dataflare_sdk import schema as schemas
from dataflare_sdk.commands import Invocation, RunOptions, Runtime
from dataflare_sdk.dead_letters import CHANGE, schema_of, to_arrow, whole_row
from dataflare_sdk.records import field, record
from dataflare_sdk.replays import Route, route
from dataflare_sdk.state_sql import ALL
from dataflare_sdk.state_store import opened

if TYPE_CHECKING:
    import pyarrow as pa

UNFINISHED = code(
    "dlq.unfinished-run",
    3,
    "Dead letters cannot be replayed while a run of the workflow is not finished.",
    "Finish it: `dataflare run`, for a stream `dataflare run --once`.",
)
NOT_FROM_HERE = code(
    "dlq.not-from-here",
    3,
    "A dead letter cannot be replayed from the place asked for.",
    "Replay it from another place, `--from source` or `--from STEP`.",
)
NOT_COMMITTED = code(
    "dlq.not-committed",
    4,
    "A replay cannot be given up within an epoch that some destinations hold and others do not.",
    "Finish that epoch first: `dataflare dlq replay`.",
)


@record
class Group:
    """Letters that go the same way.

    Attributes:
        refused: the step that refused them.
        source: the source they came from, None: they begin at a step.
        stream: the output of the source they came by.
        step: the step they begin at, None: at the source.
        changes: they were changes.
        ids: the letters.
        types: the columns they hold, each way of it once.
        runs: the runs they fell out of.
    """

    refused: str
    source: str | None
    stream: str
    step: str | None
    changes: bool
    ids: list[str] = field(default_factory=list)
    types: list[Sequence[Sequence[str]]] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)

    @property
    def start(self) -> str:
        """Return where they begin, for people: `source`, or a step."""
        return self.step or "source"


class Replay:
    """Replays of one workflow's dead letters.

    Args:
        call: the verb's call, for what is told on the way.
        runtime: the runtime.
        workflow: the workflow.
        take_over: ignore another run's lock.
    """

    def __init__(self, call: Invocation, runtime: Runtime, workflow: Workflow, *, take_over: bool = False) -> None:
        self._call = call
        self._runtime = runtime
        self._workflow = workflow
        self._take_over = take_over
        self._records: dict[str, dict[str, Any]] = {}

    # -- what the verb does ------------------------------------------------------------------------------

    def run(self, where: LetterFilter, start: str | None, reread: bool) -> dict[str, Any]:
        """Finish an unfinished replay, then replay the letters asked for; to the first replay that fails.

        Raises:
            DataflareError: `dlq.*`, `run.busy`, and what is wrong with the workflow; nothing was replayed then but
                what is told.
        """
        done: list[dict[str, Any]] = []
        with self._leased() as store:
            found = self._unfinished(store)
            store.release_letters(self._workflow.name, found[0] if found else "")
        if found is not None:
            done.append(self._resumed(*found))
        if not done or done[-1]["status"] == "done":
            with opened(self._runtime.host, self._workflow) as store:
                prepared = [(group, *self._prepared(store, group, reread)) for group in self._groups(store, where, start)]
            for group, _, workflow in prepared:
                done.append(self._claimed(group, workflow))
                if done[-1]["status"] != "done":
                    break
        return self._document(done)

    def dry(self, where: LetterFilter, start: str | None, reread: bool) -> dict[str, Any]:
        """Return what `run` would do; refuses what it would refuse."""
        made: list[dict[str, Any]] = []
        with opened(self._runtime.host, self._workflow) as store:
            for group in self._groups(able(store), where, start):
                way, workflow = self._prepared(store, group, reread)
                made.append(
                    {
                        "id": None, "status": "planned", "from": group.start, "step": group.refused, "letters": len(group.ids),
                        "ids": group.ids[:1000], "through": [n.id for n in way.nodes[1:]],
                        "destinations": [n.id for n in workflow.of("destination")], "notes": _notes(workflow),
                    }
                )  # fmt: skip
                if not self._call.json:
                    to = ", ".join(made[-1]["destinations"])
                    self._call.say(f"{len(group.ids):,} letter(s) refused at '{group.refused}', from {group.start} to {to}")
                    self._tell_notes(made[-1]["notes"])
        if not made and not self._call.json:
            self._call.say(f"{self._workflow.name}: nothing to replay")
        return {**self._head("planned"), "replays": made, "letters": sum(r["letters"] for r in made), "replayed": 0, "refused": 0}

    def abandon(self) -> dict[str, Any]:
        """Give up an unfinished replay.

        Raises:
            DataflareError: `dlq.not-committed`.
        """
        with self._leased() as store:
            found = self._unfinished(store)
            newest: Checkpoint | None = store.load(self._workflow.name)
            if found is not None and newest is not None:
                if not newest.done:
                    raise NOT_COMMITTED.error(f"epoch {newest.epoch} of the replay is written down and not committed everywhere")
                extra = {k: v for k, v in newest.extra.items() if k != "replayed"}
                last = replace(newest, epoch=newest.epoch + 1, start=newest.stop, final=True, done=False, extra=extra)
                store.log(last)
                store.done(last.epoch, finished={"status": "interrupted"})
            released = store.release_letters(self._workflow.name)
        if not self._call.json:
            self._call.say(f"{self._workflow.name}: {released:,} letter(s) are open again")
        return {**self._head("abandoned"), "replays": [], "letters": 0, "replayed": 0, "refused": 0, "released": released}

    def exit_code(self, document: Mapping[str, Any], strict: bool) -> int:
        """Return the exit code of the verb."""
        return exit_of({**document, "rows": {"dead_lettered": document["refused"]}}, strict)

    # -- which letters, and their way --------------------------------------------------------------------

    def _groups(self, store: Any, where: LetterFilter, start: str | None) -> list[Group]:
        """Sort letters by the way they go.

        Raises:
            DataflareError: `dlq.not-from-here`, `dlq.change`.
        """
        groups: dict[tuple[Any, ...], Group] = {}
        for page in pages(able(store), self._workflow.name, where):
            for letter in page:
                step = self._begins(letter, start)
                key = (letter.step, None if step else letter.source, "" if step else letter.stream, step, letter.change is not None)
                group = groups.setdefault(key, Group(*key))
                group.ids.append(letter.id)
                types = letter.input_types if step and letter.input is not None else letter.types
                group.runs.add(letter.run_id)
                if types not in group.types:
                    group.types.append(types)
        return list(groups.values())

    def _begins(self, letter: DeadLetter, start: str | None) -> str | None:
        """Return the step at which a letter begins, None: at its source."""
        if letter.change is not None and (letter.change["op"] not in "cur" or letter.change["unchanged"]):
            what = "deletes a row" if letter.change["op"] == "d" else "does not hold its whole row"
            raise CHANGE.error(f"dead letter {letter.id} is a change that {what}")
        if start in (None, "source") and letter.source is not None:
            return None
        if start == "source":
            raise NOT_FROM_HERE.error(
                f"dead letter {letter.id} is no row of a source: '{letter.step}' was given it by a step that gathers rows",
                fix=f"replay it from that step: `--from {letter.step}`",
            )
        if letter.step == letter.source:
            raise NOT_FROM_HERE.error(f"dead letter {letter.id} was refused by its source", fix="replay it from there: `--from source`")
        if letter.source is not None and not letter.plan_hash:
            raise NOT_FROM_HERE.error(
                f"dead letter {letter.id} was made by an older version, which kept only the row of the source",
                fix="replay it from the source",
            )
        if letter.edited is not None and letter.input is not None:
            raise NOT_FROM_HERE.error(
                f"dead letter {letter.id} was edited as its source gave it; '{letter.step}' saw another row",
                fix="replay it from the source, or take the edited row away: `dataflare dlq edit --undo`",
            )
        return start or letter.step

    def _prepared(self, store: Any, group: Group, reread: bool) -> tuple[Route, Workflow]:
        """Return the way of a group and its workflow, once everything is checked that can be before a row moves.

        Raises:
            DataflareError: `dlq.*`, and what is wrong with the workflow.
        """
        way = route(self._workflow, group.refused, source=group.source, stream=group.stream, step=group.step)
        missing = next((t for t in group.types if not t), None)
        if missing is not None:
            raise NOT_FROM_HERE.error(f"the dead letters of '{group.refused}' do not say of which types their columns are")
        schema = self._columns(store, group)
        workflow = self._cut(store, group, way, schema, reread)
        found = self._runtime.validate(workflow, offline=False)
        if found.plan is None:
            raise DataflareError(*(p for p in found.problems if p.severity == "error"))
        ((_, shown),) = found.plan.node(way.entry).schemas.items()
        needed = schemas.from_json(shown)
        for page in pages(store, self._workflow.name, LetterFilter(ids=tuple(group.ids))):
            held = [x for x in page if not (reread and x.masked and x.edited is None)]
            rows = [whole_row(x, needed.names, group.step is not None) for x in held]
            to_arrow(rows, needed, [x.id for x in held])
        return way, workflow

    def _columns(self, store: Any, group: Group) -> pa.Schema:
        """Return the columns that letters stand for: those they hold, and those that nobody needed when they were made.

        A workflow that needs one of these now must not take it for NULL.
        """
        import pyarrow as pa

        held = schemas.union(schema_of(t) for t in group.types)
        offered: dict[str, str] = {}
        for run in sorted(group.runs):
            for name, kind in _offered((self._record(store, run) or {}).get("plan") or {}, group):
                offered.setdefault(name, kind)
        kinds = schema_of([(n, k) for n, k in offered.items() if n not in held.names])
        names = [*offered, *(n for n in held.names if n not in offered)]
        return pa.schema([held.field(n) if n in held.names else kinds.field(n) for n in names])

    def _cut(self, store: Any, group: Group, way: Route, schema: pa.Schema, reread: bool) -> Workflow:
        """Return the workflow of a replay: what its letters have to go through, the letters in the source's place."""
        told = {
            "id": secrets.token_hex(6),
            "entry": way.entry,
            "output": way.output,
            "step": group.step is not None,
            "refused": group.refused,
            "schema": schemas.to_json(schema),
            "reread": reread and group.step is None,
            "changes": "" if not group.changes else "rows" if all(_mode(n) == "append" for n in way.nodes) else "upsert",
            "passed": list(way.passed),
            "forks": list(way.forks),
            "sources": self._sources(store),
            "united": self._united(store, way),
        }
        errors = {k: v for k, v in (self._workflow.settings.get("errors") or {}).items() if k != "budget"}
        nodes = tuple(self._keyed(store, n) for n in way.nodes) if told["changes"] == "upsert" else way.nodes
        return replace(self._workflow, nodes=nodes, settings={**self._workflow.settings, "errors": errors, "replay": told})

    def _united(self, store: Any, way: Route) -> dict[str, Any]:
        """Return the columns of destinations of which some inputs are left out, as the last run that wrote them knew them."""
        inputs = {n.id: n.inputs for n in self._workflow.of("destination")}
        cut = [n.id for n in way.nodes if len(n.inputs) < len(inputs.get(n.id, ()))]
        found: dict[str, Any] = {}
        for known in self._runs(store).values() if cut else ():
            for one in (known.get("plan") or {}).get("nodes", ()):
                if one["id"] in cut and not one["settings"].get("changes"):
                    found.setdefault(one["id"], one["settings"]["inputs"][0]["schema"])
        return found

    def _keyed(self, store: Any, node: Node) -> Node:
        """Return a destination of changes with the key that they brought, as its last run knew it."""
        write = node.blocks.get("write") or {}
        if node.kind != "destination" or write.get("key"):
            return node
        for known in self._runs(store).values():
            for one in known.get("plan", {}).get("nodes", ()):
                if one["id"] == node.id and (one["settings"].get("write") or {}).get("key"):
                    return replace(node, blocks={**node.blocks, "write": {**write, "key": one["settings"]["write"]["key"]}})
        return node

    def _sources(self, store: Any) -> list[dict[str, Any]]:
        """Return the sources whose offsets a replay hands on, as the run knew them that left the newest checkpoint."""
        newest = store.load(self._workflow.name)
        plan = (self._record(store, newest.run_id) or {}).get("plan") if newest is not None else None
        if not plan:
            return []
        before = plan["settings"].get("replay")
        if before:
            return list(before["sources"])
        return [
            {
                "id": n["id"], "kind": "source", "use": n["use"], "partitions": n["partitions"],
                "settings": {k: v for k, v in n["settings"].items() if k == "extract"},
            }
            for n in plan["nodes"]
            if n["kind"] == "source"
        ]  # fmt: skip

    # -- running -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _leased(self) -> Iterator[Any]:
        with opened(self._runtime.host, self._workflow) as store:
            able(store).acquire(self._workflow.name, take_over=self._take_over)
            yield store

    def _unfinished(self, store: Any) -> tuple[str, dict[str, Any]] | None:
        """Return the replay that is to be finished, and its plan.

        Raises:
            DataflareError: `dlq.unfinished-run`: a run of another kind is to be finished.
        """
        newest = store.load(self._workflow.name)
        if newest is None or (newest.final and newest.done):
            return None
        known = self._record(store, newest.run_id) or {}
        replay = (known.get("window") or {}).get("replay")
        if replay is None or "plan" not in known:
            raise UNFINISHED.error(f"run {newest.run_id} of '{self._workflow.name}' is not finished")
        return str(replay), dict(known["plan"])

    def _record(self, store: Any, run_id: str) -> dict[str, Any] | None:
        if run_id not in self._records:
            self._records.clear()
        return self._runs(store).get(run_id)

    def _runs(self, store: Any) -> dict[str, dict[str, Any]]:
        """Return the run records by id, newest first."""
        if not self._records:
            self._records.update({str(r["run_id"]): dict(r) for r in store.runs(self._workflow.name, ALL)})
        return self._records

    def _resumed(self, replay: str, plan: Mapping[str, Any]) -> dict[str, Any]:
        told = plan["settings"]["replay"]
        workflow = replace(self._workflow, settings={**self._workflow.settings, "replay": told})
        return self._go(replay, workflow, "source" if not told["step"] else _first_step(plan, told["entry"]), told["refused"], plan)

    def _claimed(self, group: Group, workflow: Workflow) -> dict[str, Any]:
        told = workflow.settings["replay"]
        with self._leased() as store:
            # Between then and now somebody may have run: what its sources go on from is what is handed on.
            workflow = replace(workflow, settings={**workflow.settings, "replay": {**told, "sources": self._sources(store)}})
            store.claim_letters(self._workflow.name, told["id"], group.ids)
        return self._go(told["id"], workflow, group.start, group.refused, None)

    def _go(self, replay: str, workflow: Workflow, start: str, refused: str, plan: Mapping[str, Any] | None) -> dict[str, Any]:
        """Run one replay and say how it went."""
        options = RunOptions(window={"replay": replay}, take_over=self._take_over, plan=plan)
        ended = watched(self._call, self._runtime, workflow, options).document
        counts: dict[str, int] = {}
        with opened(self._runtime.host, self._workflow) as store:
            for group in store.count_letters(self._workflow.name, LetterFilter(replay=replay)):
                counts[group["status"]] = counts.get(group["status"], 0) + group["count"]
        # Behind an unfinished run, or under another one, what is claimed stays so until the next replay looks.
        with contextlib.suppress(DataflareError), self._leased() as store:
            found = self._unfinished(store)
            store.release_letters(self._workflow.name, found[0] if found else "")
        made = {
            "id": replay, "run_id": ended["run_id"], "status": ended["status"], "from": start, "step": refused,
            "letters": sum(counts.values()), "replayed": counts.get("replayed", 0), "refused": counts.get("refused", 0),
            "resumed": ended["resumed"], "rows": ended["rows"], "notes": _notes(workflow), "error": ended["error"],
            "problems": ended["problems"],
        }  # fmt: skip
        if not self._call.json:
            self._tell(made)
        return made

    # -- telling -----------------------------------------------------------------------------------------

    def _tell(self, one: Mapping[str, Any]) -> None:
        from dataflare_sdk import Problem

        self._call.report([Problem(**p) for p in one["problems"]])
        self._call.say(
            f"letters of '{one['step']}' from {one['from']}: {one['status']}{', resumed' if one['resumed'] else ''}: "
            f"{one['replayed']:,} replayed, {one['refused']:,} refused again, {one['rows']['written']:,} row(s) written"
        )
        self._tell_notes(one["notes"])

    def _tell_notes(self, notes: Sequence[str]) -> None:
        for note in notes:
            self._call.say(f"  note: {note}")

    def _head(self, status: str) -> dict[str, Any]:
        return {
            "dataflare": 1, "command": "dlq replay", "status": status, "workflow": self._workflow.name, "error": None, "problems": [],
        }  # fmt: skip

    def _document(self, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not done and not self._call.json:
            self._call.say(f"{self._workflow.name}: nothing to replay")
        last: Mapping[str, Any] = done[-1] if done else {"status": "done", "error": None}
        replays = [{k: v for k, v in one.items() if k != "problems"} for one in done]
        sums = {name: sum(one[name] for one in done) for name in ("letters", "replayed", "refused")}
        problems = [p for one in done for p in one["problems"]]
        return {**self._head(last["status"]), "replays": replays, **sums, "error": last["error"], "problems": problems}


def _mode(node: Node) -> str:
    """Return how a destination is written; what is none counts as appended to."""
    return str((node.blocks.get("write") or {}).get("mode")) if node.kind == "destination" else "append"


def _offered(plan: Mapping[str, Any], group: Group) -> list[tuple[str, str]]:
    """Return the columns with types that a run knew, before it dropped what nobody used, where letters begin."""
    nodes = {n["id"]: n for n in plan.get("nodes", ())}
    told = plan.get("settings", {}).get("replay")
    name = group.refused if group.step is not None else group.source
    node = nodes.get(name)
    if node is None:
        return []
    if told and told["entry"] == name:
        return [(f.name, schemas.type_name(f.type)) for f in schemas.from_json(told["schema"])]
    if group.step is not None:
        columns = [c for i in node["settings"].get("offered", ()) for c in i["schema"]["columns"]]
    else:
        streams = {s["name"]: s["columns"] for s in node["settings"].get("discovered", ())}
        columns = streams.get(group.stream) or (next(iter(streams.values())) if len(streams) == 1 else [])
    return [(c["name"], c["type"]) for c in columns]


def _first_step(plan: Mapping[str, Any], entry: str) -> str:
    return next(str(e["target"]) for e in plan["edges"] if e["source"] == entry)


def _notes(workflow: Workflow) -> list[str]:
    """Return what a person should know of a replay that is sound and may still surprise."""
    found = []
    for node in workflow.of("destination"):
        write = node.blocks.get("write") or {}
        if write.get("mode") in ("upsert", "update") and not write.get("pos_column"):
            found.append(f"'{node.id}' upserts without `pos_column`: a replayed row takes the place of a newer one with its key")
    return found
