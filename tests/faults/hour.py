"""An hour at a fixed rate: NATS JetStream and a Redis stream → filter → windows → PostgreSQL, Parquet and SQLite, while things go wrong.

Usage: python -m tests.faults.hour --minutes 60 --rate 2000 --seed 7

Producers write numbered rows with event times (out of order, some late, some broken: `tests.faults.hour_load`). At drawn moments
one of `KINDS` happens: the run is killed or stopped for seconds, a broker or PostgreSQL is restarted or killed, connections are cut. A
run that has ended is started again, as a supervisor does. Then the producers end, a last run drains, and DuckDB compares with what
the brokers acknowledged (`tests.faults.hour_oracle`): every row, late row and dead letter once, every window once and as a query over
all rows gives it. Prints a report; exits 1 when something was lost, doubled or wrong, a kind did not happen, a run ended with
something it may not end with, or memory grew.

In the midst of the soak `CALM` of its time passes undisturbed, so that one run lives long; `tests.faults.memory` judges that one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from tests.faults import hour_oracle
from tests.faults.hour_load import STREAM, NatsProducer, Producer, RedisProducer
from tests.faults.hour_runs import Runs
from tests.faults.memory import MIB, Memory
from tests.servers.nats import NatsServer
from tests.servers.postgres import PASSWORD, USER, PostgresServer, installed
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

SERVERS = ("nats", "redis", "postgres")
KINDS = ("kill", "freeze", *(f"{how}_{server}" for how in ("restart", "kill", "cut") for server in SERVERS))
"""What may happen."""
AGAIN = ("kill", "kill", "freeze")
"""What happens oftener than the rest."""
CALM = 0.45
"""Share of the soak, in its midst, in which nothing happens."""
COLUMNS = {"n": "BIGINT", "t": "TIMESTAMP", "k": "INTEGER", "v": "BIGINT"}


def workflow(ports: dict[str, int]) -> dict[str, Any]:
    """Return the workflow; `ports` is where each server is reached."""
    source = {"columns": COLUMNS}
    extract = {"idle": "1d"}  # by default a broker that is away for long would let the other's event time go on alone
    return {
        "name": "hour",
        "delivery": "exactly_once",
        "sources": {
            "nats": {"use": "nats", "with": {"url": f"nats://127.0.0.1:{ports['nats']}", "stream": STREAM, **source}, "extract": extract},
            "redis": {"use": "redis", "with": {"url": f"redis://127.0.0.1:{ports['redis']}/0", "streams": [STREAM], **source}, "extract": extract},
        },
        "processors": [
            {"id": "kept", "use": "filter", "from": ["nats", "redis"], "with": {"where": hour_oracle.KEPT}},
            {
                "id": "counted",
                "use": "aggregate",
                "from": "kept",
                "with": {
                    "by": ["window_start", "k"],
                    "select": {"n": "count(*)", "total": "sum(v)", "newest": "max(n)"},
                    "window": {"tumbling": f"{hour_oracle.WINDOW}s", "on": "t", "lateness": f"{hour_oracle.LATENESS}s"},
                },
            },
        ],
        "destinations": {
            "windows": {
                "use": "postgres",
                "from": "counted",
                "with": {"url": f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{ports['postgres']}/postgres", "table": "public.windows"},
                "write": {"mode": "append"},
            },
            "raw": {"use": "parquet", "from": ["nats", "redis"], "with": {"path": "raw/"}, "write": {"mode": "append"}},
            "late": {"use": "sqlite", "from": "counted.late", "with": {"path": "late.db", "table": "late"}, "write": {"mode": "append"}},
        },
        "errors": {"on_record": "dead_letter", "retry": {"attempts": 6, "initial": "200ms", "max": "2s"}},
        "state": {"checkpoint": {"every": "250ms"}},
    }  # fmt: skip


class Hour:
    """One soak.

    Args:
        folder: where everything of it lies.
        seconds: how long rows are produced.
        rate: rows per second, of both producers together.
        seed: of what is sent and what happens when.
        gap: seconds between two disturbances, on average.
        tell: is told what happens.
    """

    def __init__(self, folder: Path, seconds: float, rate: float, seed: int, gap: float, tell: Any = lambda _text: None) -> None:
        self._folder, self._seconds, self._rate, self._seed, self._gap, self._tell = folder, seconds, rate, seed, gap, tell
        self._chance = random.Random(f"hour {seed}")
        self._servers: dict[str, Any] = {
            "nats": NatsServer(),
            "redis": RedisServer(),
            "postgres": PostgresServer(installed()[0], fsync=True),
        }
        self._proxies: dict[str, Proxy] = {}
        self._producers: list[Producer] = []
        self._ends: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._moments: list[float] = []
        self._runs = Runs(folder, self._ends)
        self._starts = 0

    def run(self) -> dict[str, Any]:
        """Soak, compare, and return the report; `proven` is the verdict."""
        try:
            return self._soak()
        finally:
            self._runs.end(signal.SIGKILL)
            for proxy in self._proxies.values():
                proxy.close()
            for server in self._servers.values():
                server.remove()

    def _soak(self) -> dict[str, Any]:
        for name, server in self._servers.items():
            server.start()
            self._proxies[name] = Proxy(server.port)
        self._servers["nats"].stream(STREAM, ["events"])
        (self._folder / "hour.json").write_text(json.dumps(workflow({n: p.port for n, p in self._proxies.items()})))
        kinds = (("nats", NatsProducer), ("redis", RedisProducer))
        for first, (name, kind) in enumerate(kinds, 1):
            acked = self._folder / f"acked-{name}.csv"
            self._producers.append(kind(self._servers[name].port, acked, rate=self._rate / 2, seed=self._seed, first=first))
            self._producers[-1].start()
        while not all(p.count for p in self._producers):  # a stream of Redis is there with its first entry
            time.sleep(0.05)
        memory = Memory(lambda: self._runs.process.pid if self._runs.process is not None else None)
        memory.start()
        self._disturb()
        for producer in self._producers:
            producer.finish()
        self._runs.end(signal.SIGTERM)
        began = time.monotonic()
        drained = self._runs.drain()
        drained["seconds"] = round(time.monotonic() - began, 1)
        memory.end()
        return self._report(drained, memory)

    # -- what happens ------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        began = time.monotonic()
        calm = (began + self._seconds * (1 - CALM) / 2, began + self._seconds * (1 + CALM) / 2)
        end, due, kinds = began + self._seconds, began, self._kinds()
        while time.monotonic() < end or (set(KINDS) - set(self._done) and time.monotonic() < end + self._seconds):
            due += self._chance.uniform(0.3, 1.7) * self._gap
            if calm[0] < due < calm[1]:
                due = calm[1]
            self._wait(due)
            kind = next(kinds)
            self._tell(f"{time.monotonic() - began:7.1f} s  {kind}, {sum(p.count for p in self._producers)} rows sent")
            self._moments.append(time.monotonic())
            self._happen(kind)
            self._moments.append(time.monotonic())
            self._done[kind] += 1

    def _wait(self, due: float) -> None:
        """Keep a run going until a moment has come, and until it is there to be disturbed."""
        while time.monotonic() < due or not self._runs.alive:
            if self._runs.keep():
                self._starts += 1
                self._moments.append(time.monotonic())
            for producer in self._producers:
                if producer.error is not None:
                    raise producer.error
            time.sleep(0.1)

    def _kinds(self) -> Any:
        """Give kinds for ever: every one in each turn."""
        while True:
            turn = list(KINDS) if not self._done else [*KINDS, *AGAIN]
            self._chance.shuffle(turn)
            yield from turn

    def _happen(self, kind: str) -> None:
        what, _, name = kind.partition("_")
        process = self._runs.process
        assert process is not None
        if kind == "kill":
            process.kill()
        elif kind == "freeze":
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.2, 0.2 * self._gap))
            process.send_signal(signal.SIGCONT)
        elif what == "cut":
            self._proxies[name].cut()
        else:
            server = self._servers[name]
            server.stop() if what == "restart" else server.kill()
            time.sleep(self._chance.uniform(0.0, min(5.0, 0.2 * self._gap)))
            server.start()

    # -- what came of it ---------------------------------------------------------------------------------------

    def _report(self, drained: dict[str, Any], memory: Memory) -> dict[str, Any]:
        with psycopg.connect(self._servers["postgres"].url()) as db:
            windows = db.execute("SELECT window_start, k, n, total, newest FROM windows").fetchall()
        rows = hour_oracle.compare(self._folder, windows, self._runs.letters())
        acked = sum(p.count for p in self._producers)
        stored = {
            "nats": self._servers["nats"].run(lambda _, js: js.stream_info(STREAM)).state.messages,
            "redis": int(self._servers["redis"].cli("XLEN", STREAM)),
        }
        grown = memory.verdict(self._moments)
        missed = sorted(set(KINDS) - set(self._done))
        faults = list(self._runs.faults)
        if sum(stored.values()) != acked:
            faults.append(f"the brokers hold {stored}, the producers were told of {acked} rows")
        whole = all(r["expected"] == r["found"] > 0 and not (r["lost"] or r["doubled"] or r["wrong"]) for r in rows.values())
        return {
            "seconds": round(self._seconds),
            "rows_acknowledged": acked,
            "rows_per_second": round(acked / self._seconds, 1),
            "disturbed": dict(sorted(self._done.items())),
            "disturbances": sum(self._done.values()),
            "missed": missed,
            "runs_started": self._starts,
            "runs_ended": dict(self._ends),
            "rows": rows,
            "memory": grown,
            "drained": {"status": drained.get("status"), "seconds": drained["seconds"]},
            "state_mib": round(sum(f.stat().st_size for f in (self._folder / ".dataflare").rglob("*") if f.is_file()) / MIB, 1),
            "faults": faults,
            "proven": whole and not missed and not faults and not grown["grown"] and drained.get("status") == "done",
        }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--gap", type=float, default=30.0, help="seconds between two disturbances, on average")
    parser.add_argument("--keep", type=Path, help="a folder for everything, which then stays")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="df-hour-")))
        folder.mkdir(parents=True, exist_ok=True)
        soak = Hour(folder, 60 * given.minutes, given.rate, given.seed, given.gap, lambda text: print(text, file=sys.stderr, flush=True))
        report = soak.run()
    print(json.dumps(report, indent=1))
    return 0 if report["proven"] else 1


if __name__ == "__main__":
    sys.exit(main())
