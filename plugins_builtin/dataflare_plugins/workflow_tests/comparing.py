"""Rows that were expected beside rows that came: as multisets unless they have an order, floats to 1e-9."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk.commands import one_line
from dataflare_sdk.records import record
from dataflare_sdk.values import plain

SHOWN = 20
"""Rows of a difference that are shown."""
MOST_PAIRED = 300
"""Rows on each side up to which the most alike are put beside each other."""
Row = tuple[Any, ...]


@record
class Difference:
    """What is not as expected of one node.

    Attributes:
        columns: the columns that were compared.
        missing: rows that were expected and did not come.
        unexpected: rows that came and were not expected.
        changed: (expected, found) of rows that differ in some cells.
    """

    columns: tuple[str, ...]
    missing: tuple[Row, ...] = ()
    unexpected: tuple[Row, ...] = ()
    changed: tuple[tuple[Row, Row], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.changed)

    def text(self) -> str:
        """Return a table for people: `-` was expected, `+` came, `~` came otherwise, with `expected → found` in its cells."""
        lines = [("-", [_cell(v) for v in row]) for row in self.missing]
        lines += [("+", [_cell(v) for v in row]) for row in self.unexpected]
        lines += [
            ("~", [_cell(a) if same_value(a, b) else f"{_cell(a)} → {_cell(b)}" for a, b in zip(was, now, strict=True)])
            for was, now in self.changed
        ]
        shown = [("", [one_line(c) for c in self.columns]), *lines[:SHOWN]]
        widths = [max(len(cells[i]) for _, cells in shown) for i in range(len(self.columns))]
        text = "\n".join(f"{mark:<2}" + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for mark, cells in shown)
        return text if len(lines) <= SHOWN else f"{text}\n   … and {len(lines) - SHOWN} more"


def compare(expected: pa.Table, found: pa.Table, *, ordered: bool = False, contains: bool = False) -> Difference:
    """Compare rows in the columns of `expected`; the types are the same.

    Args:
        expected: the rows that are to come.
        found: those that came.
        ordered: they are to come in this order.
        contains: there may be others too.
    """
    columns = tuple(expected.column_names)
    wanted, came = _rows(expected), _rows(found.select(list(columns)))
    if ordered:
        return _in_order(columns, wanted, came)
    missing, unexpected = _left(wanted, came)
    missing, unexpected = _nearly(missing, unexpected)
    if contains:
        return Difference(columns, tuple(missing))
    return _paired(columns, missing, unexpected)


def same_value(left: Any, right: Any) -> bool:
    """Whether two values are equal; floats to 1e-9 of their size, NaN is equal to itself."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_value(v, right[k]) for k, v in left.items())
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _rows(table: pa.Table) -> list[Row]:
    return list(zip(*(c.to_pylist() for c in table.columns), strict=True)) if table.num_columns else [()] * table.num_rows


def _left(wanted: Sequence[Row], came: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return what is left on both sides when equal rows are taken away."""
    left = Counter(map(_key, came))
    missing, unexpected = [], []
    for row in wanted:
        if left[_key(row)]:
            left[_key(row)] -= 1
        else:
            missing.append(row)
    for row in reversed(came):
        if left[_key(row)]:
            left[_key(row)] -= 1
            unexpected.append(row)
    return missing, unexpected[::-1]


def _key(row: Row) -> str:
    return repr(row)


def _nearly(missing: list[Row], unexpected: list[Row]) -> tuple[list[Row], list[Row]]:
    """Take away rows whose floats differ in their last digits only."""
    left = list(unexpected)
    still = []
    for row in missing:
        at = next((i for i, other in enumerate(left) if all(map(same_value, row, other))), None)
        if at is None:
            still.append(row)
        else:
            del left[at]
    return still, left


def _paired(columns: tuple[str, ...], missing: list[Row], unexpected: list[Row]) -> Difference:
    """Put rows beside each other that have most of their cells in common, the most alike first."""
    if len(missing) > MOST_PAIRED or len(unexpected) > MOST_PAIRED:
        return Difference(columns, tuple(missing), tuple(unexpected))
    alike = sorted(
        ((sum(map(same_value, was, now)), i, j) for i, was in enumerate(missing) for j, now in enumerate(unexpected)),
        key=lambda t: (-t[0], t[1], t[2]),
    )
    pairs: dict[int, int] = {}
    for common, i, j in alike:
        if common * 2 >= len(columns) and common and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return Difference(
        columns,
        tuple(r for i, r in enumerate(missing) if i not in pairs),
        tuple(r for j, r in enumerate(unexpected) if j not in pairs.values()),
        tuple((missing[i], unexpected[j]) for i, j in sorted(pairs.items())),
    )


def _in_order(columns: tuple[str, ...], wanted: Sequence[Row], came: Sequence[Row]) -> Difference:
    changed = tuple((w, c) for w, c in zip(wanted, came, strict=False) if not all(map(same_value, w, c)))
    return Difference(columns, tuple(wanted[len(came) :]), tuple(came[len(wanted) :]), changed)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    made = plain(value)
    return one_line(made if isinstance(made, str) else json.dumps(made, default=str, ensure_ascii=False))


def aligned(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows as columns of text."""
    cells = [[one_line(c) for c in head], *([_cell(v) for v in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def plain_rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    """Return rows as JSON-able values."""
    for row in table.to_pylist():
        yield {k: plain(v) for k, v in row.items()}
