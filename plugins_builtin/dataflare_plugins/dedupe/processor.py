"""`dedupe`: one row per key, the first or the last in the order of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.dedupe.remembered import Remembered
from dataflare_sdk import Batch, Duration, Progress, RowRejection, code, config, duck, option
from dataflare_sdk.event_time import need_time
from dataflare_sdk.row_stage import need_column, only, single
from dataflare_sdk.schema import quote
from dataflare_sdk.timely import Door
from dataflare_sdk.whole_input import WholeInputProcessor

TTL = code(
    "dedupe.ttl", 3, "Keys that are forgotten after a while go with `keep: first`, and event time goes with a `ttl`.",
    "Take `keep: first` with a `ttl` that is longer than nothing, or leave out `ttl`, `on`, `lateness` and `late`.",
)  # fmt: skip


@config
class DedupeConfig:
    """`first` answers at once; `last` sees the whole input."""

    key: list[str] | str = option("Columns that identify a row.", min_items=1, example=["id"])
    keep: Literal["first", "last"] = option("Which row of a key is kept.", default="first")
    ttl: Duration | None = option("How long a key is remembered, of `keep: first`; without it as long as the workflow lives.", default=None)
    on: str | None = option(
        "Column of event time by which the `ttl` counts; without it the clock does.", default=None, example="created_at"
    )
    lateness: Duration | None = option(
        "With `on`: how long before the newest row of its partition a row may lie.", default=None, example="1m"
    )
    late: Literal["drop", "dead_letter"] | None = option("With `on`: what becomes of later rows, beside the output `late`.", default=None)


class DedupeProcessor(WholeInputProcessor[DedupeConfig]):
    """Keys compare as in GROUP BY: NULL equals NULL."""

    Config = DedupeConfig
    features = frozenset({"event_time", "keyed", "ordered", "sql", "whole_input"})

    def __init__(self, config: DedupeConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        _refuse(config)
        forgets, last = config.ttl is not None, config.keep == "last"
        own = {"event_time", "keyed"} if forgets else {"ordered", "sql", "whole_input"} if last else {"keyed", "ordered", "sql"}
        self.features = frozenset(own)
        self._remembered: Remembered | None = None
        self._key = [config.key] if isinstance(config.key, str) else list(config.key)
        self._seen: Any = None
        self._refs: list[str] = []
        self._fresh: list[pa.RecordBatch] = []

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Check the key; the columns are the input's."""
        _, schema = single(inputs)
        for i, name in enumerate(self._key):
            need_column(schema, name, f"key[{i}]")
        self._inputs, self._schema = dict(inputs), schema
        on, ttl = self.config.on, self.config.ttl
        if on is not None:
            need_time(need_column(schema, on, "on"), "on")
        if ttl is not None:
            self._close_remembered()
            identity = repr((self._key, ttl, on, [str(schema.field(n).type) for n in self._key]))
            self._remembered = Remembered(self._text(), ttl, self._door(), schema, identity, self.ctx)
        return dict.fromkeys(self.outputs(), schema)

    def _door(self) -> Door | None:
        config = self.config
        if config.on is None:
            return None
        return Door(config.on, lateness=config.lateness or 0.0, late=config.late or "drop", ahead=None, quiet=None, began=0)

    def outputs(self) -> tuple[str, ...]:
        """Return the main output, and with event time that of the rows that came too late."""
        return ("",) if self.config.on is None else ("", "late")

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, the key, and the event time."""
        time = frozenset[str]() if self.config.on is None else {self.config.on}
        return {next(iter(self._inputs)): frozenset[str]().union(*needed.values(), self._key, time)}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column is the input's."""
        name = next(iter(self._inputs))
        return {output: {n: [(name, n)] for n in self._schema.names} for output in self.outputs()}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:  # type: ignore[override]
        """Return the step as one SELECT; the order of the source is the order DuckDB reads it in. With a `ttl` there is none."""
        if self.config.ttl is not None:
            return None
        columns, keys = (", ".join(quote(n) for n in names) for names in (self._schema.names, self._key))
        order = "DESC" if self.config.keep == "last" else "ASC"
        numbered = f'SELECT *, row_number() OVER () AS "row in order" FROM {only(inputs)}'
        return {
            "": f'SELECT {columns} FROM ({numbered}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY "row in order" {order}) = 1'
        }

    # -- keep: first, batch by batch ---------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return the rows whose key has not come before; of `last`, spool the batch; with a `ttl`, take it."""
        if self._remembered is not None:
            return self._remembered.process(batch)
        if self.config.keep == "last":
            return super().process(batch, input)
        keys = batch.data.select(self._key)
        rows = self._new_rows(keys)
        if len(rows):
            self._fresh.append(keys.take(rows))
        return [("", batch.take(rows))] if len(rows) else []

    def _new_rows(self, keys: pa.RecordBatch) -> pa.Array:
        """Return the indices of rows with keys not seen before, and remember those keys.

        A key is kept as the JSON text of its values: equal texts are equal keys, NULLs too. Beside it stands its hash, which alone is
        compared first. There is no index: one of DuckDB does not spill, and takes longer than to look at every hash.
        """
        connection = self._connection()
        connection.register("batch", pa.Table.from_batches([keys]))
        try:
            numbered = f"SELECT {self._text()} AS k, min(n) AS n FROM (SELECT *, row_number() OVER () - 1 AS n FROM batch) GROUP BY k"
            connection.execute(f"CREATE OR REPLACE TABLE keys AS SELECT *, hash(k) AS h FROM ({numbered})")
        finally:
            connection.unregister("batch")
        connection.execute("CREATE OR REPLACE TABLE found AS SELECT k FROM seen WHERE h IN (SELECT h FROM keys)")
        connection.execute("DELETE FROM keys WHERE k IN (SELECT k FROM found)")
        connection.execute("INSERT INTO seen SELECT h, k FROM keys")
        fresh: pa.Array = connection.sql("SELECT n FROM keys ORDER BY n").to_arrow_table().column(0).combine_chunks()
        return fresh.cast(pa.int64())

    def _text(self) -> str:
        # + 0.0: minus zero is zero. NaN has a text of its own.
        kinds = {f.name: f.type for f in self._schema}
        items = ", ".join(
            f"{quote(f'k{i}')} := {quote(n) + ' + 0.0' if pa.types.is_floating(kinds[n]) else quote(n)}" for i, n in enumerate(self._key)
        )
        return f"to_json(struct_pack({items}))::VARCHAR"

    def _connection(self) -> Any:
        if self._seen is None:
            self._seen = duck.connect(memory=self.ctx.memory, threads=1, temp=Path(self.ctx.staging_dir) / "spill")
            self._seen.execute("CREATE TABLE seen (h UBIGINT, k VARCHAR)")
        return self._seen

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Take the good rows of a batch with bad ones."""
        return super().attempt(batch, input) if self._remembered is None else self._remembered.attempt(batch)

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """With a `ttl`, give the rows of the epoch that are no duplicates."""
        if self._remembered is not None:
            yield from self._remembered.advance(progress)
            self.late = self._remembered.late

    def watermark(self) -> int | None:
        """Return the event time before which no row is to come."""
        return None if self._remembered is None else self._remembered.watermark()

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer for `last` and for what waits with a `ttl`; `first` has answered already."""
        if self._remembered is not None:
            return self._remembered.flush()
        return super().flush() if self.config.keep == "last" else ()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return references to the keys seen so far, adding those since the last snapshot."""
        if self._remembered is not None:
            return self._remembered.snapshot(put)
        if self.config.keep == "last":
            return super().snapshot(put)
        if self._fresh:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self._fresh[0].schema) as out:
                for keys in self._fresh:
                    out.write_batch(keys)
            self._refs.append(put(sink.getvalue().to_pybytes()))
            self._fresh = []
        return {"v": 1, "keys": list(self._refs)}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back the keys that were seen."""
        if self._remembered is not None:
            self._remembered.restore(state, get)
            return
        if self.config.keep == "last":
            super().restore(state, get)
            return
        self._refs = list(state.get("keys", ()))
        for ref in self._refs:
            for keys in pa.ipc.open_stream(pa.py_buffer(get(ref))):
                self._new_rows(keys)

    def _close_remembered(self) -> None:
        if self._remembered is not None:
            self._remembered.close()
            self._remembered = None

    def close(self) -> None:
        """Release everything."""
        self._close_remembered()
        if self._seen is not None:
            self._seen.close()
            self._seen = None
        super().close()


def _refuse(config: DedupeConfig) -> None:
    """Refuse what does not go together.

    Raises:
        DataflareError: `dedupe.ttl`.
    """
    if config.ttl is not None and config.keep == "last":
        raise TTL.error("`keep: last` is known only at the end of the input, so its keys cannot be forgotten before", path="ttl")
    if config.ttl is not None and config.ttl <= 0:
        raise TTL.error("a `ttl` of nothing remembers nothing", path="ttl")
    if config.on is not None and config.ttl is None:
        raise TTL.error("`on` says by which time the `ttl` counts, and there is no `ttl`", path="on")
    for name in ("lateness", "late"):
        if config.on is None and getattr(config, name) is not None:
            raise TTL.error(f"`{name}` is of event time, and no column of it is named by `on`", path=name)
