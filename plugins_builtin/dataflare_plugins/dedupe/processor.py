"""`dedupe`: one row per key, the first or the last in the order of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, code, config, duck, option
from dataflare_sdk.row_stage import need_column, only, single
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor

NOT_YET = code("workflow.not-yet", 3, "A key of the format whose feature is not built yet.", "Remove it for now.")


@config
class DedupeConfig:
    """`first` answers at once; `last` sees the whole input."""

    key: list[str] | str = option("Columns that identify a row.", min_items=1, example=["id"])
    keep: Literal["first", "last"] = option("Which row of a key is kept.", default="first")
    ttl: Any = option("How long a key is remembered.", default=None)


class DedupeProcessor(WholeInputProcessor[DedupeConfig]):
    """Keys compare as in GROUP BY: NULL equals NULL."""

    Config = DedupeConfig
    features = frozenset({"keyed", "ordered", "sql"})

    def __init__(self, config: DedupeConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.ttl is not None:
            raise NOT_YET.error("`ttl` is not built yet", path="ttl")
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
        return {"": schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the key."""
        return {next(iter(self._inputs)): needed.get("", frozenset()) | frozenset(self._key)}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column is the input's."""
        name = next(iter(self._inputs))
        return {"": {n: [(name, n)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT; the order of the source is the order DuckDB reads it in."""
        columns, keys = (", ".join(quote(n) for n in names) for names in (self._schema.names, self._key))
        order = "DESC" if self.config.keep == "last" else "ASC"
        numbered = f'SELECT *, row_number() OVER () AS "row in order" FROM {only(inputs)}'
        return {
            "": f'SELECT {columns} FROM ({numbered}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY "row in order" {order}) = 1'
        }

    # -- keep: first, batch by batch ---------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return the rows whose key has not come before; of `last`, spool the batch."""
        if self.config.keep == "last":
            return super().process(batch, input)
        keys = batch.data.select(self._key)
        rows = self._new_rows(keys)
        if len(rows):
            self._fresh.append(keys.take(rows))
        return [("", batch.take(rows))] if len(rows) else []

    def _new_rows(self, keys: pa.RecordBatch) -> pa.Array:
        """Return the indices of rows with keys not seen before, and remember those keys.

        A key is kept as the JSON text of its values: equal texts are equal keys, NULLs too, and an index finds them.
        """
        connection = self._connection()
        connection.register("batch", pa.Table.from_batches([keys]))
        try:
            found = connection.sql(
                f"INSERT OR IGNORE INTO seen SELECT {self._text()} AS k, min(n) FROM "
                "(SELECT *, row_number() OVER () - 1 AS n FROM batch) GROUP BY k RETURNING n"
            ).to_arrow_table()
        finally:
            connection.unregister("batch")
        return found.column(0).combine_chunks().cast(pa.int64()).sort()

    def _text(self) -> str:
        # + 0.0: minus zero is zero. NaN has a text of its own.
        kinds = {f.name: f.type for f in self._schema}
        items = ", ".join(
            f"{quote(f'k{i}')} := {quote(n) + ' + 0.0' if pa.types.is_floating(kinds[n]) else quote(n)}" for i, n in enumerate(self._key)
        )
        return f"to_json(struct_pack({items}))::VARCHAR"

    def _connection(self) -> Any:
        if self._seen is None:
            self._seen = duck.connect(memory=self.ctx.memory, threads=1)
            self._seen.execute("CREATE TABLE seen (k VARCHAR PRIMARY KEY, n BIGINT)")
        return self._seen

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer for `last`; `first` has answered already."""
        return super().flush() if self.config.keep == "last" else ()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return references to the keys seen so far, adding those since the last snapshot."""
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
        if self.config.keep == "last":
            super().restore(state, get)
            return
        self._refs = list(state.get("keys", ()))
        for ref in self._refs:
            for keys in pa.ipc.open_stream(pa.py_buffer(get(ref))):
                self._new_rows(keys)

    def close(self) -> None:
        """Release everything."""
        if self._seen is not None:
            self._seen.close()
            self._seen = None
        super().close()
