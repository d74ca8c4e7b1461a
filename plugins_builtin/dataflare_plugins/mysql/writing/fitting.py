"""Making the table, or bringing the one that is there to the rows' columns; all of it outside of transactions."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.catalog import Table
from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import Session, quote
from dataflare_plugins.mysql.writing.types import declared
from dataflare_sdk import DataflareError, WriteSpec, code
from dataflare_sdk.schema import type_name, widen

COLUMNS_DIFFER = code(
    "mysql.columns-differ", 1, "The table has other columns than the rows.", "Set `schema`, or change the columns in a map."
)
NO_UNIQUE_KEY = code(
    "mysql.no-unique-key", 4, "The table has no unique index over the key of an upsert.", "Create one, or let the table be made anew."
)
NOT_TRANSACTIONAL = code(
    "mysql.not-transactional", 4, "The table's engine has no transactions.", "ALTER TABLE … ENGINE=InnoDB, or write into another table."
)
DELETED_AT = "_deleted_at"
"""The column that tells when a row was deleted, where deletes are soft."""


class Fitter:
    """Makes and alters one table.

    Args:
        session: a connection outside of any transaction.
        schema: of the rows.
        write: how they are written, and what may change.
        changes: rows are deleted too.
    """

    def __init__(self, session: Session, schema: pa.Schema, write: WriteSpec, *, changes: bool) -> None:
        self._session = session
        self._schema = schema
        self._write = write
        self._soft = changes and write.deletes == "soft"
        self.collation = "utf8mb4_nopad_bin" if session.mariadb else "utf8mb4_0900_bin"

    def create(self, schema: str, name: str, *, key: Sequence[str] = ()) -> None:
        """Make a table for the rows; nothing happens when it is there."""
        items = [f"{quote(f.name)} {self._type(f, key)}{' NOT NULL' if f.name in key else ''}" for f in self._schema]
        if self._soft:
            items.append(f"{quote(DELETED_AT)} DATETIME(6)")
        if key:
            items.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
        # DYNAMIC rows keep long values aside, so that many columns fit.
        options = f"ENGINE=InnoDB ROW_FORMAT=DYNAMIC CHARACTER SET utf8mb4 COLLATE {self.collation}"
        self._session.execute(f"CREATE TABLE IF NOT EXISTS {quote(schema)}.{quote(name)} ({', '.join(items)}) {options}", "table")

    def _type(self, field: pa.Field, key: Sequence[str] = ()) -> str:
        return declared(field.type, self.collation, keys=len(key) if field.name in key else 0)

    def fit(self, schema: str, name: str) -> Table:
        """Make the table that append and upsert write into, or alter it as the policy says, and return it.

        Raises:
            DataflareError: `mysql.columns-differ`, `mysql.no-unique-key`, `mysql.not-transactional`.
        """
        key = self._write.key if self._write.mode == "upsert" else ()
        found = catalog.find(self._session, schema, name)
        if found is None:
            self.create(schema, name, key=key)
            return catalog.table(self._session, schema, name)
        if found.engine.upper() not in ("INNODB", "ROCKSDB", "NDBCLUSTER"):
            raise NOT_TRANSACTIONAL.error(f"'{schema}.{name}' is kept by {found.engine or 'no engine: it is a view'}", path="table")
        if key and frozenset(k.lower() for k in key) not in {frozenset(c.lower() for c in u) for u in found.uniques}:
            raise NO_UNIQUE_KEY.error(f"'{schema}.{name}' has no unique index over ({', '.join(key)})", path="table")
        changes = self._changes(found)
        if changes:
            self._session.execute(f"ALTER TABLE {quote(schema)}.{quote(name)} {', '.join(changes)}", "table")
            return catalog.table(self._session, schema, name)
        return found

    def _changes(self, table: Table) -> list[str]:
        held = {c.name.lower(): c for c in table.columns}
        changes = []
        for field in self._schema:
            column = held.get(field.name.lower())
            if column is None:
                changes += self._added(table, field)
            elif not column.generated:
                changes += self._widened(table, column, field)
        if self._soft and DELETED_AT not in held:
            changes.append(f"ADD COLUMN {quote(DELETED_AT)} DATETIME(6)")
        return changes

    def _added(self, table: Table, field: pa.Field) -> list[str]:
        if self._write.on_add == "fail":
            raise COLUMNS_DIFFER.error(f"the table '{table.name}' has no column '{field.name}'", path="table")
        return [f"ADD COLUMN {quote(field.name)} {self._type(field)}"] if self._write.on_add == "evolve" else []

    def _widened(self, table: Table, column: Column, field: pa.Field) -> list[str]:
        try:
            mine = column.arrow()
        except DataflareError:
            return []
        if _holds(mine, field.type):
            return []
        try:
            wider = widen(mine, field.type, field.name)
        except DataflareError:
            wider = None
        sides = f"'{table.name}.{column.name}' is {type_name(mine)} and the rows bring {type_name(field.type)}"
        if wider is None or wider == mine or pa.types.is_string(wider) != pa.types.is_string(mine):
            if self._write.on_break == "fail":
                raise COLUMNS_DIFFER.error(sides, path="table")
            return []
        if self._write.on_widen == "fail":
            raise COLUMNS_DIFFER.error(f"{sides}, which is wider, and `on_widen` is fail", path="table")
        null = "" if column.nullable else " NOT NULL"
        return [f"MODIFY COLUMN {quote(column.name)} {declared(wider, self.collation)}{null}"]


def _holds(column: pa.DataType, rows: pa.DataType) -> bool:
    """Whether every value of a type can be stored in a column as it is: text holds anything."""
    if column == rows or pa.types.is_string(column):
        return True
    if pa.types.is_timestamp(column) and pa.types.is_timestamp(rows):
        return True
    if pa.types.is_boolean(rows) and pa.types.is_integer(column):
        return True
    if pa.types.is_time(column) and pa.types.is_time(rows):
        return True
    try:
        return bool(widen(column, rows) == column)
    except DataflareError:
        return False
