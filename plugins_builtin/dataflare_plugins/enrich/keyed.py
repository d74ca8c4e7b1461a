"""A lookup that is asked for the keys of each batch; what it said may be kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich import keys as key_columns
from dataflare_plugins.enrich.asking import Asker
from dataflare_plugins.enrich.cache import Cache
from dataflare_plugins.enrich.index import NO, NONE, ONE, YES, Found, Segment, answers, found, spread
from dataflare_plugins.enrich.keys import KeyPair
from dataflare_sdk import RetriableError
from dataflare_sdk.compute import pc
from dataflare_sdk.records import record

Places = list[tuple[Segment, Any]]
"""Segments, each with a position per distinct key, NULL where the answer is not in it."""


@record
class Wanted:
    """What is asked for.

    Attributes:
        keys: how the input's columns are compared.
        schema: the lookup's columns that come back.
        select: new column to lookup column.
        every: all rows of a key are wanted.
        outage: `fail`, `keep`, `dead_letter` or `stale`.
    """

    keys: tuple[KeyPair, ...]
    schema: pa.Schema
    select: tuple[tuple[str, str], ...]
    every: bool
    outage: str


class KeyedLookup:
    """Answers which rows of a lookup match the keys of a batch, from what it knows or by asking.

    May be used by several threads: a key that one of them is asking for is not asked for by another.

    Args:
        wanted: what is asked for.
        asker: asks.
        cache: what it said before; None: nothing is kept.
        clock: the time, seconds.
        counted: told of hits and misses of the cache.
    """

    def __init__(
        self,
        wanted: Wanted,
        asker: Asker,
        cache: Cache | None,
        clock: Callable[[], float],
        counted: Callable[[str, float], None] = lambda _name, _value: None,
    ) -> None:
        self._wanted, self._asker, self._cache, self._clock = wanted, asker, cache, clock
        self._counted = counted
        self._flights: list[_Flight] = []
        self._lock = threading.Lock()

    def find(self, batch: pa.RecordBatch) -> Found:
        """Return what matches the rows of a batch, which holds the input's key columns.

        Raises:
            RetriableError: the lookup did not answer, and the policy is to fail.
            DataflareError: it will not answer.
        """
        wanted = self._wanted
        columns = key_columns.met(batch, [k.mine for k in wanted.keys], wanted.keys)
        rows = key_columns.encode(columns).dictionary_encode()
        distinct, codes = rows.dictionary, rows.indices.cast(pa.int64())
        places, lost = self._places(distinct, codes, columns)
        segment, slots = _together(places, len(distinct), self._wanted.schema)
        result = found(segment, slots.take(codes), every=wanted.every, names=[old for _, old in wanted.select])
        if lost is None:
            return result
        return Found(result.rows, result.matches, result.columns, pc.fill_null(lost.take(codes).take(result.rows), NO))

    def _places(self, distinct: Any, codes: Any, columns: Sequence[Any]) -> tuple[Places, Any]:
        """Return where the answers to distinct keys are, and which were not to be had (None: all were)."""
        with self._lock:
            now = self._clock()
            places: Places = []
            missing = pa.repeat(YES, len(distinct))
            if self._cache is not None:
                places, missing = self._cache.get(distinct, now)
            flights = [f for f in self._flights if _covers(f, distinct, missing)]
            open_ = missing
            for flight in flights:
                open_ = pc.and_(open_, flight.slots(distinct).is_null())
            mine = _Flight(distinct.filter(open_)) if open_.true_count else None
            if mine is not None:
                self._flights.append(mine)
        self._counted("lookup_hits", len(distinct) - missing.true_count)
        self._counted("lookup_misses", missing.true_count)
        if mine is not None:
            self._fly(mine, distinct, codes, columns, open_)
            flights.append(mine)
        return self._landed(places, flights, distinct, missing)

    def _fly(self, flight: _Flight, distinct: Any, codes: Any, columns: Sequence[Any], open_: Any) -> None:
        """Ask for the keys of a flight; those who wait for it are told in any case."""
        try:
            first = pc.index_in(pc.indices_nonzero(open_).cast(pa.int64()), value_set=codes).cast(pa.int64())
            values, can = key_columns.asked([c.take(first) for c in columns], self._wanted.keys)
            batches, answered, flight.outage = self._asker.ask(values) if values.num_rows else ([], [], None)
            rows = _rows(batches, self._wanted.schema)
            names = [k.theirs for k in self._wanted.keys]
            encoded = key_columns.encode(key_columns.met(rows, names, self._wanted.keys))
            asked = distinct.filter(open_)
            if flight.outage is not None:
                asked = asked.filter(_of_those(can, answered))
            # The clock is read when the answer has come: what took long to come is not old for that.
            flight.answer = answers(asked, encoded, rows, self._clock())
        except Exception as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                self._flights.remove(flight)
                if self._cache is not None and flight.answer is not None:
                    self._cache.put(flight.answer)
            flight.done.set()

    def _landed(self, places: Places, flights: Sequence[_Flight], distinct: Any, missing: Any) -> tuple[Places, Any]:
        """Wait for the requests of others, and apply the policy to keys that nobody answered."""
        outage: RetriableError | None = None
        for flight in flights:
            flight.done.wait()
            if flight.error is not None:
                raise flight.error
            outage = outage or flight.outage
            if flight.answer is not None:
                places.append((flight.answer, flight.answer.slots(pc.if_else(missing, distinct, pa.scalar(None, distinct.type)))))
        if outage is None:
            return places, None
        lost = missing
        for _, slots in places:
            lost = pc.and_(lost, slots.is_null())
        if self._wanted.outage == "stale" and self._cache is not None:
            with self._lock:
                old, still = self._cache.get(pc.if_else(lost, distinct, pa.scalar(None, distinct.type)), 0.0, stale=True)
            places, lost = [*places, *old], pc.and_(lost, still)
            self._counted("lookup_stale", missing.true_count - lost.true_count)
        if lost.true_count and self._wanted.outage in ("fail", "stale"):
            raise outage
        return places, lost if lost.true_count else None

    def close(self) -> None:
        """Close what asks."""
        self._asker.close()


class _Flight:
    """Keys that somebody is asking for."""

    def __init__(self, keys: Any) -> None:
        self._keys = Segment(keys.take(pc.sort_indices(keys)), None, None, pa.RecordBatch.from_arrays([], names=[]))
        self.done = threading.Event()
        self.answer: Segment | None = None
        self.outage: RetriableError | None = None
        self.error: Exception | None = None

    def slots(self, keys: Any) -> Any:
        """Return for each key its place among those asked for, NULL when it is not."""
        return self._keys.slots(keys)


def _covers(flight: _Flight, keys: Any, missing: Any) -> bool:
    return bool(pc.and_(missing, flight.slots(keys).is_valid()).true_count)


def _of_those(can: Any, answered: list[bool]) -> Any:
    """Return which of all keys were answered: those the lookup cannot have need no answer."""
    got = pa.array(answered, pa.bool_())
    if can is None:
        return got
    places = pc.subtract(pc.cumulative_sum(can.cast(pa.int64())), ONE)
    return pc.if_else(can, got.take(pc.if_else(can, places, NONE)), YES)


def _rows(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    table = pa.Table.from_batches([b.select(schema.names) for b in batches if b.num_rows], schema=schema).combine_chunks()
    made = table.to_batches()
    return made[0] if made else pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def _together(places: Places, count: int, schema: pa.Schema) -> tuple[Segment, Any]:
    """Return one segment with a position per distinct key, of answers that lie in several."""
    if len(places) == 1:
        return places[0]
    owners, batches = [pa.array([], pa.int64())], []
    for segment, slots in places:
        at = pc.indices_nonzero(slots.is_valid()).cast(pa.int64())
        held = slots.drop_null()
        ranges, rows = spread(segment.starts.take(held), segment.counts.take(held))
        owners.append(at.take(ranges))
        batches.append(segment.rows.take(rows))
    owner, rows = pa.concat_arrays(owners), _rows(batches, schema)
    whole = answers(pa.arange(0, count), owner, rows, 0.0)
    return whole, pa.arange(0, count)
