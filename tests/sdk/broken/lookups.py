"""A small correct lookup, and for each check of `LookupSuite` one that breaks exactly this demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import Lookup, NoConfig

ROWS = pa.table(
    {"id": pa.array([1, 2, 2, 3, None], pa.int64()), "n": pa.array([5, 6, 7, None, 9], pa.int32()), "s": ["a", "b", None, "", "e"]}
)


class Held(Lookup[NoConfig]):
    """The reference: a table in memory."""

    fails: ClassVar[str | None] = None

    def discover(self) -> pa.Schema:
        return ROWS.schema

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        found = ROWS.filter(pc.is_in(ROWS.column("id"), value_set=keys.column("id"))).select(list(self.spec.columns)).combine_chunks()
        batches: list[Any] = found.to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=found.schema)


class GivesMore(Held):
    """Another correct one: it gives all it has, whatever it is asked."""

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        batch: pa.RecordBatch = ROWS.select(list(self.spec.columns)).combine_chunks().to_batches()[0]
        return batch


class HasOtherFeatures(Held):
    fails = "declares-known-features"
    features = frozenset({"quick"})


class TellsOtherColumns(Held):
    fails = "tells-its-columns"

    def discover(self) -> pa.Schema:
        return pa.schema([("id", pa.int64()), ("n", pa.large_string()), ("s", pa.string())])


class FindsTheFirstOnly(Held):
    fails = "finds-the-rows-of-many-keys"

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        return super().find(keys.slice(0, 1))


class AnswersOnce(Held):
    fails = "answers-one-request-after-the-other"
    asked = False

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        found = super().find(keys if not self.asked else keys.slice(0, 0))
        self.asked = True
        return found


class GivesItsOwnOrder(Held):
    fails = "gives-the-columns-asked-for"

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        found = super().find(keys)
        return found.select([n for n in ROWS.schema.names if n in self.spec.columns])


class ClosesOnlyWhatWasUsed(Held):
    fails = "can-be-closed-at-any-time"
    prepared = False

    def discover(self) -> pa.Schema:
        self.prepared = True
        return super().discover()

    def cancel(self) -> None:
        if not self.prepared:
            raise RuntimeError("nothing is open")


REFERENCES = (Held, GivesMore)


def twins() -> Iterator[type[Any]]:
    """Return the broken ones."""
    yield from (HasOtherFeatures, TellsOtherColumns, FindsTheFirstOnly, AnswersOnce, GivesItsOwnOrder, ClosesOnlyWhatWasUsed)
