"""Drives a capture as the engine does, and applies its changes to tables in memory as an upsert destination does."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
import time
from typing import Any

from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.replication.capture import Capture
from dataflare_plugins.postgres.replication.options import CaptureOptions
from dataflare_sdk import Batch, ExtractSpec, Partition, Pause, SchemaChange
from dataflare_sdk.changes import CREATE, DELETE, READ, TRUNCATE, UPDATE
from dataflare_sdk.testing.context import FakeContext


class Tables:
    """What a destination holds: stream to key to row."""

    def __init__(self, key: dict[str, tuple[str, ...]], *, strict: bool = True) -> None:
        self.key = key
        self.rows: dict[str, dict[Any, dict[str, Any]]] = {s: {} for s in key}
        self.strict = strict
        self.ops: dict[str, int] = {}

    def copy(self) -> Tables:
        made = Tables(self.key, strict=self.strict)
        made.rows = {stream: {k: dict(r) for k, r in rows.items()} for stream, rows in self.rows.items()}
        made.ops = self.ops
        return made

    def apply(self, batch: Batch) -> None:
        changes = batch.changes
        assert changes is not None
        rows = self.rows.setdefault(batch.stream, {})
        names = batch.data.schema.names
        columns = [batch.data.column(i).to_pylist() for i in range(len(names))]
        unchanged = {n: f.to_pylist() for n, f in changes.unchanged.items()}
        key = [names.index(k) for k in self.key[batch.stream]]
        for i, op in enumerate(changes.op.to_pylist()):
            self.ops[chr(op)] = self.ops.get(chr(op), 0) + 1
            if op == TRUNCATE:
                rows.clear()
                continue
            mark = tuple(columns[k][i] for k in key)
            if op == DELETE:
                gone = rows.pop(mark, None)
                assert gone is not None or not (self.strict and changes.settled), f"a settled deletion of nothing: {mark}"
                continue
            missing = {n for n, flags in unchanged.items() if flags[i]}
            self.ops["partial"] = self.ops.get("partial", 0) + bool(missing)
            row = {n: columns[c][i] for c, n in enumerate(names)}
            if missing:
                assert op == UPDATE
                if mark not in rows:
                    assert not changes.settled, f"a settled partial change of nothing: {mark} {missing}"
                    continue
                row.update({n: rows[mark].get(n) for n in missing})
            if op == CREATE and self.strict and changes.settled:
                assert mark not in rows, f"a settled insert of what is there: {mark}"
            rows[mark] = row
            assert op in (CREATE, UPDATE, READ)


class Engine:
    """One workflow: its state, and captures over it that can be dropped at any moment."""

    def __init__(
        self,
        database: Any,
        folder: Any,
        names: list[str],
        keys: dict[str, tuple[str, ...]],
        *,
        many: bool = True,
        url: str | None = None,
        **options: Any,
    ) -> None:
        self.database = database
        self.url = url or database.socket_url
        self.ctx = FakeContext(folder, "source")
        self.ctx.log = _Log()
        self.names, self.many, self.options = names, many, options
        self.capture: Capture | None = None
        self.reader: Any = None
        self.offset: Any = None
        self.tables = Tables(keys)
        self.history: list[tuple[Any, Tables]] = []
        self.loose: Tables | None = None
        self.schema_changes: list[SchemaChange] = []
        self.batches = 0
        self.specs: dict[str, Any] | None = None

    def build(self) -> Capture:
        own = {k: v for k, v in self.options.items() if k not in ("streams", "key", "consistency")}
        return Capture(self.ctx, Server(self.url), self.names, many=self.many, options=CaptureOptions(**own))

    def extract(self) -> ExtractSpec:
        own = {k: v for k, v in self.options.items() if k == "consistency"}
        return ExtractSpec(mode="cdc", options=own, streams=self.options.get("streams"), key=self.options.get("key", ()))

    def start(self, until: Any = None) -> None:
        """Open at the committed offset; what was handed out after it is forgotten."""
        self.stop()
        self.capture = self.build()
        streams = self.capture.discover(self.extract())
        (partition,) = self.capture.parts(streams)
        if self.specs is None:
            self.specs = dict(partition.spec)
        self.reader = self.capture.open(Partition(partition.id, partition.stream, self.specs), self.extract(), self.offset, until)
        self.loose = None

    def stop(self) -> None:
        if self.capture is not None:
            self.capture.close()
        self.capture = self.reader = None

    def step(self, seconds: float = 0.1, rows: int = 65_536, size: int = 1 << 24) -> Any:
        """Read once; a batch that ends at a place to go on from commits all since the last one."""
        message = self.reader.read(rows, size, time.monotonic() + seconds)
        if isinstance(message, Batch):
            self.batches += 1
            if self.loose is None:
                self.loose = self.tables.copy() if message.offset is None else self.tables
            self.loose.apply(message)
            if message.offset is not None:
                self.tables, self.loose, self.offset = self.loose, None, dict(message.offset)
        elif isinstance(message, SchemaChange):
            self.schema_changes.append(message)
            assert self.loose is None or "skip" in message.offset
            if self.loose is not None:
                self.tables, self.loose = self.loose, None
            self.offset = dict(message.offset)
            self.specs = None
            self.start()
        return message

    def steps(self, count: int, **how: Any) -> None:
        """Read several times."""
        for _ in range(count):
            self.step(**how)

    def remember(self) -> None:
        self.history.append((copy.deepcopy(self.offset), self.tables.copy()))

    def ack(self) -> None:
        if self.offset is not None and self.capture is not None:
            self.capture.ack(self.offset)

    def until(self, goal: Any, limit: float = 30.0) -> None:
        """Read on to a goal, as `--once` does."""
        self.start(goal)
        end = time.monotonic() + limit
        while True:
            message = self.step()
            if isinstance(message, Pause):
                return
            if isinstance(message, SchemaChange):
                self.start(goal)
            assert time.monotonic() < end, "the goal is not reached"

    def catch_up(self) -> None:
        """Read to where the server stands now."""
        self.until(self.build().position())
        self.stop()


class _Log:
    def __getattr__(self, name: str) -> Any:
        return lambda *a, **k: None


class Writers:
    """Threads that write until they are told to stop."""

    def __init__(self, database: Any, work: Any, count: int = 2, seed: int = 1) -> None:
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self.transactions = 0
        self._threads = [threading.Thread(target=self._run, args=(database, work, random.Random(seed * 100 + i))) for i in range(count)]

    def _run(self, database: Any, work: Any, rng: random.Random) -> None:
        import psycopg

        try:
            with database.connect() as db:
                while not self._stop.is_set():
                    with contextlib.suppress(
                        psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.UndefinedColumn
                    ):
                        work(db, rng)
                        self.transactions += 1
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> Writers:
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        for t in self._threads:
            t.join()
        if self._errors and error[0] is None:
            raise self._errors[0]


BIG = "repeat(md5(random()::text), 200)"


def mixed(db: Any, rng: random.Random, *, moves: bool = True) -> None:
    """One transaction of a few changes: inserts, updates with and without the large value, deletions, key changes."""
    with db.transaction():
        if rng.random() < 0.03:
            db.execute("SAVEPOINT s")
            db.execute("UPDATE t SET v = 'never'")
            db.execute("ROLLBACK TO s")
        for _ in range(rng.randint(1, 4)):
            what, some = rng.random(), rng.randint(1, 600)
            if what < 0.3:
                big = BIG if rng.random() < 0.4 else "'small'"
                db.execute(f"INSERT INTO t VALUES (%s, 'new', {big}, 1) ON CONFLICT (id) DO UPDATE SET v = 'again', n = t.n + 1", (some,))
            elif what < 0.6:
                db.execute("UPDATE t SET v = %s, n = n + 1 WHERE id = %s", (str(rng.random()), some))
            elif what < 0.7:
                db.execute(f"UPDATE t SET big = {BIG}, n = n + 1 WHERE id BETWEEN %s AND %s", (some, some + 3))
            elif what < 0.85:
                db.execute("DELETE FROM t WHERE id = %s", (some,))
            elif moves:
                db.execute("UPDATE t SET id = %s WHERE id = %s", (rng.randint(1, 600), some))


def unmoved(db: Any, rng: random.Random) -> None:
    """The same without key changes: of a row that moves, a large value is read from the table, as it is by then."""
    mixed(db, rng, moves=False)


def oracle(database: Any, table: str = "t", key: tuple[str, ...] = ("id",)) -> dict[Any, dict[str, Any]]:
    """Return the table as it is."""
    with database.connect() as db:
        cursor = db.execute(f"SELECT * FROM {table}")
        names = [d.name for d in cursor.description]
        rows = [dict(zip(names, r, strict=True)) for r in cursor.fetchall()]
    return {tuple(r[k] for k in key): r for r in rows}
