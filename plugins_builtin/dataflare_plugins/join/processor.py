"""`join`: two inputs by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.join.stream_table import StreamTable
from dataflare_plugins.join.streams import Streams
from dataflare_sdk import Batch, BoundQuery, Duration, Progress, RowRejection, code, config, option
from dataflare_sdk.event_time import need_time
from dataflare_sdk.row_stage import need_column
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor

CLASH = code("join.column-clash", 3, "Both inputs of a join have a column of the same name.", "Use `rename` in a map before the join.")
NEEDS_TIME = code(
    "join.needs-time", 3, "A join of two streams needs the event time of both.", "Say `time: {left_column: right_column}` beside `within`."
)
TABLE = code(
    "join.table", 3, "A join with a table that does not go together.",
    "A table is the second input of `type: inner`, `left`, `semi` or `anti`, without `within` and `time`.",
)  # fmt: skip
SAME_INPUT = code("join.same-input", 3, "A join has the same input twice.", "Put a map before one of them.")


@config
class JoinConfig:
    """Columns: those of the left input, then those of the right one without its keys."""

    type: Literal["inner", "left", "full", "semi", "anti"] = option("Which rows come out.", default="inner")
    on: list[str] | dict[str, str] = option("Key columns, or left column to right column.", min_items=1, example={"customer_id": "id"})
    within: Duration | None = option("Of two streams: the longest time between two rows that meet.", default=None, example="10m")
    time: dict[str, str] | None = option(
        "Of two streams: the column of the left event time to that of the right one.", default=None, example={"ordered_at": "paid_at"}
    )
    lateness: Duration = option("How long before the newest row of its partition a row may lie.", default=0.0, example="1m")
    late: Literal["drop", "dead_letter"] = option(
        "What becomes of later rows, beside the outputs `late_left` and `late_right`.", default="drop"
    )
    ahead: Duration | None = option("How far in the future a row may lie; others are bad rows.", default=None)
    table: bool = option(
        "The second input is a table: rows of the first meet it as it stands when their epoch ends. It may be kept up by changes.",
        default=False,
    )
    key: list[str] = option(
        "Of a table: columns by which a row takes the place of an earlier one. Changes bring theirs; without one every row is kept.",
        default_factory=list,
        example=["id"],
    )


class JoinProcessor(WholeInputProcessor[JoinConfig]):
    """Keys compare as `=`: NULL matches nothing. `from: [left, right]`."""

    Config = JoinConfig
    features = frozenset({"event_time", "follows", "sql", "whole_input"})
    inputs = (2, 2)

    def __init__(self, config: JoinConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        _refuse(config)
        own = {"event_time", "follows", "keyed"} if config.table else {"sql", "whole_input"}
        self.features = frozenset({"event_time", "keyed"} if config.within is not None else own)
        self.tables = {1: tuple(config.key)} if config.table else {}
        self._streams: Streams | StreamTable | None = None
        self._key = tuple(config.key)
        self._on = dict(config.on) if isinstance(config.on, dict) else {n: n for n in config.on}
        self._bound: BoundQuery | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Check keys and names, then bind the join."""
        if len(inputs) != 2:
            raise SAME_INPUT.error("both inputs of the join are the same", path="on")
        left, right = inputs.values()
        for i, (mine, theirs) in enumerate(self._on.items()):
            where = f"on.{mine}" if isinstance(self.config.on, dict) else f"on[{i}]"
            need_column(left, mine, where)
            need_column(right, theirs, where)
        if self.config.type in ("inner", "left", "full"):
            taken = {n.lower() for n in left.names}
            for name in right.names:
                if name not in self._on.values() and name.lower() in taken:
                    raise CLASH.error(
                        f"both inputs have a column '{name}'", fix=f"rename one of them in a map before: rename: {{{name}: …}}", path="on"
                    )
        self._close_streams()
        self._bound = self.bind_relation(inputs, "on")
        self._schema = self._bound.schema
        if self.config.table:
            return self._bind_table(inputs)
        return {"": self._schema} if self.config.within is None else self._bind_streams(inputs, self.config.within)

    def take_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Take down the key of the changes by which the table is kept up.

        Raises:
            DataflareError: `join.table`: another key was said.
        """
        for key in keys.values():
            if self._key and set(self._key) != set(key):
                raise TABLE.error(f"the changes of the table have the key {', '.join(key)}", fix="leave `key` out", path="key")
            self._key = tuple(key)

    def _bind_table(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Make ready to hold the table."""
        left, right = inputs.values()
        for i, name in enumerate(self._key):
            need_column(right, name, f"key[{i}]")
        items = self._items(left, right)
        self._streams = StreamTable(self.config.type, self._on, self._key, inputs, items, self._schema, self.ctx)
        return {"": self._schema}

    @property
    def holds(self) -> bool:
        """Whether rows of the stream wait for the table."""
        return isinstance(self._streams, StreamTable) and self._streams.holds

    def _bind_streams(self, inputs: Mapping[str, pa.Schema], within: float) -> Mapping[str, pa.Schema]:
        """Check the times, and make ready to hold both streams."""
        (mine, theirs) = next(iter((self.config.time or {}).items()))
        left, right = inputs.values()
        need_time(need_column(left, mine, f"time.{mine}"), f"time.{mine}")
        need_time(need_column(right, theirs, f"time.{mine}"), f"time.{mine}")
        door = {"lateness": self.config.lateness, "late": self.config.late, "ahead": self.config.ahead}
        self._streams = Streams(
            self.config.type, self._on, within, (mine, theirs), door, inputs, self._items(left, right), self._schema, self.ctx
        )
        return {"": self._schema, "late_left": left, "late_right": right}

    def outputs(self) -> tuple[str, ...]:
        """Return the main output, and of two streams those of the rows that came too late."""
        return ("",) if self.config.within is None else ("", "late_left", "late_right")

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the keys."""
        wanted = needed.get("", frozenset())
        (left, a), (right, b) = self._inputs.items()
        times = self.config.time or {}
        return {
            left: wanted & frozenset(a.names) | frozenset(self._on) | frozenset(times) | needed.get("late_left", frozenset()),
            right: (wanted & frozenset(b.names) - frozenset(self._on.values()))
            | frozenset(self._on.values()) | frozenset(times.values()) | frozenset(self._key) | needed.get("late_right", frozenset()),
        }  # fmt: skip

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """A column comes from its side; a key of a full join from both."""
        (left, a), (right, _) = self._inputs.items()
        made: dict[str, list[tuple[str, str]]] = {}
        for name in self._schema.names:
            made[name] = [(left, name)] if name in a.names else [(right, name)]
            if self.config.type == "full" and name in self._on:
                made[name].append((right, self._on[name]))
        late = (
            {}
            if self.config.within is None
            else {f"late_{s}": {n: [(i, n)] for n in self._inputs[i].names} for s, i in (("left", left), ("right", right))}
        )
        return {"": made, **late}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:  # type: ignore[override]
        """Return the join as one SELECT; of two streams the bounded one says what comes out, but not what is late."""
        (_, left), (_, right) = self._inputs.items()
        first, second = inputs.values()
        test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self._on.items())
        items = [f"{sql} AS {quote(name)}" for name, sql in self._items(left, right).items()]
        made = {"": f"SELECT {', '.join(items)} FROM {first} AS l {self.config.type.upper()} JOIN {second} AS r ON {test}"}
        return made if self._streams is None else None

    def _items(self, left: pa.Schema, right: pa.Schema) -> dict[str, str]:
        """Return the columns of the answer: name to SQL over `l` and `r`."""
        kind = self.config.type
        items = {n: f"l.{quote(n)}" for n in left.names}
        if kind == "full":
            items |= {n: f"coalesce(l.{quote(n)}, r.{quote(self._on[n])})" for n in left.names if n in self._on}
        if kind in ("inner", "left", "full"):
            items |= {n: f"r.{quote(n)}" for n in right.names if n not in self._on.values()}
        return items

    # -- as rows come ------------------------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Take rows that wait for rows of the other stream; of whole inputs, spool the batch."""
        return super().process(batch, input) if self._streams is None else self._streams.process(batch, input)

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Take the good rows of a batch with bad ones."""
        return self._streams.attempt(batch, input) if isinstance(self._streams, Streams) else super().attempt(batch, input)

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Give the pairs of an epoch's rows, and the rows that nobody can meet any more."""
        if self._streams is None:
            return
        yield from self._streams.advance(progress)
        if isinstance(self._streams, Streams):
            self.late = self._streams.late

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer; of two streams, give what is left."""
        yield from super().flush() if self._streams is None else self._streams.flush()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return what waits; of whole inputs, the spooled rows."""
        return super().snapshot(put) if self._streams is None else self._streams.snapshot(put)

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave."""
        if self._streams is None:
            super().restore(state, get)
        else:
            self._streams.restore(state, get)

    def _close_streams(self) -> None:
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    def close(self) -> None:
        """Release what waits and the engine."""
        self._close_streams()
        super().close()


def _refuse(config: JoinConfig) -> None:
    """Refuse what does not go together.

    Raises:
        DataflareError: `join.needs-time`, `join.table`.
    """
    if config.within is not None and (config.time is None or len(config.time) != 1):
        raise NEEDS_TIME.error("`within` is said without the two columns of event time", path="within")
    if config.within is None and config.time is not None:
        raise NEEDS_TIME.error("`time` is said without `within`: how far may the times of a pair differ?", path="time")
    if config.table and config.within is not None:
        raise TABLE.error("rows meet a table whenever they come, not `within` a time", path="within")
    if config.table and config.type == "full":
        raise TABLE.error("rows of a table that met nobody do not come out: it goes on", path="type")
    if config.key and not config.table:
        raise TABLE.error("`key` is that of a `table`, and the second input is none", path="key")
