"""A source and a destination of API 1.0, written with its base classes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import (
    Batch,
    Destination,
    ExtractSpec,
    IteratorReader,
    Message,
    Offset,
    Opened,
    Partition,
    Pause,
    RowRejection,
    Source,
    StreamInfo,
    Target,
    WriteSpec,
    config,
    option,
)
from dataflare_sdk.fence import check_fence

SCHEMA = pa.schema([("n", pa.int64()), ("token", pa.string())])


@config
class NumbersConfig:
    """What it counts to."""

    stop: int = option("The last number.", minimum=0)
    token: str = option("A text for every row.", default="none")


class Numbers(Source[NumbersConfig]):
    """The numbers from 1 to `stop`."""

    Config = NumbersConfig
    features = frozenset({"full", "incremental", "ordered", "replayable"})

    def check(self) -> None:
        self.ctx.log.info("checked")

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        return [StreamInfo(self.ctx.node, SCHEMA, key=("n",), cursors=("n",), pins={"stop": self.config.stop})]

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        return [Partition(id=stream.name, stream=stream.name, spec=dict(stream.pins))]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> IteratorReader:
        stop = int(partition.spec["stop"]) if until is None else int(until["n"])
        return IteratorReader(self._messages(partition.stream, extract, int((offset or {"n": 0})["n"]), stop))

    def _messages(self, stream: str, extract: ExtractSpec, start: int, stop: int) -> Iterator[Message]:
        for first in range(start + 1, stop + 1, 3):
            numbers = list(range(first, min(first + 3, stop + 1)))
            data = pa.RecordBatch.from_pydict({"n": numbers, "token": [self.config.token] * len(numbers)}, schema=SCHEMA)
            names = SCHEMA.names if extract.columns is None else list(extract.columns)
            self.ctx.metric("numbers", len(numbers))
            self.ctx.gauge("lag_rows", stop - numbers[-1])
            yield Batch(stream, data.select(names), offset={"n": numbers[-1]})
        if extract.mode == "incremental":
            yield Pause()

    def ack(self, partition: Partition, offset: Offset) -> None:
        count = int(self.ctx.state_get("acks") or b"0") + 1
        self.ctx.state_put("acks", str(count).encode())


@config
class LinesConfig:
    """Where the lines go."""

    path: str = option("A folder.")


class Lines(Destination[LinesConfig]):
    """A file per epoch: staged by `prepare`, renamed by `commit`, with the checkpoint in a record beside them."""

    Config = LinesConfig
    features = frozenset({"append", "two_phase"})

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        return [] if write.mode == "append" else [f"the mode {write.mode}"]

    def commit_scope(self) -> str:
        return f"first-lines:{Path(self.ctx.base_dir) / self.config.path}"

    def open(self, target: Target) -> Opened:
        self._target = target
        self._folder = Path(self.ctx.base_dir) / self.config.path
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record = self._folder / ".record.json"
        self._staged = Path(self.ctx.staging_dir) / "epoch.jsonl"
        self._staged.parent.mkdir(parents=True, exist_ok=True)
        held = self._held()
        check_fence(held["fence"], target.fence, str(self._folder))
        if held["run"] != target.run_id:
            self._staged.unlink(missing_ok=True)
            held = {**held, "run": target.run_id, "epoch": 0, "offsets": {}}
        self._keep({**held, "fence": target.fence})
        self._rows: list[dict[str, Any]] = []
        return Opened(held["epoch"], target.run_id if held["epoch"] else None, held["offsets"])

    def _held(self) -> dict[str, Any]:
        begin = {"run": "", "epoch": 0, "offsets": {}, "fence": 0, "files": 0}
        return json.loads(self._record.read_text()) if self._record.exists() else begin

    def _keep(self, record: Mapping[str, Any]) -> None:
        staged = self._record.with_suffix(".new")
        staged.write_text(json.dumps(dict(record)))
        staged.replace(self._record)

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        rows = batch.data.to_pylist()
        bad = [i for i, r in enumerate(rows) if r.get("n") == 7]
        self._rows += [r for i, r in enumerate(rows) if i not in bad]
        return [RowRejection("data.bad-row", "seven is refused", index=i) for i in bad]

    def prepare(self, epoch: int, final: bool) -> None:
        self._staged.write_text("".join(json.dumps(r) + "\n" for r in self._rows))
        self._rows = []

    def recover(self, epoch: int, final: bool) -> bool:
        return False

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        held = self._held()
        check_fence(held["fence"], self._target.fence, str(self._folder))
        if held["epoch"] >= epoch:
            return
        self._staged.replace(self._folder / f"part-{held['files']:04}.jsonl")
        self._keep({**held, "epoch": epoch, "offsets": dict(offsets), "files": held["files"] + 1})

    def abort(self) -> None:
        self._rows = []
        self._staged.unlink(missing_ok=True)
