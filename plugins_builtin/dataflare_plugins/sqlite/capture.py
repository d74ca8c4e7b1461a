"""Capture: triggers that write every change of a table into a log beside it, whoever changes it.

Everything is in the database that is captured, so that a change and its entry are one transaction:

- `_dataflare_log` numbers the changes of all captured tables: one row per change, in the order they were made.
- `_dataflare_changes_TABLE` holds the rows: as they are after a change, as they were before a deletion.
- `_dataflare_captured` knows which columns of a table the log has, and from which change on.
- `_dataflare_consumers` knows up to where each workflow is done; what all are done with is removed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from dataflare_sdk import code
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

CAPTURE_LOST = code(
    "sqlite.capture-lost",
    4,
    "Changes of a table were not captured for a while: its triggers or its log were removed, or it was made anew.",
    "Read the table anew with `dataflare state reset`; rows deleted meanwhile stay in the destination until they are removed there.",
)
CANNOT_CAPTURE = code(
    "sqlite.cannot-capture",
    4,
    "The triggers that capture changes cannot be made.",
    "Capturing writes into the file that is read: give the right to, or read with `mode: incremental`.",
)
PREFIX = "_dataflare_"
LOG, CAPTURED, CONSUMERS = "_dataflare_log", "_dataflare_captured", "_dataflare_consumers"
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS {LOG}(id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, op TEXT NOT NULL, at REAL NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {CAPTURED}(tbl TEXT PRIMARY KEY, columns TEXT NOT NULL, keys TEXT NOT NULL, since INTEGER NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {CONSUMERS}(consumer TEXT NOT NULL, tbl TEXT NOT NULL, done INTEGER NOT NULL, PRIMARY KEY(consumer, tbl))",
)
# What a foreign SQLite of any age understands; a day has 86,400 seconds.
_NOW = "(julianday('now') - 2440587.5) * 86400.0"


@record
class Captured:
    """What the log has of a table.

    Attributes:
        columns: the columns whose values it has.
        keys: columns whose change is logged as a deletion and an update.
        since: change from which on it has exactly these.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...]
    since: int


def shadow(table: str) -> str:
    """Return the name of the table that holds a table's changed rows."""
    return f"_dataflare_changes_{table}"


def columns_of(db: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """Return the columns of a table as they are now, () when there is no such table."""
    return tuple(_text(r[1]) for r in db.execute(f"PRAGMA table_info({quote(table)})"))


def position(db: sqlite3.Connection) -> int:
    """Return the number of the newest change, 0 before the first; numbers are never given twice."""
    rows = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchall()
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (LOG,)).fetchall() if rows else []
    return int(found[0][0]) if found else 0


def captured(db: sqlite3.Connection, table: str) -> Captured | None:
    """Return what the log has of a table; None when it is not captured, or one of its triggers is gone."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (CAPTURED,)).fetchall():
        return None
    rows = db.execute(f"SELECT columns, keys, since FROM {CAPTURED} WHERE tbl = ?", (table,)).fetchall()
    held = _triggers(db, table)
    if not rows or any(_name(o, table) not in held for o in _OPERATIONS):
        return None
    return Captured(tuple(json.loads(rows[0][0])), tuple(json.loads(rows[0][1])), int(rows[0][2]))


def outdated(db: sqlite3.Connection, table: str, found: Captured) -> bool:
    """Whether the table was altered since: its triggers are not those it would get today."""
    return _triggers(db, table) != _wanted(db, table, columns_of(db, table), found.keys)


def capture(db: sqlite3.Connection, table: str, key: Sequence[str]) -> Captured:
    """Capture a table from now on, with the columns it has now; in the caller's transaction.

    Args:
        db: a connection that may write.
        table: the table.
        key: columns that identify a row; a change of one is logged as a deletion and an update.
    """
    for statement in _TABLES:
        db.execute(statement)
    columns, before = columns_of(db, table), captured(db, table)
    keys = tuple(k for k in dict.fromkeys([*(before.keys if before else ()), *key]) if k in columns)
    _fit_shadow(db, table, columns)
    for name in _triggers(db, table):
        db.execute(f"DROP TRIGGER {quote(name)}")
    for statement in _wanted(db, table, columns, keys).values():
        db.execute(statement)
    since = before.since if before is not None and before.columns == columns else _mark(db, table)
    db.execute(f"INSERT OR REPLACE INTO {CAPTURED} VALUES (?, ?, ?, ?)", (table, json.dumps(columns), json.dumps(keys), since))
    return Captured(columns, keys, since)


def _mark(db: sqlite3.Connection, table: str) -> int:
    """Return a number of its own for the place where the log begins to have other columns."""
    db.execute(f"INSERT INTO {LOG}(tbl, op, at) SELECT ?, 's', {_NOW}", (table,))
    return position(db)


def _triggers(db: sqlite3.Connection, table: str) -> dict[str, str]:
    """Return our triggers of a table, name to SQL."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE", (table,))
    return {_text(name): _text(sql) for name, sql in rows if _text(name).startswith(PREFIX)}


def _wanted(db: sqlite3.Connection, table: str, columns: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Return the triggers that a table needs, name to SQL."""
    bodies = {operation: ("AFTER " + operation, made(table, columns, keys)) for operation, made in _OPERATIONS.items()}
    replaced = _replaced(db, table, columns, keys)
    if replaced:
        bodies["REPLACE"] = ("BEFORE INSERT", replaced)
        bodies["UPDATE_REPLACE"] = ("BEFORE UPDATE", replaced)
    return {
        _name(o, table): f"CREATE TRIGGER {quote(_name(o, table))} {when} ON {quote(table)} BEGIN {body} END"
        for o, (when, body) in bodies.items()
    }


def _name(operation: str, table: str) -> str:
    return f"{PREFIX}{operation.lower()}_{table}"


def _fit_shadow(db: sqlite3.Connection, table: str, columns: Sequence[str]) -> None:
    """Make the table of changed rows, or give it the columns it lacks. They have no type: values stay as they are."""
    name = quote(shadow(table))
    db.execute(f"CREATE TABLE IF NOT EXISTS {name} (_dataflare_id INTEGER PRIMARY KEY)")
    held = {c.lower() for c in columns_of(db, shadow(table))}
    for column in columns:
        if column.lower() not in held:
            db.execute(f"ALTER TABLE {name} ADD COLUMN {quote(column)}")


def _entry(table: str, op: str, row: str, columns: Sequence[str], condition: str = "") -> str:
    """Return the statements that log one change; `last_insert_rowid()` in a trigger is the trigger's own."""
    where = f" WHERE {condition}" if condition else ""
    names = ", ".join(quote(c) for c in columns)
    values = ", ".join(f"{row}.{quote(c)}" for c in columns)
    return (
        f"INSERT INTO {LOG}(tbl, op, at) SELECT {_literal(table)}, '{op}', {_NOW}{where}; "
        f"INSERT INTO {quote(shadow(table))}(_dataflare_id, {names}) SELECT last_insert_rowid(), {values}{where};"
    )


def _inserted(table: str, columns: Sequence[str], keys: Sequence[str]) -> str:  # noqa: ARG001
    return _entry(table, "c", "NEW", columns)


def _updated(table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
    other = " OR ".join(f"OLD.{quote(k)} IS NOT NEW.{quote(k)}" for k in keys)
    moved = _entry(table, "d", "OLD", columns, other) + " " if keys else ""
    return moved + _entry(table, "u", "NEW", columns)


def _deleted(table: str, columns: Sequence[str], keys: Sequence[str]) -> str:  # noqa: ARG001
    return _entry(table, "d", "OLD", columns)


def _replaced(db: sqlite3.Connection, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
    """Return the statements that log rows which a REPLACE may be about to remove: SQLite tells no trigger of those.

    Only a row with another key and the same value in a unique index counts. Whether it is really gone is for the
    reader to see (the statement may be an INSERT OR IGNORE).
    """
    made = []
    for index in db.execute(f"PRAGMA index_list({quote(table)})").fetchall():
        names = [r[2] and _text(r[2]) for r in db.execute(f"PRAGMA index_info({quote(_text(index[1]))})")]
        if not index[2] or not keys or not all(names) or set(names) == set(keys):
            continue
        same = " AND ".join(f"{quote(n)} = NEW.{quote(n)}" for n in names)
        other = " OR ".join(f"{quote(k)} IS NOT NEW.{quote(k)}" for k in keys)
        rows = f"FROM {quote(table)} WHERE {same} AND ({other})"
        values = ", ".join(quote(c) for c in columns)
        made.append(
            f"INSERT INTO {LOG}(tbl, op, at) SELECT {_literal(table)}, 'm', {_NOW} {rows}; "
            f"INSERT INTO {quote(shadow(table))}(_dataflare_id, {values}) SELECT last_insert_rowid(), {values} {rows};"
        )
    return " ".join(made)


_OPERATIONS = {"INSERT": _inserted, "UPDATE": _updated, "DELETE": _deleted}


# -- consumers -------------------------------------------------------------------------------------------


def register(db: sqlite3.Connection, consumer: str, table: str, done: int) -> None:
    """Keep the changes after `done` for a consumer."""
    db.execute(f"INSERT OR REPLACE INTO {CONSUMERS} VALUES (?, ?, ?)", (consumer, table, done))


def kept_from(db: sqlite3.Connection, consumer: str, table: str) -> int | None:
    """Return the change after which everything is still kept for a consumer, None when it is not known."""
    rows = db.execute(f"SELECT done FROM {CONSUMERS} WHERE consumer = ? AND tbl = ?", (consumer, table)).fetchall()
    return int(rows[0][0]) if rows else None


def pending(db: sqlite3.Connection, done: int) -> tuple[int, float | None]:
    """Return how many changes follow `done` (of all captured tables), and when the first of them was made."""
    first = db.execute(f"SELECT at FROM {LOG} WHERE id > ? ORDER BY id LIMIT 1", (done,)).fetchone()
    return (0, None) if first is None else (max(0, position(db) - done), float(first[0]))


def prune(db: sqlite3.Connection, consumer: str, tables: Sequence[str], done: int) -> None:
    """Note how far a consumer is and remove what every consumer of a table is done with; in the caller's transaction."""
    for table in tables:
        db.execute(f"UPDATE {CONSUMERS} SET done = max(done, ?) WHERE consumer = ? AND tbl = ?", (done, consumer, table))
        (least,) = db.execute(f"SELECT min(done) FROM {CONSUMERS} WHERE tbl = ?", (table,)).fetchone()
        db.execute(f"DELETE FROM {quote(shadow(table))} WHERE _dataflare_id <= ?", (least,))
        db.execute(f"DELETE FROM {LOG} WHERE id <= ? AND tbl = ?", (least, table))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
