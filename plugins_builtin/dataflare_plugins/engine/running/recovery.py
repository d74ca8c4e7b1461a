"""RecoveryManager: where a run begins, anew or after a crash."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_sdk import Checkpoint, Component, NoConfig, NodeSpec, Opened, Plan, StateStore, code
from dataflare_sdk.offsets import kept
from dataflare_sdk.plans import extract_of_spec
from dataflare_sdk.records import field, record

PLAN_CHANGED = code(
    "state.plan-changed",
    3,
    "An unfinished run exists, and the workflow or its inputs changed since.",
    "Undo the change and run again to finish it, or forget it with `dataflare state reset`.",
)
INCONSISTENT = code(
    "state.inconsistent",
    4,
    "The state store and a destination disagree in a way no crash can explain.",
    "Restore the one that was changed by hand, or start over with `dataflare state reset`.",
)

OTHER_SHAPE = code(
    "state.other-shape",
    4,
    "An epoch that is written down cannot be read again: a table has other columns now.",
    "Give the table its columns back until the run has caught up, or start over with `dataflare state reset`.",
)

ENDED_WITHIN = code(
    "source.ended-within",
    4,
    "A source gave rows and ended without an offset behind them: what was read could not be told after a crash.",
    "This is a fault of the source; tell its author. Its last batch has to carry an offset.",
)


@record
class Start:
    """Where a run begins.

    Attributes:
        run_id: its id; a resumed run keeps the old one.
        plan: the plan to run: of a resumed run the one it was begun with.
        started: microseconds since 1970 UTC; of a resumed run when it was begun.
        resumed: it continues an unfinished run.
        checkpoint: the newest logged epoch of that run.
        before: the epoch before it, where a replay starts from.
        offsets: where the sources of a new run start.
        states: what the steps kept of a run before, whose sources had only paused.
    """

    run_id: str
    plan: Plan
    started: int
    resumed: bool = False
    checkpoint: Checkpoint | None = None
    before: Checkpoint | None = None
    offsets: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)


@record
class Decision:
    """What to do with the newest logged epoch, once the destinations said what they hold.

    Attributes:
        epoch: first epoch to process now.
        replay: that epoch is logged already and has to be read again exactly.
        behind: task ids' destination nodes that lack it and may finish it from what they prepared.
    """

    epoch: int
    replay: bool = False
    behind: Sequence[str] = ()


def goes_on(plan: Plan, last: Checkpoint | None) -> dict[str, Any]:
    """Return what steps kept when a run ended whose sources had paused: a later run goes on with it.

    Of a step behind sources that are read whole nothing is kept: their run was over.
    """
    if last is None or not last.states:
        return {}
    pausing = {n.id for n in plan.nodes if n.kind == "source" and extract_of_spec(n).mode != "full"}
    behind = set(pausing)
    for node in plan.nodes:  # upstream first
        if node.id in behind:
            behind |= {edge.target for edge in plan.edges if edge.source == node.id}
    return {name: state for name, state in last.states.items() if name in behind}


class RecoveryManager(Component[NoConfig]):
    """Decides, from the state store and from what the destinations hold, where to go on."""

    Config = NoConfig

    def start(self, store: StateStore, plan: Plan, now: int, run_id: str = "") -> Start:
        """Return where this run begins; a new one bears `run_id`, a resumed one its own.

        Raises:
            DataflareError: `state.plan-changed` when an unfinished run cannot be finished by this plan.
        """
        checkpoint = store.load(plan.workflow)
        if checkpoint is None or (checkpoint.final and checkpoint.done):
            return self._anew(store, plan, now, run_id, checkpoint)
        if checkpoint.plan_hash != plan.hash:
            if self._overwrites(plan):
                return self._anew(store, plan, now, run_id, None)
            raise PLAN_CHANGED.error(
                f"run {checkpoint.run_id} of '{plan.workflow}' is not finished, and {self._changed(store, checkpoint, plan)}"
            )
        history = store.history(plan.workflow)
        before = next((c for c in history if c.run_id == checkpoint.run_id and c.epoch == checkpoint.epoch - 1), None)
        earlier = next((c for c in history if c.run_id != checkpoint.run_id), None) if checkpoint.epoch == 1 else None
        return Start(
            run_id=checkpoint.run_id,
            plan=self._saved_plan(store, checkpoint) or plan,
            started=checkpoint.run_started or now,
            resumed=True,
            checkpoint=checkpoint,
            before=before,
            states=goes_on(plan, earlier),
        )

    def over(self, store: StateStore, start: Start) -> bool:
        """Return True when a run has reached its end, although the answer of the state store did not arrive."""
        newest = store.load(start.plan.workflow)
        return newest is not None and newest.run_id == start.run_id and newest.final and newest.done

    def decide(self, start: Start, opened: Mapping[str, Opened]) -> Decision:
        """Compare the newest logged epoch with what each destination holds.

        Raises:
            DataflareError: `state.inconsistent`.
        """
        logged = start.checkpoint
        if logged is None:
            return Decision(epoch=1)
        held = {n: o.epoch if o.run_id == start.run_id else 0 for n, o in opened.items()}
        behind = [n for n, e in held.items() if e == logged.epoch - 1]
        ahead = [n for n, e in held.items() if e == logged.epoch]
        strange = [n for n in held if n not in behind and n not in ahead]
        if strange or (logged.done and behind):
            node = (strange or behind)[0]
            raise INCONSISTENT.error(
                f"the state store has logged epoch {logged.epoch} of run {start.run_id}, destination '{node}' holds epoch {held[node]}"
            )
        if not behind:
            return Decision(epoch=logged.epoch + 1)
        if logged.epoch > 1 and start.before is None:
            raise INCONSISTENT.error(f"epoch {logged.epoch - 1}, from which '{behind[0]}' must go on, is not kept any more")
        return Decision(epoch=logged.epoch, replay=True, behind=behind)

    def _anew(self, store: StateStore, plan: Plan, now: int, run_id: str, last: Checkpoint | None) -> Start:
        replay = plan.settings.get("replay")
        # Letters stand in for a source here, and others are left out: what their runs go on from is handed on all the same.
        nodes = plan.nodes if replay is None else [NodeSpec(**n) for n in replay["sources"]]
        offsets = kept(store, plan.workflow, nodes, last)
        states = goes_on(plan, last) if replay is None else dict(last.states) if last is not None else {}
        return Start(run_id=run_id or secrets.token_hex(6), plan=plan, started=now, offsets=offsets, states=states)

    def _overwrites(self, plan: Plan) -> bool:
        modes = [(n.settings.get("write") or {}).get("mode") for n in plan.nodes if n.kind == "destination"]
        return all(m in (None, "overwrite") for m in modes)

    def _saved_plan(self, store: StateStore, checkpoint: Checkpoint) -> Plan | None:
        record = self._record(store, checkpoint)
        return Plan.from_json(record["plan"]) if record and "plan" in record else None

    def _record(self, store: StateStore, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
        return next((r for r in store.runs() if r.get("run_id") == checkpoint.run_id), None)

    def _changed(self, store: StateStore, checkpoint: Checkpoint, plan: Plan) -> str:
        """Name the nodes that differ between the plan a run was begun with and today's."""
        saved = self._saved_plan(store, checkpoint)
        if saved is None:
            return "the workflow changed since"
        replay = saved.settings.get("replay")
        if replay is not None:
            return "it is a replay of dead letters: finish that with `dataflare dlq replay` first"
        old = {n.id: (n.use, n.config, n.settings, n.partitions) for n in saved.nodes}
        new = {n.id: (n.use, n.config, n.settings, n.partitions) for n in plan.nodes}
        window = next((s for n in saved.nodes if (s := n.settings.get("extract") or {}).get("stop") is not None), None)
        if window is not None:
            return f"it is the window {window['start']}..{window['stop']} of a backfill: finish that with the same --backfill first"
        names = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        return f"these changed since: {', '.join(names) or 'the graph'}"
