"""Row for row: what a destination holds against what it should, as multisets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.canonical import canonical

SHOWN = 10
"""Differences that are shown."""


@dataclass(slots=True)
class Comparison:
    """What the comparison of one destination gave.

    Attributes:
        destination: its node.
        expected, found: rows.
        lost: rows that should be there and are not.
        duplicated: rows that are there and should not be, or too often.
        differences: up to `SHOWN` of them, each `{"destination", "what": "lost"|"duplicated", "row"}`.
    """

    destination: str
    expected: int = 0
    found: int = 0
    lost: int = 0
    duplicated: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether both hold the same rows."""
        return not self.lost and not self.duplicated


def compare(
    destination: str, expected: pa.RecordBatchReader, found: pa.RecordBatchReader, spill: Path, *, exact: bool = True, where: str = "true"
) -> Comparison:
    """Compare two streams of rows of one schema.

    Args:
        destination: for the report.
        expected: what should be there.
        found: what is there.
        spill: folder for what does not fit into memory.
        exact: floats are equal to the last bit; else to nine digits, for sums whose order is not promised.
        where: condition on the rows found (those a soft delete left are not there).
    """
    items = [canonical(f, exact=exact) for f in expected.schema]
    made = Comparison(destination)
    with duck.connect(threads=1, memory=512 << 20, temp=spill) as db:
        made.expected = _kept(db, "expected", expected, items, "true")
        made.found = _kept(db, "found", found, items, where)
        if _fingerprint(db, "expected") == _fingerprint(db, "found"):
            return made
        made.lost = _less(db, "expected", "found", "lost", made)
        made.duplicated = _less(db, "found", "expected", "duplicated", made)
    return made


def _kept(db: Any, name: str, rows: pa.RecordBatchReader, items: Sequence[str], where: str) -> int:
    db.register("incoming", rows)
    db.execute(f"CREATE TABLE {name} AS SELECT {', '.join(items)} FROM incoming WHERE {where}")
    db.unregister("incoming")
    return int(db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _fingerprint(db: Any, name: str) -> tuple[Any, ...]:
    """Return count and order-free hash of the rows."""
    return tuple(db.execute(f"SELECT count(*), sum(hash({name})::HUGEINT), bit_xor(hash({name})) FROM {name}").fetchall()[0])


def _less(db: Any, left: str, right: str, what: str, made: Comparison) -> int:
    """Count the rows of `left` that `right` lacks, and show some."""
    db.execute(f"CREATE TABLE {what} AS (SELECT * FROM {left} EXCEPT ALL SELECT * FROM {right})")
    room = SHOWN - len(made.differences)
    for row in db.sql(f"SELECT * FROM {what} LIMIT {room}").to_arrow_table().to_pylist():
        made.differences.append({"destination": made.destination, "what": what, "row": row})
    return int(db.execute(f"SELECT count(*) FROM {what}").fetchall()[0][0])
