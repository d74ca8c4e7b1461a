"""What the server says of its tables: columns, keys, engines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dataflare_plugins.mysql.columns import Column, parse_type
from dataflare_plugins.mysql.connection import Session
from dataflare_plugins.mysql.errors import NO_TABLE
from dataflare_sdk.fields import nearest
from dataflare_sdk.records import record

_COLUMNS = (
    "SELECT COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_OCTET_LENGTH, COLUMN_DEFAULT, EXTRA, IS_NULLABLE, DATA_TYPE "
    "FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION"
)
_KEYS = (
    "SELECT INDEX_NAME, COLUMN_NAME, NULLABLE, SUB_PART FROM information_schema.STATISTICS "
    "WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX"
)


@record
class Table:
    """A table or view.

    Attributes:
        schema: its database.
        name: its name.
        columns: all of them, in order.
        key: columns of the primary key, else of the first unique index without NULLs; () when there is none.
        uniques: all unique indexes, as sets of columns.
        engine: the storage engine, empty for a view.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    uniques: tuple[frozenset[str], ...]
    engine: str


def split_name(name: str, database: str) -> tuple[str, str]:
    """Return database and table of `t` or `db.t`."""
    schema, dot, table = name.partition(".")
    return (schema, table) if dot else (database, name)


def stream_name(schema: str, table: str, database: str) -> str:
    """Return the name of a table's stream: `t` in the URL's database, else `db.t`."""
    return table if schema == database else f"{schema}.{table}"


def find(session: Session, schema: str, name: str) -> Table | None:
    """Return a table as it is now, None when there is none."""
    engine = session.query("SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", (schema, name))
    if not engine:
        return None
    mariadb = session.mariadb
    columns = tuple(_column(row, mariadb=mariadb) for row in session.query(_COLUMNS, (schema, name)))
    uniques = _uniques(session.query(_KEYS, (schema, name)))
    key = next((tuple(names) for names, usable in uniques if usable), ())
    return Table(schema, name, columns, key, tuple(frozenset(n) for n, _ in uniques), str(engine[0][0] or ""))


def table(session: Session, schema: str, name: str, path: str = "table") -> Table:
    """Return a table as it is now.

    Raises:
        DataflareError: `mysql.no-table`, with the nearest name.
    """
    found = find(session, schema, name)
    if found is None:
        rows = session.query("SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (schema,))
        near = nearest(name, [str(r[0]) for r in rows])
        fix = f"did you mean '{near}'?" if near else "check the name, and that the user may SELECT from it"
        raise NO_TABLE.error(f"there is no table '{schema}.{name}' in {session.url}", fix=fix, path=path)
    return found


def _column(row: Sequence[Any], *, mariadb: bool) -> Column:
    name, column_type, charset, octets, default, extra, nullable, data_type = row
    kind, unsigned, size, scale, members = parse_type(str(column_type))
    if str(data_type).lower() == "json":
        kind = "json"
    extra = str(extra or "").upper()
    generated = "GENERATED" in extra and "DEFAULT_GENERATED" not in extra
    return Column(
        str(name),
        "int" if kind == "integer" else kind,
        unsigned,
        int(octets) if octets is not None and kind not in ("enum", "set") else size,
        scale,
        str(charset or ""),
        members,
        None if generated else _default(default, extra, mariadb=mariadb),
        generated and "STORED" not in extra and "PERSISTENT" not in extra,
        str(nullable) == "YES",
        generated,
    )


def _default(text: Any, extra: str, *, mariadb: bool) -> str | None:
    """Return the text of a constant default. MariaDB gives the expression, MySQL the value."""
    if text is None or "DEFAULT_GENERATED" in extra:
        return None
    if not mariadb:
        return str(text)
    quoted = re.fullmatch(r"_?\w*'((?:[^']|'')*)'", str(text), re.DOTALL)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1].replace("''", "'"))
    return str(text) if re.fullmatch(r"[-+]?[0-9.]+(e[-+]?\d+)?", str(text), re.IGNORECASE) else None


def _uniques(rows: Sequence[Sequence[Any]]) -> list[tuple[list[str], bool]]:
    """Return columns and usability as a key of each unique index."""
    found: dict[str, tuple[list[str], bool]] = {}
    for index, column, nullable, part in rows:
        names, usable = found.get(str(index), ([], True))
        found[str(index)] = ([*names, str(column)], usable and nullable != "YES" and part is None and column is not None)
    return list(found.values())
