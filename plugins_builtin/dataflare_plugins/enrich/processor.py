"""`enrich`: columns from a table, file or service, by key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich.choice import Candidates, Choice
from dataflare_plugins.enrich.config import BreakerConfig, EnrichConfig, RetryConfig
from dataflare_plugins.enrich.keys import KeyPair, named, pair
from dataflare_sdk import (
    CODES,
    Batch,
    DataflareError,
    End,
    ExtractSpec,
    LookupSpec,
    Partition,
    Pause,
    Processor,
    RowRejection,
    ScanUnit,
    code,
    duck,
)
from dataflare_sdk.row_stage import need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import cast_batch, literal, quote, type_name

MISS = code("data.lookup-miss", 1, "A row has no match in the lookup.", "Add the key to the lookup, or set `on_miss`.")
MANY = code("data.lookup-many", 1, "A row has several matches in the lookup.", "Make the key unique, or set `on_many` to first or all.")
NO_KEY = code(
    "data.lookup-key",
    1,
    "The key of a row cannot be compared with the lookup's: it is text, and no value of the lookup's type.",
    "Mend the key, or cast it in a `map` before: `try_cast` leaves the row without a match.",
)
OUTAGE = code("data.lookup-outage", 1, "The lookup did not answer for a row.", "Replay the dead letters when it answers again.")


class EnrichmentProcessor(Processor[EnrichConfig]):
    """Keys compare as `=`: NULL matches nothing."""

    Config = EnrichConfig
    features = frozenset({"rowwise", "sql"})
    changes = "rowwise"

    def __init__(self, config: EnrichConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = self._input = pa.schema([])
        self._select = dict(config.select)
        self._keys: tuple[KeyPair, ...] = ()
        self._candidates = Candidates(config, ctx)
        self._table: Any = None
        self._keyed: Any = None
        self._last: tuple[Any, Any] = (None, None)
        self._pins: Mapping[str, Any] | None = None
        self._check_config()
        self._characterise()

    def _check_config(self) -> None:
        config, invalid = self.config, CODES["config.invalid"]
        if config.on_outage == "stale" and config.cache is None and config.refresh is None:
            raise invalid.error("`on_outage: stale` uses what is known, and nothing is kept", fix="Add `cache`.", path="on_outage")
        if config.refresh is not None and config.mode == "keyed":
            raise invalid.error("a lookup that is asked by key is never old", fix="Use `cache: {ttl: …}`.", path="refresh")

    def _characterise(self) -> None:
        """Say what it is as far as the configuration and the choice tell."""
        features = set(EnrichmentProcessor.features)
        if self.config.on_miss == "keep" and self.config.on_many != "all" and self.config.on_outage != "dead_letter":
            features.add("one_to_one")
        if self._candidates.choice is not None and self._candidates.choice.keyed:
            features.add("nondeterministic")
        self.features = frozenset(features)

    # -- plan time ---------------------------------------------------------------------------------------

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Look at the lookup's columns; check keys and names; choose how it is looked up in."""
        self._name, self._input = single(inputs)
        table = self._columns()
        for mine, theirs in self.config.on.items():
            need_column(self._input, mine, f"on.{mine}")
            need_column(table, theirs, f"on.{mine}")
        fields = [pa.field(new, need_column(table, old, f"select.{new}").type) for new, old in self._select.items()]
        self._schema = pa.schema([*self._input, *fields])
        refuse_duplicates(self._schema.names, "select", "Give the new column another name.")
        self._check_keys(table)
        on = self.config.on.items()
        self._keys = tuple(pair(a, b, self._input.field(a).type, table.field(b).type) for a, b in on)
        self._candidates.settle(self._keys)
        self._characterise()
        return {"": self._schema}

    def _check_keys(self, table: pa.Schema) -> None:
        """Let DuckDB say whether the keys can be compared."""
        engine = self.ctx.component("expression_engine", "duckdb")
        fields = {f"l{i}": self._input.field(a).type for i, a in enumerate(self.config.on)}
        fields |= {f"r{i}": table.field(b).type for i, b in enumerate(self.config.on.values())}
        try:
            for i, mine in enumerate(self.config.on):
                with self._at(f"on.{mine}"):
                    engine.bind({"on": f"l{i} = r{i}"}, pa.schema(list(fields.items())))
        finally:
            engine.close()

    def _columns(self) -> pa.Schema:
        with self._at("lookup"):
            return self._candidates.columns()

    @property
    def _choice(self) -> Choice:
        assert self._candidates.choice is not None, "bound first"
        return self._candidates.choice

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[None]:
        """Give problems their place in the `with:` block."""
        try:
            yield
        except DataflareError as error:
            inner = "lookup.with." if path == "lookup" else None
            own = ("lookup", "mode")
            placed = [
                p if path == "lookup" and p.path in own else replace(p, path=f"{inner}{p.path}" if inner and p.path else path)
                for p in error.problems
            ]
            raise type(error)(*placed) from error

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Leave out new columns nobody uses; read what is used, and the keys."""
        wanted = needed.get("", frozenset())
        self._select = {n: o for n, o in self.config.select.items() if n in wanted}
        return {self._name: wanted & frozenset(self._input.names) | frozenset(self.config.on)}

    def kept(self) -> Mapping[str, str]:
        """The input's columns are handed on."""
        return {n: n for n in self._schema.names if n in self._input.names and n not in self._select}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """The input's columns are its own; a new one depends on the keys it was found by."""
        keys = [(self._name, k) for k in self.config.on]
        return {"": {n: [(self._name, n)] if n in self._input.names else keys for n in self._schema.names}}

    def notes(self) -> Sequence[str]:
        """Say how the lookup is looked up in and why, and that what it says depends on when."""
        use, choice = self.config.lookup.use, self._choice
        if choice.keyed:
            kept = "" if self.config.cache is None else ", answers are kept for a while"
            return [
                f"'{use}' is asked for the keys of each batch, because {choice.why}{kept}",
                "what the lookup answers depends on when it is asked: it is not deterministic",
            ]
        if self.config.refresh is not None:
            return [
                f"'{use}' is read whole and kept, because {choice.why}; it is read again every {self.config.refresh:g} s",
                "what the lookup answers depends on when it was read: it is not deterministic",
            ]
        return [
            f"'{use}' is read whole, because {choice.why}",
            "the lookup is read when the run starts; a run that is resumed reads it again",
        ]

    # -- the bulk lane -----------------------------------------------------------------------------------

    def _read_columns(self) -> tuple[str, ...]:
        wanted = {*self.config.on.values(), *self._select.values()}
        return tuple(n for n in self._columns().names if n in wanted)

    def _partitions(self) -> tuple[ExtractSpec, list[Partition]]:
        self._columns()
        stream = self._candidates.stream
        assert stream is not None, "a table is read from a source"
        extract = ExtractSpec(columns=self._read_columns())
        return extract, list(self._source.partitions(stream, extract))

    @property
    def _source(self) -> Any:
        return self._candidates.get("source")

    def _in_bulk(self) -> bool:
        """Return whether a statement can do it: a table is read once, whole."""
        return not self._choice.keyed and self.config.refresh is None

    def scans(self) -> Sequence[ScanUnit]:
        """Return the lookup's scans."""
        if not self._in_bulk():
            return ()
        extract, parts = self._partitions()
        return [u for p in parts for u in self._source.scan(p, extract) or ()]

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the step as a join; None when the lookup is no plain SQL scan, or is asked."""
        if not self._in_bulk():
            return None
        extract, parts = self._partitions()
        scans = [self._source.scan(p, extract) for p in parts]
        if any(s is None for s in scans) or any(u.setup for s in scans for u in s):
            return None
        units = [u for s in scans for u in s]
        keys = ", ".join(quote(b) for b in dict.fromkeys(self.config.on.values()))
        table = " UNION ALL ".join(f"SELECT * FROM ({u.sql})" for u in units)
        many = self.config.on_many
        if many != "all" and (self.ctx.run is None or not self._is_unique(units, keys)):
            table = self._one_per_key(table, keys)
        else:
            table = f'SELECT *, 1 AS "matches" FROM ({table})'
        items = [f"l.{quote(n)} AS {quote(n)}" for n in self._input.names]
        items += [f"r.{quote(old)} AS {quote(new)}" for new, old in self._select.items()]
        test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self.config.on.items())
        kind = "INNER" if self.config.on_miss == "drop" else "LEFT"
        checks = []
        if self.config.on_miss in ("dead_letter", "fail"):
            checks.append(f"CASE WHEN r.matches IS NULL THEN error({literal(MISS.name)}) ELSE true END")
        if many == "fail" and "count(*)" in table:
            checks.append(f"CASE WHEN r.matches > 1 THEN error({literal(MANY.name)}) ELSE true END")
        where = f" WHERE {' AND '.join(checks)}" if checks else ""
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)} AS l {kind} JOIN ({table}) AS r ON {test}{where}"}

    def _is_unique(self, units: Sequence[ScanUnit], keys: str) -> bool:
        """Ask once, before the statement runs: a unique key needs no grouping in it."""
        with duck.connect(memory=self.ctx.memory, threads=self.ctx.threads, temp=Path(self.ctx.staging_dir) / "spill") as connection:
            table = " UNION ALL ".join(f"SELECT {keys} FROM ({u.sql})" for u in units)
            row = connection.sql(f"SELECT count(*), count(DISTINCT ({keys})) FROM ({table}) WHERE ({keys}) IS NOT NULL").fetchall()[0]
        return bool(row[0] == row[1])

    def _one_per_key(self, table: str, keys: str) -> str:
        others = [quote(n) for n in self._read_columns() if n not in self.config.on.values()]
        firsts = "".join(f', first({o} ORDER BY "row in order") AS {o}' for o in others)
        return (
            f'SELECT {keys}{firsts}, count(*) AS "matches" FROM '
            f'(SELECT *, row_number() OVER () AS "row in order" FROM ({table})) GROUP BY {keys}'
        )

    # -- the streaming lane ------------------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with its new columns.

        Raises:
            DataflareError: `data.lookup-miss`, `data.lookup-many`, `data.lookup-outage`, `data.lookup-key`; the engine then
                calls `attempt`. `enrich.bad-key`.
        """
        outputs, rejected = self._joined(batch)
        if rejected:
            self._last = (batch.data, (outputs, rejected))
            raise DataflareError(CODES[rejected[0].code].problem(rejected[0].cause))
        return outputs

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the rows with a match, and the others; what `process` found just now is not asked for again."""
        (of, result), self._last = self._last, (None, None)
        return result if of is batch.data and result is not None else self._joined(batch)

    def _joined(self, batch: Batch) -> tuple[list[tuple[str, Batch]], list[RowRejection]]:
        from dataflare_plugins.enrich.dirty import compared
        from dataflare_plugins.enrich.index import NO, ONE
        from dataflare_sdk.compute import pc

        found, bad = compared(self._found, batch.data.select(list(self.config.on)), self._keys)
        types = ", ".join(dict.fromkeys(type_name(k.other) for k in self._keys))
        rejected = self._rejections(bad, NO_KEY, f"there is no {types} to look up", {})
        keep = None
        lost = found.lost
        if lost is not None and self.config.on_outage == "dead_letter":
            detail = {"policy": "dead_letter"}
            rejected += self._rejections(found.rows.filter(lost), OUTAGE, "the lookup did not answer", detail)
            keep = pc.invert(lost)
        if self.config.on_many == "fail":
            many = pc.fill_null(pc.greater(found.matches, ONE), NO)
            if many.true_count:
                rejected += self._rejections(found.rows.filter(many), MANY, "several rows of the lookup match", {})
                keep = pc.invert(many) if keep is None else pc.and_(keep, pc.invert(many))
        if self.config.on_miss != "keep":
            hit = pc.is_valid(found.matches) if lost is None else pc.or_(pc.is_valid(found.matches), lost)
            if self.config.on_miss != "drop" and hit.false_count:
                detail = {"policy": self.config.on_miss}
                rejected += self._rejections(found.rows.filter(pc.invert(hit)), MISS, "no row of the lookup matches", detail)
            keep = hit if keep is None else pc.and_(keep, hit)
        rows, columns = found.rows, list(found.columns)
        if keep is not None:
            rows, columns = rows.filter(keep), [c.filter(keep) for c in columns]
        same = len(rows) == batch.data.num_rows and self.config.on_many != "all"
        left = batch if same else batch.take(rows)
        data = cast_batch(pa.RecordBatch.from_arrays([*left.data.columns, *columns], names=self._schema.names), self._schema)
        return [("", left.with_data(data))], rejected

    def _rejections(self, rows: pa.Array, kind: Any, what: str, detail: Mapping[str, Any]) -> list[RowRejection]:
        return [RowRejection(kind.name, f"{what} by {named(self._keys)}", index=i, detail=detail) for i in rows.to_pylist()]

    def _found(self, keys: pa.RecordBatch) -> Any:
        if self._choice.keyed:
            if self._keyed is None:
                self._keyed = self._asking()
            return self._keyed.find(keys)
        if self._table is None:
            self._table = self._reading()
        return self._table.find(keys, list(self._select.values()))

    # -- asking by key -----------------------------------------------------------------------------------

    def _asking(self) -> Any:
        from dataflare_plugins.enrich.asking import Asker, Effort
        from dataflare_plugins.enrich.cache import Cache
        from dataflare_plugins.enrich.keyed import KeyedLookup, Wanted

        config, ctx, lookup = self.config, self.ctx, self._candidates.get("lookup")
        retry, breaker = config.retry or RetryConfig(), config.breaker or BreakerConfig()
        effort = Effort(
            timeout=config.timeout,
            attempts=retry.attempts,
            initial=retry.initial,
            most=retry.max,
            failures=breaker.failures,
            pause=breaker.pause,
            keys=config.keys or lookup.most,
            parallel=config.concurrency or lookup.parallel,
        )
        table = self._columns()
        columns = self._read_columns()
        spec = LookupSpec(keys=tuple(k.theirs for k in self._keys), columns=columns, timeout=config.timeout)

        def make() -> Any:
            made = self._candidates.build("lookup")
            made.prepare(spec)
            return made

        per_key = "one_by_one" in lookup.features
        asker = Asker(make, effort, ctx.clock, ctx.cancelled, one_by_one=per_key, counted=ctx.metric)
        kept = config.cache
        miss_ttl = None if kept is None else kept.ttl if kept.miss_ttl is None else kept.miss_ttl
        cache = None if kept is None else Cache(ttl=kept.ttl, miss_ttl=miss_ttl, rows=kept.rows, bytes=kept.bytes)
        wanted = Wanted(
            keys=self._keys,
            schema=pa.schema([table.field(n) for n in columns]),
            select=tuple(self._select.items()),
            every=config.on_many == "all",
            outage=config.on_outage,
        )
        return KeyedLookup(wanted, asker, cache, ctx.clock, ctx.metric)

    # -- reading whole -----------------------------------------------------------------------------------

    def _reading(self) -> Any:
        from dataflare_plugins.enrich.table import TableLookup

        return TableLookup(
            self.ctx,
            pa.schema([self._columns().field(n) for n in self._read_columns()]),
            self._keys,
            every=self.config.on_many == "all",
            read=self._rows,
            refresh=self.config.refresh,
            clock=self.ctx.clock,
            stale=self.config.on_outage == "stale",
        )

    def _rows(self) -> Iterator[pa.RecordBatch] | None:
        """Return what reads the lookup whole; at the second call and later what it is now, None when it did not change."""
        if self._pins is None:
            extract, parts = self._partitions()
            self._pins = self._candidates.stream.pins if self._candidates.stream is not None else {}
            return self._read(self._source, parts, extract)
        from dataflare_plugins.enrich.table import CHANGED

        source = self._candidates.build("source")
        try:
            streams = source.discover(ExtractSpec(), None)
            stream = streams[0] if streams else None
            if stream is None or stream.schema is None:
                raise CHANGED.error("the lookup's columns are not known any more", path="lookup")
            names, before = self._read_columns(), self._columns()
            lost = [n for n in names if n not in stream.schema.names or stream.schema.field(n).type != before.field(n).type]
            if lost:
                raise CHANGED.error(f"the lookup's column '{lost[0]}' is gone, or of another type", path="lookup")
            # Only files say by their pins whether anything changed: a database may write beside its file.
            if "files" in stream.pins and stream.pins == self._pins:
                source.close()
                return None
            self._pins = stream.pins
            extract = ExtractSpec(columns=names)
            return self._read(source, list(source.partitions(stream, extract)), extract, close=True)
        except BaseException:
            source.close()
            raise

    def _read(self, source: Any, parts: Sequence[Partition], extract: ExtractSpec, *, close: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a source."""
        import time

        names = list(self._read_columns())
        try:
            for part in parts:
                reader = source.open(part, extract, None)
                try:
                    while not isinstance(message := reader.read(65_536, 64 << 20, time.monotonic() + 60), (End, Pause)):
                        if message is not None and message.data.num_rows:
                            yield message.data.select(names)
                finally:
                    reader.close()
        finally:
            if close:
                source.close()

    def close(self) -> None:
        """Release the lookup and its source."""
        for held in (self._keyed, self._table):
            if held is not None:
                held.close()
        self._keyed = self._table = None
        self._candidates.close()
