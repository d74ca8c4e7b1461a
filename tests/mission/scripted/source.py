"""A source of changes that reads its history from a file: transactions, large and small, with new columns in between."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import (
    Batch,
    Changes,
    ExtractSpec,
    Offset,
    Partition,
    Pause,
    SchemaChange,
    Source,
    StreamInfo,
    config,
    option,
)
from dataflare_sdk.schema import from_names


@config
class Script:
    """Where the history lies."""

    path: str = option("A JSON file: schema, key, and a list of transactions.")
    tables: list[str] = option("Streams; none: one stream without a name.", default_factory=list)


class ScriptedSource(Source[Script]):
    """Position n is after transaction n; a reader gives `cut` changes at a time, without an offset within a transaction."""

    Config = Script
    features = frozenset({"cdc", "replayable", "unbounded", "emits_deletes"})

    def __init__(self, config: Script, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.script = json.loads((Path(ctx.base_dir) / config.path).read_text())
        self.many_streams = bool(config.tables)
        self.acked: list[int] = []

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> list[StreamInfo]:
        names = self.config.tables or [self.ctx.node]
        return [StreamInfo(n, from_names(self.script["columns"]), key=tuple(self.script["key"])) for n in names]

    def parts(self, streams: Any, extract: ExtractSpec) -> list[Partition]:
        columns = {s.name: {f.name: str(f.type) for f in s.schema} for s in streams}
        return [Partition("log", "*", {"columns": columns})]

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset:
        return {"v": 1, "at": len(self.script["transactions"])}

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> ScriptedReader:
        return ScriptedReader(self, partition, extract, offset, until)

    def ack(self, partition: Partition, offset: Offset) -> None:
        with (Path(self.ctx.base_dir) / "acks.txt").open("a") as file:
            file.write(f"{offset['at']}\n")


class ScriptedReader:
    def __init__(
        self, source: ScriptedSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None
    ) -> None:
        self.source = source
        self.extract = extract
        self.known = dict(partition.spec["columns"])
        self.at = int((offset or {"at": 0})["at"])
        self.until = None if until is None else int(until["at"])
        self.left: list[list[Any]] = []
        self.number = 0

    def used(self, stream: str) -> tuple[str, ...]:
        names = self.extract.columns if self.extract.streams is None else self.extract.streams[stream]
        assert names is not None
        return names

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Any:
        transactions = self.source.script["transactions"]
        if not self.left:
            if self.at >= len(transactions) or (self.until is not None and self.at >= self.until):
                return Pause() if self.until is not None else None
            made = transactions[self.at]
            if "columns" in made:
                schema = from_names(made["columns"])
                stream = made.get("stream") or self.source.ctx.node
                if {f.name: str(f.type) for f in schema} != self.known[stream]:
                    # Where it stands nothing is lost: what comes next is of the new shape.
                    return SchemaChange(stream, schema, {"v": 1, "at": self.at}, tuple(self.source.script["key"]))
                self.at += 1
                return self.read(max_rows, max_bytes, deadline)
            self.left = list(made["changes"])
            self.number = self.at * 1000
        stream = self.left[0][0] or self.source.ctx.node
        cut = self.source.script.get("cut", 3)
        time.sleep(self.source.script.get("pause", 0))
        part = []
        while self.left and len(part) < cut and (self.left[0][0] or self.source.ctx.node) == stream:
            part.append(self.left.pop(0))
        offset = None
        if not self.left:
            self.at += 1
            offset = {"v": 1, "at": self.at}
        return self.batch(stream, part, offset)

    def batch(self, stream: str, part: list[list[Any]], offset: Offset | None) -> Batch:
        names = self.used(stream)
        types = from_names(self.shape(stream))
        schema = pa.schema([types.field(n) for n in names])
        columns = [pa.array([row.get(n) for _, _, row, _ in part], schema.field(n).type) for n in names]
        unchanged = {n: pa.array([n in (gone or ()) for *_, gone in part]) for n in names}
        changes = Changes(
            pa.array([ord(op) for _, op, _, _ in part], pa.uint8()),
            pa.array([self.number + i for i in range(len(part))], pa.int64()),
            pa.array([self.number // 1000] * len(part), pa.int64()),
            pa.nulls(len(part), pa.timestamp("us", "UTC")),
            unchanged={n: f for n, f in unchanged.items() if f.true_count},
        )
        self.number += len(part)
        return Batch(stream, pa.RecordBatch.from_arrays(columns, schema=schema), offset, (), None, changes)

    def shape(self, stream: str) -> dict[str, str]:
        """Return the columns in force where the reader stands."""
        shape = self.source.script["columns"]
        for made in self.source.script["transactions"][: self.at]:
            if "columns" in made and (made.get("stream") or self.source.ctx.node) == stream:
                shape = made["columns"]
        return dict(shape)

    def close(self) -> None:
        pass
