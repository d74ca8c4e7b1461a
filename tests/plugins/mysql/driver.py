"""Reads a source as the engine does, and keeps what its changes come to: the oracle is the table itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.source import MysqlSource
from dataflare_sdk import Batch, ExtractSpec, Pause, SchemaChange
from dataflare_sdk.changes import CREATE, DELETE, READ, TRUNCATE, UPDATE
from dataflare_sdk.testing.context import FakeContext

CDC = ExtractSpec(mode="cdc")


def source(folder: Path, **config: Any) -> MysqlSource:
    return MysqlSource(MysqlSource.configure(config), FakeContext(folder, "source"))


class Replica:
    """Tables as changes make them: key → row.

    A change with unchanged columns needs the row it changes, once the stream is settled.
    """

    def __init__(self, keys: Mapping[str, tuple[str, ...]]) -> None:
        self.keys = dict(keys)
        self.tables: dict[str, dict[Any, dict[str, Any]]] = {name: {} for name in keys}
        self.last_pos: dict[Any, int] = {}
        self.missing = 0

    def apply(self, batch: Batch) -> None:
        changes, table = batch.changes, self.tables[batch.stream]
        assert changes is not None
        unchanged = {n: f.to_pylist() for n, f in changes.unchanged.items()}
        key = self.keys[batch.stream]
        ops, positions = changes.op.to_pylist(), changes.pos.to_pylist()
        assert len(ops) == len(positions) == len(changes.txid) == len(changes.commit_ts) == batch.data.num_rows
        for i, row in enumerate(batch.data.to_pylist()):
            if ops[i] == TRUNCATE:
                table.clear()
                continue
            mark = tuple(row[k] for k in key)
            if ops[i] == DELETE:
                table.pop(mark, None)
                continue
            assert ops[i] in (CREATE, UPDATE, READ)
            lacking = [n for n, f in unchanged.items() if f[i]]
            if lacking:
                old = table.get(mark)
                if old is None:
                    assert not changes.settled, f"{mark} is not there, and {lacking} did not come"
                    self.missing += 1
                    continue
                row = {n: old[n] if n in lacking else v for n, v in row.items()}
            table[mark] = row

    def rows(self, stream: str) -> list[dict[str, Any]]:
        return sorted(self.tables[stream].values(), key=lambda r: str(tuple(r[k] for k in self.keys[stream])))


class Reading:
    """A source that is read, stopped and read on."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self.config = config
        self.offset: Any = None
        self.offsets: list[Any] = []
        self.batches: list[Batch] = []
        self.changed: list[SchemaChange] = []
        self.context = FakeContext(folder, "source")

    def open(self, extract: ExtractSpec = CDC, until: Any = None, offset: Any = ...) -> tuple[Any, Any]:
        made = MysqlSource(MysqlSource.configure(self.config), self.context)
        offset = self.offset if offset is ... else offset
        part = made.parts(made.discover(extract, offset), extract)[0]
        part = type(part)(part.id, part.stream, json.loads(json.dumps(part.spec)))
        return made, made.open(part, extract, offset, until)

    def to_end(self, replica: Replica | None = None, rows: int = 1000, extract: ExtractSpec = CDC, until: Any = None) -> list[Batch]:
        """Read to where the log ends now, through changes of columns; keep and apply what is committed whole."""
        got: list[Batch] = []
        probe = MysqlSource(MysqlSource.configure(self.config), self.context)
        until = until or probe.position(probe.parts(probe.discover(extract, self.offset), extract)[0], extract)
        probe.close()
        while True:
            made, reader = self.open(extract, until)
            pending: list[Batch] = []
            end = time.monotonic() + 20
            try:
                while True:
                    assert time.monotonic() < end, "it never ended"
                    message = reader.read(rows, 1 << 20, time.monotonic() + 0.2)
                    if isinstance(message, Pause):
                        assert not pending, "it paused within a transaction"
                        return got
                    if isinstance(message, SchemaChange):
                        assert not pending, "columns changed within a transaction"
                        self.changed.append(message)
                        self.offset = json.loads(json.dumps(message.offset))
                        self.offsets.append(self.offset)
                        break
                    if message is None:
                        continue
                    pending.append(message)
                    if message.offset is not None:
                        self.offset = json.loads(json.dumps(message.offset))
                        self.offsets.append(self.offset)
                        got += pending
                        if replica is not None:
                            for batch in pending:
                                replica.apply(batch)
                        pending = []
            finally:
                reader.close()
                made.close()


def plain_rows(rows: list[tuple[Any, ...]], schema: pa.Schema) -> list[dict[str, Any]]:
    return [dict(zip(schema.names, r, strict=True)) for r in rows]
