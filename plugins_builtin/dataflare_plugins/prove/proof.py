"""The proof: rounds of kills on twins, each ended by an undisturbed run and compared row for row."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataflare_plugins.prove import oracle
from dataflare_plugins.prove.child import Order
from dataflare_plugins.prove.codes import NOT_PROVEN, RUN_FAILED
from dataflare_plugins.prove.comparing import Comparison, compare
from dataflare_plugins.prove.nursery import PATIENCE, Nursery, Run
from dataflare_plugins.prove.reading import Held, exact, held_by, kept, planned
from dataflare_plugins.prove.schedule import Kill, Schedule
from dataflare_plugins.prove.world import Premises, World, extract_of
from dataflare_plugins.prove.writers import Writers
from dataflare_sdk import DataflareError, Problem, Workflow
from dataflare_sdk.commands import Runtime, error_json

IN_A_RUN = 4
"""Kills of one run of a full extraction, at most, before it may end."""
BATCHES, PACE = 40, 0.01
"""How many batches a run over the rows of the twins has, and seconds each of them takes at least."""
LONGEST = 4.0
"""Seconds after which a run that goes on for ever is killed although it did not come to its failpoint."""


@dataclass(slots=True)
class Tally:
    """What the proof has seen so far.

    Attributes:
        rounds, runs, resumed: how many.
        written: rows changed by writers.
        comparisons: of every destination, after every round.
        counts: destination to rows (expected, found), of destinations that keep nothing.
    """

    rounds: int = 0
    runs: int = 0
    resumed: int = 0
    written: int = 0
    comparisons: list[Comparison] = field(default_factory=list)


class Proof:
    """Proves one workflow.

    Args:
        runtime: builds components.
        workflow: as its file says.
        root: folder for everything; the caller removes it.
        kills: SIGKILLs wanted.
        seed: of everything that is drawn.
        script: text of `<workflow>.sql`, or None.
        tell: called with a sentence now and then.
        modules: more modules for the process that runs are forked from (the test suite's mutants).
        each: kills wanted at every failpoint.
        stop_early: end at the first round that lost or doubled something.

    Attributes:
        in_a_round: kills after which destinations are compared and everything begins anew, where runs go on from each other.
        tally: what was seen so far.
        schedule: what was killed so far, and what comes next.
    """

    in_a_round = 15

    def __init__(
        self,
        runtime: Runtime,
        workflow: Workflow,
        root: Path,
        *,
        kills: int,
        seed: int,
        script: str | None,
        tell: Callable[[str], None] = lambda _text: None,
        modules: Sequence[str] = (),
        each: int = 1,
        stop_early: bool = False,
    ) -> None:
        oracle.check(workflow)
        self._runtime = runtime
        self._root = root
        self._kills = kills
        self._each = each
        self._seed = seed
        self._tell = tell
        self._premises = Premises(runtime.host, workflow, root, seed, script)
        self._goes_on = oracle.goes_on(workflow)
        self._unbounded = any(extract_of(n).mode == "cdc" for n in workflow.of("source"))
        self._stop_early = stop_early
        used = {runtime.host.factory(n.kind, n.use).__module__ for n in workflow.nodes}
        self._nursery = Nursery(root / "runs", [*sorted(used), *modules])
        self._worlds = 0
        self._usual = 1.0
        self._pace = 0.0
        self.tally = Tally()
        self.schedule = Schedule({}, kills, seed, zombies=False)
        self._expected: dict[str, Held] = {}

    def close(self) -> None:
        """Kill what runs, stop the servers."""
        self._nursery.close()
        self._premises.close()

    # -- the two halves ----------------------------------------------------------------------------------

    def rehearse(self) -> dict[str, int]:
        """Run undisturbed on twins; return failpoint to how often it was passed, in the order of the first passing.

        Raises:
            DataflareError: what the run failed with; `prove.cannot-compare`.
        """
        self._small_epochs()
        hits = self._root / "hits.txt"
        hits.touch()
        with self._world() as world, self._writing(world) as writers:
            for _ in range(2 if self._goes_on else 1):
                began = time.monotonic()
                self._finish(self._order(world, hits=str(hits), once=True))
                self._usual = time.monotonic() - began
            writers.stop()
            if self._goes_on:
                self._finish(self._order(world, once=True))
                self._compare(world, self._judged(world))
            else:
                held = held_by(self._runtime, world.workflow)
                self._expected = {n: kept(h, self._root / f"expected-{i}.arrow") for i, (n, h) in enumerate(held.items())}
        passed = Counter(hits.read_text(encoding="utf-8").split())
        return dict(passed)

    def kill(self, passed: dict[str, int]) -> None:
        """Kill until there were enough kills, comparing after every round.

        Raises:
            DataflareError: `prove.run-failed`, `prove.stuck`.
        """
        self.schedule = Schedule(passed, self._kills, self._seed, zombies=not self._unbounded, each=self._each)
        while not self.schedule.done():
            before = self.schedule.kills
            self.schedule.fresh()
            self._round()
            self.tally.rounds += 1
            self._tell(f"{self.schedule.kills} of {self.schedule.wanted} kills, {self.lost} lost, {self.duplicated} duplicated")
            if self.schedule.kills == before and not self.schedule.waiting:
                break  # nothing is left that could be killed
            if self._stop_early and (self.lost or self.duplicated):
                break

    # -- one round ---------------------------------------------------------------------------------------

    def _round(self) -> None:
        with self._world() as world, self._writing(world) as writers:
            limit = self.in_a_round if self._goes_on else IN_A_RUN
            ended = False
            start = self.schedule.kills
            while not ended and not self.schedule.done() and not self.schedule.exhausted() and self.schedule.kills - start < limit:
                self._one(world, self.schedule.next())
                ended = not self._goes_on and world.finished()
            writers.stop()
            self.tally.written += writers.changed
            if not ended:
                self.tally.resumed += bool(self._finish(self._order(world, once=True)).get("resumed"))
                if self._goes_on:
                    self._finish(self._order(world, once=True))  # what a resumed run was not to read any more
            self._compare(world, self._judged(world) if self._goes_on else self._expected)

    def _one(self, world: World, kill: Kill) -> None:
        """Start a run and kill it as the schedule says, unless it comes to its end before."""
        if kill.zombie:
            self._haunted(world, kill)
            return
        spot = None if kill.failpoint is None else f"{kill.failpoint}:{kill.nth}"
        run = self._nursery.start(self._order(world, failpoint=spot, once=self.schedule.missed_before(kill)))
        if kill.failpoint is None:
            run.wait(kill.moment * max(self._usual, 0.05))
        elif run.wait(max(LONGEST, 4 * self._usual) if self._unbounded else PATIENCE) and run.died_at_failpoint:
            self.schedule.killed(kill, at_failpoint=True)
            return
        self.schedule.missed(kill)
        if run.alive and run.kill():
            self.schedule.killed(kill, at_failpoint=False)
        else:
            self._ended(run)

    def _haunted(self, world: World, kill: Kill) -> None:
        """Stop a run, let another take over, wake the first up: it must not write any more."""
        before = world.fence()
        zombie = self._nursery.start(self._order(world))
        zombie.wait(kill.moment * max(self._usual, 0.05))
        if not zombie.alive:
            self._ended(zombie)
            return
        zombie.stop()
        if not self._under_way(world, before):
            if zombie.kill():  # what begins later is a run of its own, and what is over has no heir
                self.schedule.killed(kill, at_failpoint=False)
            return
        heir = self._nursery.start(self._order(world, take_over=True, once=True))
        heir.wait(2.0)
        zombie.wake()
        zombie.wait(2.0)
        if not heir.wait(PATIENCE):
            heir.kill()
        if zombie.kill() or zombie.document is None or zombie.document["status"] != "done":
            self.schedule.killed(kill, at_failpoint=False)
        self._ended(heir)

    def _under_way(self, world: World, before: int) -> bool:
        """Whether a stopped run has taken the lock and is not over; one stopped while it writes that down is not asked."""
        try:
            return world.fence() > before and not world.finished()
        except DataflareError:
            return False

    def _ended(self, run: Run) -> None:
        """Check a run that came to its end by itself.

        Raises:
            DataflareError: `prove.run-failed`.
        """
        document = run.document
        if document is None:
            raise RUN_FAILED.error(f"a run died without a word: {run.said()}")
        _check(document)

    # -- pieces ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _world(self) -> Iterator[World]:
        self._worlds += 1
        world = World(self._premises, self._worlds)
        try:
            yield world
        finally:
            self._nursery.close()
            world.close()

    def _writing(self, world: World) -> Writers:
        return Writers(world, self._seed + self._worlds) if self._goes_on else Writers(None, self._seed)

    def _order(self, world: World, **more: Any) -> Order:
        return Order(world.workflow, str(self._premises.original.base_dir), "", "", pace=self._pace, **more)

    def _finish(self, order: Order) -> dict[str, Any]:
        document = self._nursery.finish(order)
        _check(document)
        return document

    def _judged(self, world: World) -> dict[str, Held]:
        """Return what the destinations should hold, by the sources as they are now."""
        with world.beside(self._worlds) as workflow:
            judge = oracle.undisturbed(workflow)
            self._finish(replace(self._order(world), workflow=judge))
            return held_by(self._runtime, judge)

    def _compare(self, world: World, expected: dict[str, Held]) -> None:
        found = held_by(self._runtime, world.workflow)
        spill = self._root / "spill"
        for name, wanted in expected.items():
            held = found[name]
            alike = exact(self._runtime.host, world.workflow)
            fold = oracle.key_of_changes(world.workflow, name) if held.appended else ()
            made = compare(name, wanted.rows(), held.rows(), spill, exact=alike, where=held.where, fold=fold)
            self.tally.comparisons.append(made)

    def _small_epochs(self) -> None:
        """Let a run have several epochs, unless the workflow says how many: a proof's tables are small.

        A checkpoint of its own would take a workflow out of the bulk lane; there it stays as it is.
        """
        settings = self._premises.original.settings
        with self._world() as world:
            if all(t.lane == "bulk" for t in planned(self._runtime, world.workflow).tasks):
                return
            rows = self._finish(self._order(world, once=True))["rows"]["read"]
        self._pace = PACE
        runtime = settings.get("runtime") or {}
        if not runtime.get("batch"):
            self._premises.settings["runtime"] = {**runtime, "batch": {"rows": max(1, rows // BATCHES)}}
        if not (settings.get("state") or {}).get("checkpoint"):
            self._premises.settings["state"] = {"store": "sqlite", "checkpoint": {"every": 0.25 if self._goes_on else 0.05}}

    @property
    def lost(self) -> int:
        """Rows lost, over all comparisons."""
        return sum(c.lost for c in self.tally.comparisons)

    @property
    def duplicated(self) -> int:
        """Rows too many, over all comparisons."""
        return sum(c.duplicated for c in self.tally.comparisons)

    def document(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        comparisons = self.tally.comparisons
        self.tally.runs = self._nursery.runs
        return {
            "dataflare": 1,
            "command": "prove",
            "workflow": self._premises.original.name,
            "seed": self._seed,
            "kills": self.schedule.kills,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "rows": {"expected": sum(c.expected for c in comparisons), "found": sum(c.found for c in comparisons)},
            "failpoints": dict(self.schedule.hits),
            "rounds": self.tally.rounds,
            "runs": self.tally.runs,
            "resumed": self.tally.resumed,
            "written": self.tally.written,
            "error": None if self.proven() else error_json(self._refusal()),
            "differences": json.loads(json.dumps([d for c in comparisons for d in c.differences][:10], default=str)),
        }

    def _refusal(self) -> Problem:
        """Say why it is not proven."""
        missing = self.schedule.missing()
        seldom = f", hit too seldom: {', '.join(missing)}" if missing else ""
        return NOT_PROVEN.problem(f"{self.lost} rows lost, {self.duplicated} duplicated{seldom}")

    def proven(self) -> bool:
        """Whether nothing was lost or doubled and every failpoint was hit as often as was wanted."""
        return not self.lost and not self.duplicated and not self.schedule.missing()


def _check(document: dict[str, Any]) -> None:
    if document["status"] == "done":
        return
    problems = [Problem(**p) for p in document.get("problems", ()) if p.get("severity", "error") == "error"]
    if problems:
        raise DataflareError(*problems)
    raise RUN_FAILED.error(f"a run ended {document['status']}: {(document.get('error') or {}).get('message')}")
