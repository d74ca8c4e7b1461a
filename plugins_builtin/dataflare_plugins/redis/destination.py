"""A Redis Stream as a destination: an epoch is staged outside, and added in one transaction with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.redis import checkpoint
from dataflare_plugins.redis.connection import Session, parse_url
from dataflare_plugins.redis.encode import commands, pieces
from dataflare_plugins.redis.errors import NOT_STREAM
from dataflare_sdk import Batch, Destination, Opened, RowRejection, Target, WriteSpec, code, config, duck, option
from dataflare_sdk.compute import pc
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fold import Staging
from dataflare_sdk.json_rows import JsonRows, Template
from dataflare_sdk.schema import quote

NOTHING = code(
    "data.no-entry", 1, "A row makes no entry of a stream: nothing is in it, or nothing names its stream.", "Fill its columns in a map."
)
STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
declare("redis.staged", "redis.commit.begun", "redis.commit.done")


@config
class RedisTarget:
    """Where rows are added; a stream is made when it is missing."""

    url: str = option("The server; `rediss://` for TLS.", example="redis://app:${secret:redis}@cache:6379/0")
    stream: str = option("The stream, which columns in braces may name: `orders.{region}`.", example="orders")
    field: str = option("The field that holds the row, as a JSON object.", default="data")
    fields: bool = option("Every column is a field by itself, as text; one that is NULL is left out.", default=False)
    max_length: int | None = option("Entries that a stream keeps, roughly; by default all.", default=None, minimum=1)


class RedisDestination(Destination[RedisTarget]):
    """Entries and checkpoint in one transaction."""

    Config = RedisTarget
    features = frozenset({"transactional", "append"})

    def __init__(self, config: RedisTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._session = Session(parse_url(config.url))
        self._template = Template(config.stream)
        self._target: Target | None = None

    def check(self) -> None:
        """Connect, and look whether a stream may be written."""
        self._session.call("PING")
        if not self._template.columns:
            self._check_type([self.config.stream])

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse what a log cannot do, and columns that are not there."""
        reasons = [] if write.mode == "append" else [f"entries of a stream are only added: `write: {{mode: append}}`, not {write.mode}"]
        missing = self._template.missing(schema)
        if missing is not None:
            reasons.append(f"`stream` names the column '{missing}', and there are {', '.join(schema.names)}")
        return reasons

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Say what the promise rests on."""
        return ("what the server forgets in a crash of its own (see its `appendfsync`) it forgets with the checkpoint",)

    def commit_scope(self) -> str:
        """Return the server and its database."""
        return f"redis:{self._session.url.place}"

    # -- opening and writing -----------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the destination: raise the fence in its checkpoint; drop what another process had staged."""
        self._target = target
        self._staged = Staging(Path(self.ctx.staging_dir), target.schema, memory=min(STAGED, self.ctx.memory // 4))
        self._staged.sweep()
        self._json = None if self.config.fields else JsonRows(target.schema)
        return checkpoint.claim(self._session, target)

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch; rows that name no stream, or have no field at all, are refused."""
        good = None
        streams = self._template.of(batch.data)
        if not isinstance(streams, str):
            good = pc.is_valid(streams)
        if self.config.fields and batch.data.num_columns:
            filled = pc.is_valid(batch.data.column(0))
            for column in batch.data.columns[1:]:
                filled = pc.or_(filled, pc.is_valid(column))
            good = filled if good is None else pc.and_(good, filled)
        if good is None or pc.all(good, min_count=0).as_py():
            return self._staged.add(batch)
        refused = pc.indices_nonzero(pc.invert(good)).to_pylist()
        self._staged.add(batch.filter(good))
        cause = "the row names no stream, or has no value"
        return [RowRejection(NOTHING.name, cause, row=batch.data.slice(i, 1).to_pylist()[0], index=i) for i in refused]

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Nothing is promised: the truth is in the server after EXEC."""
        failpoint("redis.staged")

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Add the staged rows of this node and of the others in the same database, with their checkpoints."""
        nodes: list[RedisDestination] = [self, *together]
        sets = []
        for node in nodes:
            assert node._target is not None
            checkpoint.watch(self._session, node._target, epoch)
            node._check_types(self._session)
            sets.append(("SET", checkpoint.key_of(node._target), checkpoint.record(node._target, epoch, offsets)))
        failpoint("redis.commit.begun")
        if self._session.transaction(sets, (piece for node in nodes for piece in node._packed())) is None:
            raise checkpoint.fenced(self._session, epoch)
        failpoint("redis.commit.done")
        for node in nodes:
            node.abort()

    def _packed(self) -> Iterator[tuple[memoryview, int]]:
        for batch in self._staged.batches():
            for piece in pieces(batch):
                yield commands(self._template.of(piece), self._fields(piece), self.config.max_length), piece.num_rows

    def _fields(self, data: pa.RecordBatch) -> dict[str, pa.Array]:
        if self._json is not None:
            return {self.config.field: self._json.encode(data)}
        plain = {f.name: data.column(i) for i, f in enumerate(data.schema) if pa.types.is_binary(f.type)}
        items = ", ".join(f"{quote(n)}::VARCHAR AS {quote(n)}" for n in data.schema.names if n not in plain)
        if items:
            with duck.session() as connection:
                connection.register("rows_to_add", pa.Table.from_batches([data]))
                texts = connection.sql(f"SELECT {items} FROM rows_to_add").to_arrow_table().combine_chunks()
                connection.unregister("rows_to_add")
            plain |= {n: texts.column(n).chunk(0) for n in texts.column_names}
        return {n: plain[n] for n in data.schema.names}

    def _check_types(self, session: Session) -> None:
        """A command that fails by itself would not undo the others: make sure beforehand that none will."""
        if not self._template.columns:
            self._check_type([self.config.stream], session)
            return
        named: set[str] = set()
        for batch in self._staged.batches():
            named.update(pc.unique(self._template.of(batch)).to_pylist())
        self._check_type(sorted(named), session)

    def _check_type(self, streams: Sequence[str], session: Session | None = None) -> None:
        for stream in streams:
            kind = (session or self._session).call("TYPE", stream)
            if kind not in (b"stream", b"none"):
                raise NOT_STREAM.error(f"'{stream}' is a {kind.decode()} and no stream", path="stream")

    def abort(self) -> None:
        """Drop what is staged."""
        self._staged.clear()

    def close(self) -> None:
        """Drop what is staged and disconnect."""
        if self._target is not None:
            self.abort()
            if self._json is not None:
                self._json.close()
        self._session.close()
