"""Gathering what the events of the log say: rows by table, the ends of transactions, new columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.binlog import statements
from dataflare_plugins.mysql.binlog.copying import Captured
from dataflare_plugins.mysql.binlog.offsets import State
from dataflare_plugins.mysql.binlog.position import Place
from dataflare_plugins.mysql.binlog.statements import Statement
from dataflare_plugins.mysql.binlog.stream import Event
from dataflare_plugins.mysql.binlog.tablemap import TableMap
from dataflare_plugins.mysql.binlog.tablemap import parse as parse_map
from dataflare_plugins.mysql.binlog.tables import CHANGE, REMOVE, WRITE, TableChanges
from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import Session, quote
from dataflare_plugins.mysql.convert import Converter
from dataflare_plugins.mysql.reading import keyset
from dataflare_plugins.mysql.wire import TextRows
from dataflare_sdk import Batch, Changes, SchemaChange, code
from dataflare_sdk.changes import TRUNCATE
from dataflare_sdk.records import record

NOT_ROWS = code(
    "mysql.statement-logged",
    4,
    "A change to a table that is read was logged as a statement, not as rows.",
    "Set binlog_format=ROW for every session.",
)
SHAPE_UNKNOWN = code(
    "mysql.columns-unknown",
    4,
    "The log is older than the table's columns, and does not tell what they were.",
    "Set binlog_row_metadata=FULL on the server for the future; now copy the table anew: `dataflare state reset --stream`.",
)
NOT_READ = code("mysql.log-not-read", 4, "The log holds an event that cannot be read.", "Change the setting of the server that it names.")

QUERY, XID, TABLE_MAP, HEARTBEAT = 2, 16, 19, 27
ROTATE, INCIDENT, XA_PREPARE, PARTIAL_JSON, PAYLOAD, QUERY_COMPRESSED = 4, 26, 38, 39, 40, 165
GTID_MARIADB, GTID, GTID_ANONYMOUS = 162, 33, 34
STANDALONE = 1
ROWS: dict[int, tuple[int, int]] = {
    **{23 + k: (k, 1) for k in (WRITE, CHANGE, REMOVE)},
    **{30 + k: (k, 2) for k in (WRITE, CHANGE, REMOVE)},
    **{166 + k: (k, 1) for k in (WRITE, CHANGE, REMOVE)},
    **{169 + k: (k, 2) for k in (WRITE, CHANGE, REMOVE)},
}
"""Event type to what it does and the version of its head."""
COMPRESSED = frozenset(range(166, 172))
REFUSED = {
    INCIDENT: "the server lost events itself (an incident); copy the tables anew",
    XA_PREPARE: "XA transactions are logged before they are committed",
    PARTIAL_JSON: "parts of JSON values are logged (binlog_row_value_options=PARTIAL_JSON)",
    PAYLOAD: "transactions are compressed (binlog_transaction_compression=ON)",
}


@record
class Reshape:
    """A stream that has other columns from a place on."""

    stream: str
    relation: Any
    place: Place

    def message(self, state: State, schema: Callable[[Sequence[Column]], pa.Schema], key: Sequence[str]) -> SchemaChange:
        """Return the message that tells of it; reading goes on from the state with the new columns."""
        after = replace(state, shapes={**state.shapes, self.stream: self.relation.columns}, doubtful=state.doubtful - {self.stream})
        made = schema(self.relation.columns)
        wanted = tuple(key) or self.relation.key
        return SchemaChange(self.stream, made, after.to_json(), tuple(k for k in wanted if k in made.names))


class Gathered:
    """What was read of the log and not handed on yet.

    Attributes:
        within: in the midst of a transaction.
        full: there is enough for a batch.
        stopped: the place where reading is to stop is reached.
        left: events behind that place, or behind what filled a batch.
        change: a table's new columns, to be told where they begin.
        owed: a part of a transaction was handed on; its end is to be, too.
        rewind: what was gathered was read with the wrong columns: it is to be read again.
    """

    def __init__(
        self, session: Session, schema: Callable[[Sequence[Column]], pa.Schema], tables: Mapping[str, Captured], state: State
    ) -> None:
        self._session = session
        self._schema = schema
        self._captured = tables
        self._names = {_split(t): s for s, t in tables.items()}
        self._charsets: dict[int, str] | None = None
        self.change: Reshape | None = None
        self.restart(state)

    def restart(self, state: State) -> None:
        """Begin at a state, with nothing gathered."""
        self.within = self.full = self.stopped = self.rewind = False
        self.left: list[Event] = []
        self._changes: dict[str, TableChanges] = {}
        self._maps: dict[bytes, list[Any]] = {}
        self._by_id: dict[bytes, TableChanges | None] = {}
        self._emptied: list[Batch] = []
        self._waiting = self._bytes = 0
        self._before = (0, 0)
        self.owed = False
        self._txid: int | None = None
        self._time = 0
        self._touched = False
        self._state: State = state
        self._end_at: tuple[str, int] = (state.place.file, state.place.pos)
        self._open_file(state.place.file, state.place.pos)

    @property
    def state(self) -> State:
        """At the end of the last whole transaction."""
        if (self._state.place.file, self._state.place.pos) != self._end_at:
            self._state = self._state.at(Place.of(*self._end_at))
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._end_at = (state.place.file, state.place.pos)

    def _open_file(self, file: str, pos: int) -> None:
        self._file, self._pos = file, pos
        self._order = Place.of(file, 0).order

    def __len__(self) -> int:
        """Return how many changes wait."""
        return self._waiting + len(self._emptied)

    def take(self, events: Sequence[Event], max_rows: int, max_bytes: int, bound: Place | None) -> None:
        """Read events until there is enough, or `bound` is reached; the others are `left`."""
        self.full = self.stopped = False
        stops = bound is not None or self.change is not None
        for n, event in enumerate(events):
            self._event(event)
            if self.rewind:
                return
            if self.within:
                # Whole transactions wait for each other; only one that is large by itself is handed on in parts. While
                # columns are in doubt not even that: it may have to be read again.
                rows, size = self._waiting - self._before[0], self._bytes - self._before[1]
                stop = (rows >= max_rows or size >= max_bytes) and not self._state.doubtful
            else:
                self._before = (self._waiting, self._bytes)
                stop = self.owed or bool(self._emptied) or self._waiting >= max_rows or self._bytes >= max_bytes
            self.full = stop
            if stop or (stops and not self.within and self._stops(bound)):
                self.left = list(events[n + 1 :])
                return
        self.left = []

    def _stops(self, bound: Place | None) -> bool:
        # As numbers: this is asked at the end of every transaction.
        order = self._order + self._end_at[1]
        self.stopped = (bound is not None and order >= bound.order) or (self.change is not None and order >= self.change.place.order)
        return self.stopped

    def batches(self) -> list[Batch]:
        """Return what waits, a batch for each table, without offsets, and forget it."""
        made = [*self._emptied, *(c.batch(self._settled_from()) for c in self._changes.values() if len(c))]
        self._emptied, self._waiting, self._bytes = [], 0, 0
        self._before = (0, 0)
        self.owed = self.within
        return made

    def _settled_from(self) -> int:
        return 0 if self._state.high is None else self._state.high.order

    def _put_aside(self, stream: str) -> None:
        """Make a batch of what waits of a stream, before something else comes of it."""
        waiting = self._changes.get(stream)
        if waiting is not None and len(waiting):
            self._waiting -= len(waiting)
            self._emptied.append(waiting.batch(self._settled_from()))

    # -- events ------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        kind = event.kind
        found = ROWS.get(kind)
        if found is not None:
            self._rows(event, *found)
        elif kind == TABLE_MAP:
            self._table_map(event.body)
        elif kind in (QUERY, QUERY_COMPRESSED):
            self._query(event)
            return
        elif kind in (GTID_MARIADB, GTID, GTID_ANONYMOUS):
            self._transaction(event)
        elif kind == ROTATE:
            self._open_file(event.body[8:].decode(), int.from_bytes(event.body[:8], "little"))
            self._boundary()
            return
        elif kind in REFUSED and (kind != XA_PREPARE or self._touched):
            raise NOT_READ.error(f"{self._session.url}: {REFUSED[kind]}")
        self._step(event)
        if kind == XID or (kind == HEARTBEAT and not self.within):
            self._end()

    def _step(self, event: Event) -> None:
        """Go on to the end of an event; positions in the log have 32 bits, files may be longer."""
        if event.end:
            base = self._pos & ~0xFFFFFFFF
            pos = base | event.end
            self._pos = pos if pos >= self._pos else pos + (1 << 32)

    def _transaction(self, event: Event) -> None:
        if event.kind == GTID_MARIADB:
            self._txid = int.from_bytes(event.body[:8], "little")
            self.within = not event.body[12] & STANDALONE
            self._time = event.when * 1_000_000
        else:
            number = int.from_bytes(event.body[17:25], "little", signed=True)
            self._txid = number if event.kind == GTID and number > 0 else None
            stamp = int.from_bytes(event.body[42:49], "little") & (1 << 55) - 1 if len(event.body) >= 49 else 0
            self._time = stamp or event.when * 1_000_000
        self._touched = False

    def _end(self) -> None:
        """A transaction is whole."""
        self.within = self._touched = False
        self._txid = None
        self._boundary()

    def _boundary(self) -> None:
        if not self.within:
            self._end_at = (self._file, self._pos)

    # -- statements --------------------------------------------------------------------------------------

    def _query(self, event: Event) -> None:
        body = event.body
        if event.kind == QUERY_COMPRESSED:
            body = statements.uncompressed(body, 13 + int.from_bytes(body[11:13], "little") + body[8] + 1)
        statement = statements.parse(body)
        place = Place.of(self._file, self._pos)
        self._step(event)
        if statement.kind == statements.BEGIN:
            self.within = True
        elif statement.kind == statements.WITHIN:
            return
        else:
            if statement.kind != statements.COMMIT:
                self._meaning(statement, place)
            self._end()

    def _meaning(self, statement: Statement, place: Place) -> None:
        if statement.kind == statements.TRUNCATE:
            stream = self._names.get(statements.truncated(statement) or ("", ""))
            if stream is not None:
                self._empty(stream, place)
            return
        streams = [self._names[t] for t in statements.mentioned(statement, self._names)]
        if statement.kind == statements.ROWS and streams:
            raise NOT_ROWS.error(f"a change to '{streams[0]}' was logged as a statement: {statement.text[:80]}")
        if statement.kind == statements.DDL and streams:
            self.state = replace(self.state, doubtful=self.state.doubtful | set(streams))
            self._maps.clear()

    def _empty(self, stream: str, place: Place) -> None:
        """The table was emptied: what waits of it is settled by that, but stays, for those who write changes down."""
        schema = self._captured[stream].schema
        settled = place.order >= self._settled_from()
        self._put_aside(stream)
        data = pa.RecordBatch.from_arrays([pa.nulls(1, f.type) for f in schema], schema=schema)
        self._emptied.append(Batch(stream, data, changes=Changes.of(1, TRUNCATE, place.order, settled=settled)))

    # -- rows --------------------------------------------------------------------------------------------

    def _rows(self, event: Event, kind: int, version: int) -> None:
        body = event.body
        changes = self._by_id.get(body[:6])
        if changes is None:
            return
        at = 8 if version == 1 else 8 + int.from_bytes(body[8:10], "little")
        if event.kind in COMPRESSED:
            # The head up to the columns stays as it is.
            body = _inflated(body, at, kind)
        self._touched = True
        before = len(changes)
        changes.add(kind, body, at, self._order + self._pos, self._txid, self._time or event.when * 1_000_000)
        self._waiting += len(changes) - before
        self._bytes += len(body)

    def _table_map(self, body: bytes) -> None:
        known = self._maps.get(body[6:])
        if known is None:
            found = parse_map(body)
            known = self._maps[body[6:]] = [found, self._names.get((found.schema, found.table)), None]
        found, stream, fits = known
        if stream is None:
            self._by_id[body[:6]] = None
            return
        columns = self._state.shapes[stream]
        if fits is not columns or stream in self._state.doubtful:
            if stream in self._state.doubtful or not found.fits(columns):
                self._look_again(stream, found)
                if self.rewind:
                    return
            known[2] = self._state.shapes[stream]
        self._by_id[body[:6]] = self._of(stream, found)

    def _of(self, stream: str, found: TableMap) -> TableChanges:
        if stream not in self._changes:
            table = self._captured[stream]
            columns = self.state.shapes[stream]
            self._changes[stream] = TableChanges(stream, found.fields, columns, table.schema, table.key, partial(self._fetch, table))
        return self._changes[stream]

    def _fetch(self, table: Captured, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows with these keys that are in the table now."""
        columns = [table.relation.column(n) for n in keys.schema.names]
        texts = [_texts(keys.column(i)) for i in range(len(columns))]
        rows = [", ".join(keyset.value(c, t) for c, t in zip(columns, row, strict=True)) for row in zip(*texts, strict=True)]
        names = ", ".join(quote(c.name) for c in columns)
        sql = f"{table.relation.select(table.schema)} WHERE ({names}) IN ({', '.join(f'({r})' for r in rows)})"
        converter = Converter([table.relation.column(n) for n in table.schema.names], table.schema)
        return converter.convert(TextRows(self._session, sql).fetch(len(rows) + 1))[0]

    def _look_again(self, stream: str, found: TableMap) -> None:
        """A table's columns may have changed: learn them, and if they did, tell of it where the transaction begins.

        Raises:
            DataflareError: `mysql.columns-unknown`.
        """
        schema, name = _split(self._captured[stream])
        now = catalog.find(self._session, schema, name)
        known = list(now.columns) if now is not None else []
        columns = found.columns([*self.state.shapes[stream], *known], self._charset_names())
        if columns is None and now is not None and found.fits(now.columns):
            columns = now.columns
        if columns is None:
            raise SHAPE_UNKNOWN.error(f"the log has rows of '{schema}.{name}' with {len(found.fields)} columns that are not those of today")
        if columns == self.state.shapes[stream]:
            self.state = replace(self.state, doubtful=self.state.doubtful - {stream})
            return
        relation = self._captured[stream].relation.reshaped(columns)
        if now is not None and now.key and set(now.key) <= {c.name for c in columns}:
            relation = replace(relation, key=now.key)
        self._reshape(stream, relation)

    def _reshape(self, stream: str, relation: Any) -> None:
        old, new = self._schema(self.state.shapes[stream]), self._schema(relation.columns)
        if old.equals(new) and self._captured[stream].relation.key == relation.key:
            # Nothing that anybody downstream sees; rows that wait were read as they were logged.
            self._put_aside(stream)
            self._changes.pop(stream, None)
            self._by_id.clear()
            shapes = {**self.state.shapes, stream: relation.columns}
            self.state = replace(self.state, shapes=shapes, doubtful=self.state.doubtful - {stream})
            return
        self.change = Reshape(stream, relation, self.state.place)
        self.rewind = True

    def _charset_names(self) -> dict[int, str]:
        if self._charsets is None:
            rows = self._session.query("SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL")
            self._charsets = {int(i): str(n) for i, n in rows}
        return self._charsets


def _texts(values: pa.Array) -> list[str]:
    """Return key values as their literals are made from."""
    if pa.types.is_binary(values.type):
        return [v.hex() for v in values.to_pylist()]
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us"))
    return list(values.cast(pa.string()).to_pylist())


def _split(table: Captured) -> tuple[str, str]:
    schema, _, name = table.relation.name.partition(".")
    return schema, name


def _inflated(body: bytes, at: int, kind: int) -> bytes:
    """Return a rows event that MariaDB compressed (log_bin_compress) as it was: only its rows are."""
    from dataflare_plugins.mysql.binlog.tablemap import lenenc

    count, start = lenenc(body, at)
    start += (count + 7) // 8 * (2 if kind == CHANGE else 1)
    return statements.uncompressed(body, start)
