"""Changes of a busy PostgreSQL into four destinations, while everything but the pipeline's code goes wrong.

Usage: python -m tests.faults.disturbed --times 600 --seed 7 [--clock] [--minutes M]

As `tests.faults.changes`, but what happens to a run is not only SIGKILL: the server dies (fsync on) and comes back, its
backends are terminated, the network is cut, the run is stopped and goes on, or wakes up when another has taken over;
with `--clock` the clock jumps by hours all the while. Runs may end with one clear error of the world's, and are started
again. Prints the report with what was done and what runs ended with; exits 1 when something was lost or doubled.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
from tests.faults import changes
from tests.servers.postgres import PostgresServer, installed
from tests.servers.proxy import Proxy

from dataflare.lifecycle import Runtime
from dataflare_plugins.postgres.scratch import twins
from dataflare_plugins.prove.schedule import Kill
from dataflare_plugins.prove.world import World

ROOT = Path(__file__).parents[2]
KINDS = ("cut", "cut", "cut", "terminate", "server", "pause", "zombie", "kill")
"""What may happen, in the share it has."""
ALLOWED = ("state.fenced", "run.busy", "postgres.connection-lost", "postgres.unreachable", "postgres.busy", "postgres.slot-active")
"""What a disturbed run may end with: somebody else has taken over, or the server was away for too long."""


class Disturbed(changes.Busy):
    """A proof in which the world goes wrong around the runs."""

    def __init__(self, *arguments: Any, times: int, **more: Any) -> None:
        super().__init__(*arguments, kills=times, **more)
        self._chance = random.Random(f"disturbed {more['seed']}")
        self.done: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self._proxy: Proxy | None = None

    def close(self) -> None:
        """End the proxy too."""
        super().close()
        if self._proxy is not None:
            self._proxy.close()

    @property
    def server(self) -> PostgresServer:
        """The scratch server of all databases."""
        found: PostgresServer = self._premises.resources["postgres"].server
        return found

    @contextlib.contextmanager
    def _world(self) -> Iterator[World]:
        with super()._world() as world:
            self._proxy = self._proxy or Proxy(self.server.port)
            nodes = [self._through(n) if n.use == "postgres" else n for n in world.workflow.nodes]
            world.workflow = replace(world.workflow, nodes=tuple(nodes))
            yield world

    def _through(self, node: Any) -> Any:
        """Return a node whose connections go through the proxy."""
        assert self._proxy is not None
        database = node.config["url"].split("@/")[1].split("?")[0]
        url = self.server.url(database).replace(f":{self.server.port}/", f":{self._proxy.port}/")
        return replace(node, config={**node.config, "url": url})

    def _writing(self, world: Any) -> Any:
        url = world.sources["orders"].config["url"]
        return changes.Load(url, self._seed + self._worlds, self.rate, self.told, patient=True)

    def _one(self, world: World, kill: Kill) -> None:
        kind = self._chance.choice(KINDS)
        run = self._nursery.start(self._order(world))
        run.wait(self._chance.uniform(0.05, 1.0) * max(self._usual, 0.5))
        if run.alive:
            self.done[kind] += 1
            heir = getattr(self, f"_{kind}")(world, run)
            run.wait(self._chance.uniform(0.2, 1.5))  # it may get over it
            if heir is not None:
                heir.wait(30.0)
                self._judge(heir)
        self._judge(run)
        self.schedule.killed(kill, at_failpoint=False)

    def _judge(self, run: Any) -> None:
        """End a run; if it has ended by itself, with something it may end with."""
        if (run.alive and run.kill()) or run.killed:
            self.ends["killed"] += 1
            return
        document = run.document
        assert document is not None, f"a run died without a word: {run.said()}"
        code = (document.get("error") or {}).get("code") or document["status"]
        self.ends[code] += 1
        assert code in ("done", *ALLOWED), f"{code}: {document['error']}"

    # -- what happens --------------------------------------------------------------------------------------

    def _cut(self, world: World, run: Any) -> None:
        assert self._proxy is not None
        self._proxy.cut()

    def _terminate(self, world: World, run: Any) -> None:
        with contextlib.suppress(psycopg.Error):
            self.server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )

    def _server(self, world: World, run: Any) -> None:
        self.server.kill()
        time.sleep(self._chance.uniform(0.0, 1.0))
        self.server.start()

    def _pause(self, world: World, run: Any) -> None:
        run.stop()
        time.sleep(self._chance.uniform(0.2, 1.5))
        run.wake()

    def _zombie(self, world: World, run: Any) -> Any:
        run.stop()
        heir = self._nursery.start(self._order(world, take_over=True, once=True))
        heir.wait(self._chance.uniform(0.5, 3.0))
        run.wake()
        return heir

    def _kill(self, world: World, run: Any) -> None:
        run.kill()


def durable() -> Any:
    """Return a scratch server whose commits survive its death."""
    made = object.__new__(twins._Server)
    made.server = PostgresServer(installed()[0], fsync=True).start()
    made.databases = set()
    return made


def run(times: int, seed: int, rate: float, folder: Path, *, clock: bool = False, tell: Any = lambda _text: None) -> dict[str, Any]:
    """Disturb, compare, and return the report."""
    folder.chmod(0o755)
    file = folder / "changes.yaml"
    file.write_text(changes.WORKFLOW)
    Disturbed.rate, Disturbed.told = rate, changes.Told()
    modules = ["tests.faults.clock"] if clock else []
    jumps = folder / "jumps"
    os.environ["TEST_CLOCK"] = str(jumps)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with Runtime(folder) as runtime:
        workflow = runtime.parse(file)
        proof = Disturbed(runtime, workflow, folder, times=times, seed=seed, script=changes.SCRIPT, tell=tell, modules=modules)
        proof._premises.resources["postgres"] = durable()
        try:
            with contextlib.suppress(changes.TimeUp):
                proof.rehearse()
                proof.kill({})
            assert jumps.exists() == clock
            told = Disturbed.told
            return {
                **proof.document(),
                "disturbed": dict(proof.done),
                "runs_ended": dict(proof.ends),
                "transactions": told.transactions,
                "transactions_per_second": round(told.transactions / max(told.seconds, 1e-9), 1),
                "columns_added": told.columns,
                "proven": proof.proven(),
            }
        finally:
            proof.close()


def main() -> int:
    """Run from the command line."""
    parser = changes.options(__doc__)
    parser.add_argument("--times", type=int, default=600)
    parser.add_argument("--clock", action="store_true")
    given = parser.parse_args()
    return changes.conclude(
        given.minutes, lambda folder, tell: run(given.times, given.seed, given.rate, folder, clock=given.clock, tell=tell)
    )


if __name__ == "__main__":
    sys.exit(main())
