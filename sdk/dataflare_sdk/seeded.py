"""A seeded writer over any SQL database: what a proof lets somebody else do to a table while a workflow runs.

Every step is one transaction of a few changes. New rows are made from old ones, with a new key and some new values,
so that they satisfy what the table demands of a row; a change the database refuses is rolled back and counts nothing.
"""

from __future__ import annotations

import datetime
import random
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from dataflare.records import record
from dataflare_sdk.schema import quote

Change = Callable[["TableWriter"], int]


@record
class TableShape:
    """What a writer has to know of a table.

    Attributes:
        name: the table, as it stands in SQL: quoted, with its schema.
        key: columns that identify a row.
        columns: columns that may be written, key included; generated ones are missing.
        cursor: column that has to grow with every insert and update, or None.
        fixed: columns left as they are: keys to other tables.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    cursor: str | None = None
    fixed: frozenset[str] = frozenset()


class TableWriter:
    """Writes to one table.

    Args:
        db: a DB-API connection of its own; it commits and rolls back by `db.commit()` and `db.rollback()`.
        table: what it writes to.
        seed: the same seed does the same to the same rows.
        kinds: what it may do, of `scratch.KINDS`.
        mark: how the driver marks a parameter, `?` or `%s`.
        errors: the driver's exception for a refused statement.
        most: rows the table is kept near to: when it holds more, it deletes rather than inserts.
    """

    def __init__(
        self,
        db: Any,
        table: TableShape,
        *,
        seed: int,
        kinds: frozenset[str],
        mark: str = "?",
        errors: type[Exception] = Exception,
        most: int = 2000,
    ) -> None:
        self._db = db
        self._table = table
        self._mark = mark
        self._errors = errors
        self._most = most
        self._made = 0
        self._seed = seed
        self.random = random.Random(seed)  # noqa: S311 - a repeatable choice is what is wanted
        self._kinds = sorted(kinds)

    def step(self) -> int:
        """Commit one transaction of one to five changes; return how many rows it touched."""
        touched = 0
        try:
            for _ in range(self.random.randint(1, 5)):
                touched += self._change()
            self._db.commit()
        except self._errors:
            self._db.rollback()
            return 0
        return touched

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # -- changes -----------------------------------------------------------------------------------------

    def _change(self) -> int:
        count = int(self._rows(f"SELECT count(*) FROM {self._table.name}")[0][0])
        kind = self.random.choice(self._kinds)
        if kind == "insert" and count > self._most and "delete" in self._kinds:
            kind = "delete"
        if count < 5 and "insert" in self._kinds and count:
            kind = "insert"
        row = self._any_row(count)
        if row is None:
            return 0
        return {"insert": self._insert, "update": self._update, "delete": self._delete, "key": self._rekey}[kind](row)

    def _any_row(self, count: int) -> dict[str, Any] | None:
        if not count:
            return None
        names = ", ".join(quote(c) for c in self._table.columns)
        order = ", ".join(quote(k) for k in self._table.key) or "1"
        found = self._rows(f"SELECT {names} FROM {self._table.name} ORDER BY {order} LIMIT 1 OFFSET {self.random.randrange(count)}")
        return dict(zip(self._table.columns, found[0], strict=True)) if found else None

    def _insert(self, row: Mapping[str, Any]) -> int:
        made = {**self._new_values(row, share=0.7), **self._new_key(row), **self._new_cursor()}
        items = ", ".join(self._mark if c in made else quote(c) for c in self._table.columns)
        where, key = self._where(row)
        names = ", ".join(map(quote, self._table.columns))
        # What stays the same is copied by the database, which knows types the driver does not.
        sql = f"INSERT INTO {self._table.name} ({names}) SELECT {items} FROM {self._table.name} WHERE {where}"
        self._run(sql, [*(made[c] for c in self._table.columns if c in made), *key])
        return 1

    def _update(self, row: Mapping[str, Any]) -> int:
        changed = {**self._new_values(row, share=0.4), **self._new_cursor()}
        return self._set(row, changed) if changed else 0

    def _rekey(self, row: Mapping[str, Any]) -> int:
        changed = self._new_key(row)
        return self._set(row, {**changed, **self._new_cursor()}) if changed else 0

    def _delete(self, row: Mapping[str, Any]) -> int:
        where, values = self._where(row)
        self._run(f"DELETE FROM {self._table.name} WHERE {where}", values)
        return 1

    def _set(self, row: Mapping[str, Any], changed: Mapping[str, Any]) -> int:
        where, values = self._where(row)
        sets = ", ".join(f"{quote(c)} = {self._mark}" for c in changed)
        self._run(f"UPDATE {self._table.name} SET {sets} WHERE {where}", [*changed.values(), *values])
        return 1

    def _where(self, row: Mapping[str, Any]) -> tuple[str, list[Any]]:
        key = self._table.key or self._table.columns
        return " AND ".join(f"{quote(k)} = {self._mark}" for k in key), [row[k] for k in key]

    # -- values ------------------------------------------------------------------------------------------

    def _new_values(self, row: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Return new values for some of the columns that are neither key nor cursor."""
        still = {*self._table.key, *self._table.fixed, self._table.cursor}
        free = [c for c in self._table.columns if c not in still]
        chosen = [c for c in free if self.random.random() < share]
        if free and not chosen:
            chosen = [self.random.choice(free)]
        return {c: other(row[c], self.random) for c in chosen}

    def _new_key(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the key of a row that is not there: one column of it gets a value nobody else makes."""
        for name in self._table.key:
            value = row[name]
            self._made += 1
            if isinstance(value, int) and not isinstance(value, bool):
                largest = self._rows(f"SELECT max({quote(name)}) FROM {self._table.name}")[0][0]
                return {name: int(largest) + self.random.randint(1, 3)}
            if isinstance(value, str):
                return {name: f"{value[:8].rstrip('-')}-{self._seed:x}{self._made:05}"[-24:]}
            if isinstance(value, uuid.UUID):
                return {name: uuid.UUID(int=self.random.getrandbits(128), version=4)}
            if isinstance(value, (datetime.date, datetime.datetime)):
                return {name: value + datetime.timedelta(days=self._made)}
        return {}

    def _new_cursor(self) -> dict[str, Any]:
        name = self._table.cursor
        if name is None:
            return {}
        return {name: after(self._rows(f"SELECT max({quote(name)}) FROM {self._table.name}")[0][0])}

    # -- plumbing ----------------------------------------------------------------------------------------

    def _rows(self, sql: str) -> Sequence[tuple[Any, ...]]:
        cursor = self._db.cursor()
        cursor.execute(sql)
        found: Sequence[tuple[Any, ...]] = cursor.fetchall()
        return found

    def _run(self, sql: str, values: Sequence[Any]) -> None:
        self._db.cursor().execute(sql, values)


class Together:
    """Several writers as one: every step is one of them's, by turns drawn from the seed."""

    def __init__(self, writers: Sequence[TableWriter], seed: int) -> None:
        self._writers = writers
        self._random = random.Random(seed)  # noqa: S311

    def step(self) -> int:
        """Let one of the writers commit a transaction."""
        return self._random.choice(self._writers).step() if self._writers else 0

    def close(self) -> None:
        """Close all of them."""
        for writer in self._writers:
            writer.close()


def other(value: Any, chance: random.Random) -> Any:
    """Return another value of the same kind; of a kind nobody knows, the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(0, value + chance.randint(-9, 10))
    if isinstance(value, float):
        return round(value + chance.uniform(-9, 10), 3)
    if isinstance(value, Decimal):
        return abs(value + Decimal(chance.randint(-9, 10)))
    if isinstance(value, datetime.datetime):
        return value + datetime.timedelta(seconds=chance.randint(1, 90_000))
    if isinstance(value, str):
        return _text(value, chance)
    return value


def _text(value: str, chance: random.Random) -> str:
    """Return another text of the same length; one that reads as a number or a time stays one."""
    if value[:1].isdigit() or value[:1] in "{[-+":
        return value
    letters = [c if not c.isalpha() or chance.random() < 0.7 else chance.choice(string.ascii_lowercase) for c in value[:24]]
    return "".join(letters) + value[24:]


def after(value: Any) -> Any:
    """Return a cursor value larger than all before."""
    if isinstance(value, (int, float, Decimal)):
        return value + 1
    if isinstance(value, datetime.datetime):
        return value + datetime.timedelta(milliseconds=1)
    if isinstance(value, datetime.date):
        return value + datetime.timedelta(days=1)
    if isinstance(value, str):
        return _later(value)
    return 1


def _later(value: str) -> str:
    """Return a time, written as text, a second later, in the same form."""
    try:
        made = datetime.datetime.fromisoformat(value) + datetime.timedelta(seconds=1)
    except ValueError:
        return value + "0"
    text = made.isoformat(sep=value[10:11] or " ", timespec="microseconds" if "." in value else "seconds")
    return text[:10] if len(value) == 10 else text
