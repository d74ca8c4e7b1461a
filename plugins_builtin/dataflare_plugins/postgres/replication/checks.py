"""What must be so before a capture can begin: refused with what to run, not found out in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import DataflareError, Problem, code

WAL_LEVEL = code(
    "postgres.wal-level",
    4,
    "The server's log does not hold what change data capture needs.",
    "Run ALTER SYSTEM SET wal_level = logical and restart the server; or use `mode: full` or `incremental`.",
)
NO_REPLICATION = code(
    "postgres.no-replication-right",
    4,
    "The role may not replicate.",
    "Run ALTER ROLE … REPLICATION as a superuser.",
)
IDENTITY = code(
    "postgres.replica-identity",
    4,
    "The table's replica identity does not tell which row an update or a deletion is of.",
    "Give the table a primary key, or run ALTER TABLE … REPLICA IDENTITY FULL.",
)
KEY_NOT_SENT = code(
    "postgres.key-not-sent",
    4,
    "The key the workflow names is not part of what the server sends of a deleted row.",
    "Name the primary key, or run ALTER TABLE … REPLICA IDENTITY FULL.",
)
NO_PUBLICATION = code(
    "postgres.no-publication",
    4,
    "The publication does not exist and cannot be made.",
    "Run the statement given, as the tables' owner.",
)
NOT_PUBLISHED = code(
    "postgres.not-published",
    4,
    "A table is not in the publication, or not all of it is.",
    "Run the statement given, as the publication's owner.",
)


def server(connection: Any) -> None:
    """Check what the server must allow.

    Raises:
        DataflareError: `postgres.wal-level`, `postgres.no-replication-right`.
    """
    level, user, may = connection.execute(
        "SELECT current_setting('wal_level'), current_user, rolreplication OR rolsuper OR coalesce("
        "(SELECT pg_has_role(current_user, oid, 'member') FROM pg_roles WHERE rolname = 'rds_replication'), false) "
        "FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    if level != "logical":
        raise WAL_LEVEL.error(f"wal_level is {level}, change data capture needs logical")
    if not may:
        raise NO_REPLICATION.error(f"the role '{user}' may not replicate", fix=f'run ALTER ROLE "{user}" REPLICATION as a superuser')


def identity(table: Table, key: Sequence[str]) -> Problem | None:
    """Return what is wrong with a table's replica identity, given the key the workflow uses."""
    full = f"run ALTER TABLE {table.sql} REPLICA IDENTITY FULL"
    if table.identity == "n":
        fix = f"run ALTER TABLE {table.sql} REPLICA IDENTITY DEFAULT" if table.key else full
        return IDENTITY.problem(f"the table {table.sql} has REPLICA IDENTITY NOTHING", fix=fix)
    if table.identity == "f":
        return None
    if not table.sent_key:
        return IDENTITY.problem(f"the table {table.sql} has no primary key", fix=f"add one, or {full}")
    missing = [name for name in key if name not in table.sent_key]
    if missing:
        return KEY_NOT_SENT.problem(f"the server does not send '{missing[0]}' of a deleted row of {table.sql}", fix=full)
    return None


def publication(connection: Any, given: str | None, default: str, tables: Sequence[Table], *, may: bool) -> tuple[str, bool]:
    """Make sure that every table is published whole; make the publication when none is named and it `may` be made.

    Returns:
        Its name, and whether it was made or changed just now.

    Raises:
        DataflareError: `postgres.no-publication`, `postgres.not-published`.
    """
    name = given or default
    found = connection.execute(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = %s", (name,)
    ).fetchone()
    if found is None:
        _make(connection, name, tables, may=may and given is None)
        return name, True
    if not found[0]:
        fix = f"run ALTER PUBLICATION {_quote(name)} SET (publish = 'insert, update, delete, truncate')"
        raise NOT_PUBLISHED.error(f"the publication '{name}' leaves out kinds of changes", fix=fix, path="publication")
    missing = _unpublished(connection, name, tables)
    if missing and given is None and may:
        _add(connection, name, missing)
    elif missing:
        raise _not_published(name, missing)
    _whole(connection, name, tables)
    return name, bool(missing)


def _make(connection: Any, name: str, tables: Sequence[Table], *, may: bool) -> None:
    from psycopg import errors

    listed = ", ".join(t.sql for t in tables)
    statement = f"CREATE PUBLICATION {_quote(name)} FOR TABLE {listed} WITH (publish_via_partition_root = true)"
    if not may:
        raise NO_PUBLICATION.error(f"there is no publication '{name}'", fix=f"run {statement}", path="publication")
    try:
        connection.execute(statement)
    except errors.InsufficientPrivilege as error:
        why = f"the publication '{name}' does not exist and this role may not make it: {error.diag.message_primary}"
        raise NO_PUBLICATION.error(why, fix=f"run {statement} as the tables' owner", path="publication") from error


def _unpublished(connection: Any, name: str, tables: Sequence[Table]) -> list[Table]:
    rows = connection.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", (name,)).fetchall()
    published = {(schema, table) for schema, table in rows}
    return [t for t in tables if (t.schema, t.name) not in published]


def _add(connection: Any, name: str, missing: Sequence[Table]) -> None:
    from psycopg import errors

    try:
        connection.execute(f"ALTER PUBLICATION {_quote(name)} ADD TABLE {', '.join(t.sql for t in missing)}")
    except errors.InsufficientPrivilege as error:
        raise _not_published(name, missing) from error


def _not_published(name: str, missing: Sequence[Table]) -> DataflareError:
    listed = ", ".join(t.sql for t in missing)
    fix = f"run ALTER PUBLICATION {_quote(name)} ADD TABLE {listed}"
    return NOT_PUBLISHED.error(f"the publication '{name}' does not hold {listed}", fix=fix, path="publication")


def _whole(connection: Any, name: str, tables: Sequence[Table]) -> None:
    """Refuse publications that leave out rows or columns: the copy at first would have them, the stream not."""
    if connection.info.server_version < 150000:
        return
    rows = connection.execute(
        "SELECT schemaname, tablename, rowfilter, attnames FROM pg_publication_tables WHERE pubname = %s", (name,)
    ).fetchall()
    shapes = {(schema, table): (rowfilter, set(columns)) for schema, table, rowfilter, columns in rows}
    for table in tables:
        rowfilter, columns = shapes[table.schema, table.name]
        left_out = [c.name for c in table.columns if c.name not in columns]
        if rowfilter is None and not left_out:
            continue
        what = "rows" if rowfilter is not None else f"the column '{left_out[0]}'"
        raise NOT_PUBLISHED.error(
            f"the publication '{name}' leaves out {what} of {table.sql}",
            fix="make a publication without filter and column list for it, or leave `publication` out; leave out in a `map` or `filter`",
            path="publication",
        )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
