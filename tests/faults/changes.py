"""Changes of a busy PostgreSQL into PostgreSQL, SQLite, DuckDB and Parquet at once, killed again and again.

Usage: python -m tests.faults.changes --kills 2600 --each 50 --seed 7 --rate 450 [--minutes M]

`dataflare prove` does the killing and the comparing; this gives it harder writers than its own: several connections
that insert, update, rewrite long texts (TOAST), delete, change keys and add columns, at a steady rate. Prints the report
with the rate that was reached, and exits 1 when something was lost, doubled, or a failpoint was hit too seldom; after M
minutes it ends where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.proof import Proof

WORKFLOW = """
name: changes
sources:
  orders:
    use: postgres
    with: {url: "postgresql://postgres@localhost/shop", table: public.orders}
    extract: {mode: cdc, key: [id]}
processors:
  - id: priced
    use: map
    with: {set: {total_eur: "round(total * 0.92, 2)"}}
destinations:
  postgres:
    use: postgres
    from: priced
    with: {url: "postgresql://postgres@localhost/copy", table: public.orders}
    write: {mode: upsert, key: [id]}
  sqlite:
    use: sqlite
    from: priced
    with: {path: copy.db, table: orders}
    write: {mode: upsert, key: [id]}
  duckdb:
    use: duckdb
    from: priced
    with: {path: copy.duckdb, table: orders}
    write: {mode: upsert, key: [id]}
  parquet:
    use: parquet
    from: priced
    with: {path: copy/}
    write: {mode: append}
"""
SCRIPT = """
CREATE TABLE public.orders (
  id bigint PRIMARY KEY, customer text NOT NULL, status text NOT NULL DEFAULT 'new', total numeric(12, 2) NOT NULL,
  placed_at timestamptz NOT NULL, letter text
);
INSERT INTO public.orders
SELECT i, 'customer ' || i, 'new', i * 1.25, timestamptz '2026-01-01' + i * interval '1 hour',
  CASE WHEN i % 2 = 0 THEN (SELECT string_agg(md5(i || '-' || j), '') FROM generate_series(1, 100) j) END
FROM generate_series(1, 2000) i;
"""
SOME = "(SELECT id FROM orders WHERE id >= %(at)s ORDER BY id LIMIT 1)"
LETTER = "(SELECT string_agg(md5(%(new)s::text || j), '') FROM generate_series(1, 100) j)"
KINDS = {
    "insert": (35, "INSERT INTO orders VALUES (%(new)s, 'customer', 'new', %(at)s / 7.0, now(), CASE WHEN %(new)s %% 3 = 0 THEN " + LETTER + " END)"),
    "update": (30, f"UPDATE orders SET status = 'paid', total = total + 1 WHERE id = {SOME}"),
    "toast": (7, f"UPDATE orders SET letter = {LETTER} WHERE id = {SOME}"),
    "delete": (20, f"DELETE FROM orders WHERE id = {SOME}"),
    "key": (7, f"UPDATE orders SET id = %(new)s WHERE id = {SOME}"),
    "undone": (1, f"DELETE FROM orders WHERE id = {SOME}"),
}  # fmt: skip
COLUMNS = 3
"""Columns added in a round, at most."""


@dataclass
class Told:
    """What all writers of a proof did."""

    transactions: int = 0
    seconds: float = 0.0
    columns: int = 0


class Load:
    """Writers of one round, in the place of the proof's own.

    Args:
        url: the database.
        seed: of what is written.
        rate: transactions per second, of all connections together.
        told: where it is counted.
        connections: how many write at once.
        patient: connect again when the server is gone.
    """

    def __init__(self, url: str, seed: int, rate: float, told: Told, connections: int = 3, *, patient: bool = False) -> None:
        self._url, self._seed, self._told, self._patient = url, seed, told, patient
        self._pause = connections / rate
        self._keys = itertools.count(10_000)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(connections)]
        self._columns = 0
        self.changed = 0

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            for thread in self._threads:
                thread.join(30.0)
            self._told.seconds += time.monotonic() - self._began
            self._told.transactions += self.changed

    def stop(self) -> None:
        """Stop writing; raises what a writer failed with."""
        self.__exit__()
        if self._errors:
            raise self._errors[0]

    def _write(self, number: int) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True) as db:
                    self._write_over(db, chance)
            except psycopg.OperationalError as error:
                if not self._patient:
                    self._errors.append(error)
                    return
                self._stopping.wait(0.05)
            except BaseException as error:
                self._errors.append(error)
                return

    def _write_over(self, db: psycopg.Connection[Any], chance: random.Random) -> None:
        kinds, weights = list(KINDS), [w for w, _ in KINDS.values()]
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - 1.0)
            with contextlib.suppress(psycopg.errors.DeadlockDetected):
                with db.transaction():
                    for kind in chance.choices(kinds, weights, k=chance.randint(1, 3)):
                        db.execute(KINDS[kind][1], {"new": next(self._keys), "at": chance.randint(1, next(self._keys))})
                        if kind == "undone":
                            raise psycopg.Rollback
                with self._lock:
                    self.changed += 1
                    grow = self.changed % 1500 == 700
                if grow:
                    self._add_column(db)

    def _add_column(self, db: psycopg.Connection[Any]) -> None:
        """Let the table grow a column, and fill it for some rows."""
        with self._lock:
            if self._columns == COLUMNS:
                return
            self._columns += 1
            self._told.columns += 1
            name = f"more_{self._columns}"
        db.execute(f"ALTER TABLE orders ADD COLUMN {name} integer")
        db.execute(f"UPDATE orders SET {name} = id %% 100 WHERE id %% 7 = 0".replace("%%", "%"))


class TimeUp(Exception):
    """There is no time for another round."""


class Busy(Proof):
    """A proof whose sources are written to by `Load`."""

    in_a_round = 40
    rate = 450.0
    told = Told()
    end = float("inf")

    def _round(self) -> None:
        if time.monotonic() > self.end:
            raise TimeUp
        super()._round()

    def _finish(self, order: Any) -> dict[str, Any]:
        return super()._finish(replace(order, pace=0.0))  # nobody kills it: it need not last

    def _writing(self, world: Any) -> Any:
        return Load(world.sources["orders"].config["url"], self._seed + self._worlds, self.rate, self.told)


def run(kills: int, each: int, seed: int, rate: float, folder: Path, tell: Any = lambda _text: None) -> dict[str, Any]:
    """Prove, and return the report with what was written; `proven` is the verdict."""
    folder.chmod(0o755)
    file = folder / "changes.yaml"
    file.write_text(WORKFLOW)
    Busy.rate, Busy.told = rate, Told()
    with Runtime(folder) as runtime:
        proof = Busy(runtime, runtime.parse(file), folder, kills=kills, seed=seed, script=SCRIPT, tell=tell, each=each)
        try:
            with contextlib.suppress(TimeUp):
                proof.kill(proof.rehearse())
            told = Busy.told
            return {
                **proof.document(),
                "transactions": told.transactions,
                "transactions_per_second": round(told.transactions / max(told.seconds, 1e-9), 1),
                "columns_added": told.columns,
                "proven": proof.proven(),
            }
        finally:
            proof.close()


def options(document: str | None) -> argparse.ArgumentParser:
    """Return the options that every soak over a busy capture takes."""
    made = argparse.ArgumentParser(description=document)
    made.add_argument("--seed", type=int, default=7)
    made.add_argument("--rate", type=float, default=450.0)
    made.add_argument("--minutes", type=float, default=float("inf"))
    return made


def conclude(minutes: float, soak: Callable[[Path, Callable[[str], None]], dict[str, Any]]) -> int:
    """Run a soak in a folder of its own, print its report, and return the exit code."""
    Busy.end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="df-soak-") as folder:
        report = soak(Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(report, indent=1))
    return 0 if report["proven"] else 1


def main() -> int:
    """Run from the command line."""
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--each", type=int, default=50)
    given = parser.parse_args()
    return conclude(given.minutes, lambda folder, tell: run(given.kills, given.each, given.seed, given.rate, folder, tell))


if __name__ == "__main__":
    sys.exit(main())
