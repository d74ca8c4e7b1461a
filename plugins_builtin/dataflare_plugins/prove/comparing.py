"""Row for row: what a destination holds against what it should, as multisets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.canonical import canonical
from dataflare_sdk.schema import literal, quote

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
    destination: str,
    expected: pa.RecordBatchReader,
    found: pa.RecordBatchReader,
    spill: Path,
    *,
    exact: bool = True,
    where: str = "true",
    fold: Sequence[str] = (),
) -> Comparison:
    """Compare two streams of rows of one schema.

    Args:
        destination: for the report.
        expected: what should be there.
        found: what is there.
        spill: folder for what does not fit into memory.
        exact: floats are equal to the last bit; else to nine digits, for sums whose order is not promised.
        where: condition on the rows found (those a soft delete left are not there).
        fold: the rows found are changes by this key: what they come to is compared, and a change that is there
            twice is one too many.
    """
    items = [canonical(f, exact=exact) for f in expected.schema]
    made = Comparison(destination)
    with duck.connect(threads=1, memory=512 << 20, temp=spill) as db:
        made.expected = _kept(db, "expected", expected, items, "true")
        if fold:
            made.found, made.duplicated = _folded(db, found, items, expected.schema.names, fold)
        else:
            made.found = _kept(db, "found", found, items, where)
        if _fingerprint(db, "expected") == _fingerprint(db, "found"):
            return made
        made.lost = _less(db, "expected", "found", "lost", made)
        made.duplicated += _less(db, "found", "expected", "duplicated", made)
    return made


def _kept(db: Any, name: str, rows: pa.RecordBatchReader, items: Sequence[str], where: str) -> int:
    db.register("incoming", rows)
    db.execute(f"CREATE TABLE {name} AS SELECT {', '.join(items)} FROM incoming WHERE {where}")
    db.unregister("incoming")
    return int(db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _folded(db: Any, changes: pa.RecordBatchReader, items: Sequence[str], names: Sequence[str], key: Sequence[str]) -> tuple[int, int]:
    """Keep what changes come to as the rows found; return their number, and how many changes are there too often."""
    db.register("incoming", changes)
    db.execute("CREATE TABLE changes AS SELECT * FROM incoming")
    db.unregister("incoming")
    by = ", ".join(map(quote, key))
    sent = "_op <> 'd' AND NOT list_contains(coalesce(_unchanged, []), {name})"
    columns = ", ".join(
        quote(n) if n in key else f"last({quote(n)} ORDER BY _pos) FILTER (WHERE {sent.format(name=literal(n))}) AS {quote(n)}"
        for n in names
    )
    since = "_op <> 't' AND _pos > coalesce((SELECT max(_pos) FROM changes WHERE _op = 't'), -1)"
    state = f"SELECT {columns} FROM changes WHERE {since} GROUP BY {by} HAVING last(_op ORDER BY _pos) <> 'd'"
    db.execute(f"CREATE TABLE found AS SELECT {', '.join(items)} FROM ({state})")
    twice = db.execute(f"SELECT sum(n - 1) FROM (SELECT count(*) AS n FROM changes GROUP BY {by}, _pos, _op)").fetchall()[0][0]
    return int(db.execute("SELECT count(*) FROM found").fetchall()[0][0]), int(twice or 0)


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
