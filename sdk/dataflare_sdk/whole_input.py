"""Steps that see their whole inputs: rows are spooled, within memory and then on disk, and answered at the end."""

from __future__ import annotations

import itertools
import shutil
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.contracts import ComponentContext
from dataflare.errors import DataflareError
from dataflare_sdk.component import C
from dataflare_sdk.expressions import BoundQuery, ExpressionEngine
from dataflare_sdk.messages import Batch
from dataflare_sdk.processor import Processor
from dataflare_sdk.schema import quote

CHUNK_BYTES = 8 << 20


class Spool:
    """Batches of one schema: the newest in memory, the others in a file; may be read any number of times.

    Args:
        schema: of the batches.
        folder: for the file, made when first needed.
        memory: bytes kept in memory before batches go to the file.
    """

    def __init__(self, schema: pa.Schema, folder: Path, memory: int) -> None:
        self.schema = schema
        self._folder = folder
        self._memory = memory
        self._path = folder / f"{uuid.uuid4().hex}.arrows"
        self._writer: Any = None
        self._kept: list[pa.RecordBatch] = []
        self._bytes = 0
        self._count = self._unsaved = 0
        self._refs: list[str] = []

    def append(self, batch: pa.RecordBatch, *, restored: bool = False) -> None:
        """Take a batch."""
        self._kept.append(batch)
        self._count += 1
        self._bytes += batch.nbytes
        if not restored:
            self._unsaved += 1
        if self._bytes > self._memory:
            self._spill()

    def _spill(self) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = pa.ipc.new_stream(str(self._path), self.schema)
        for batch in self._kept:
            self._writer.write_batch(batch)
        self._kept, self._bytes = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield every batch, oldest first."""
        if self._writer is not None:
            # A stream whose end is not written yet ends where the file ends.
            with pa.OSFile(str(self._path)) as file:
                yield from pa.ipc.open_stream(file)
        yield from list(self._kept)

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return pa.RecordBatchReader.from_batches(self.schema, self.batches()).__arrow_c_stream__(requested_schema)

    def snapshot(self, put: Callable[[bytes], str]) -> list[str]:
        """Keep what came since the last snapshot and return the references of everything, in order."""
        fresh: Iterator[pa.RecordBatch] = itertools.islice(self.batches(), self._count - self._unsaved, None) if self._unsaved else iter(())
        while some := list(itertools.islice(fresh, 64)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self.schema) as out:
                for one in some:
                    out.write_batch(one)
            self._refs.append(put(sink.getvalue().to_pybytes()))
        self._unsaved = 0
        return list(self._refs)

    def restore(self, refs: Sequence[str], get: Callable[[str], bytes]) -> None:
        """Take back what a snapshot kept."""
        self._refs = list(refs)
        for ref in refs:
            chunk: Any = pa.ipc.open_stream(pa.py_buffer(get(ref)))
            for batch in chunk:  # the reader is untyped
                self.append(batch, restored=True)

    def close(self) -> None:
        """Remove the file."""
        if self._writer is not None:
            self._writer.close()
        self._kept = []
        self._path.unlink(missing_ok=True)


class WholeInputProcessor(Processor[C]):
    """Answers once, when every input has ended, with the SQL that `relation` gives: the same in both lanes."""

    def __init__(self, config: C, ctx: ComponentContext) -> None:
        super().__init__(config, ctx)
        self._engine: ExpressionEngine | None = None
        self._spools: dict[str, Spool] = {}
        self._answered = False
        self._inputs: dict[str, pa.Schema] = {}
        self._schema = pa.schema([])

    @property
    def engine(self) -> ExpressionEngine:
        """The expression engine, made when first asked for."""
        if self._engine is None:
            made: ExpressionEngine = self.ctx.component("expression_engine", "duckdb")
            self._engine = made
        return self._engine

    @abstractmethod
    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the answer as one SELECT over the inputs."""

    def bind_relation(self, inputs: Mapping[str, pa.Schema], place: str) -> BoundQuery:
        """Type-check the SELECT over the inputs' schemas.

        Raises:
            DataflareError: `expression.*`, at `place` within the `with:` block.
        """
        self._inputs = dict(inputs)
        query = self.relation({n: quote(n) for n in inputs})[""]
        bound: BoundQuery = self.placed(lambda: self.engine.bind_query(query, inputs), lambda _: place)
        return bound

    def placed(self, call: Callable[[], Any], place: Callable[[str | None], str]) -> Any:
        """Call something and give the problems it raises a place in the `with:` block."""
        try:
            return call()
        except DataflareError as error:
            raise DataflareError(*(replace(p, path=place(p.path)) for p in error.problems)) from error

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Spool a batch."""
        self._spool(input).append(batch.data)
        return ()

    def _spool(self, name: str) -> Spool:
        if name not in self._spools:
            folder = Path(self.ctx.staging_dir) / "spool"
            share = self.ctx.memory // 2 // max(1, len(self._inputs))
            self._spools[name] = Spool(self._inputs[name], folder, share)
        return self._spools[name]

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer, once."""
        if self._answered:
            return
        self._answered = True
        inputs = {n: self._spool(n) for n in self._inputs}
        query = self.relation({n: quote(n) for n in inputs})[""]
        for data in self.engine.query(query, inputs, self._schema):
            yield "", Batch("", data)
        self._drop()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return references to the spooled rows; once answered, only that."""
        if self._answered:
            return {"v": 1, "answered": True}
        return {"v": 1, "inputs": {n: s.snapshot(put) for n, s in self._spools.items()}}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back spooled rows."""
        self._answered = bool(state.get("answered"))
        for name, refs in (state.get("inputs") or {}).items():
            self._spool(name).restore(refs, get)

    def _drop(self) -> None:
        for spool in self._spools.values():
            spool.close()
        self._spools = {}

    def close(self) -> None:
        """Release the engine and remove what was spooled."""
        self._drop()
        shutil.rmtree(Path(self.ctx.staging_dir) / "spool", ignore_errors=True)
        if self._engine is not None:
            self._engine.close()
            self._engine = None
