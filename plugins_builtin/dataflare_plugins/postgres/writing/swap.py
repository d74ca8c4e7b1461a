"""The end of an overwrite: what was staged takes the table's place, in one transaction.

Two ways. *Swap*: the staging table, made like the old one, is renamed to its name and the old one dropped; fast, and
readers of READ COMMITTED (the default) see all of the old rows or all of the new. *Rows*: the old rows are deleted and
the staged ones inserted; slower, but the table stays the same object, for views, foreign keys, triggers, publications,
row security and partitions that hang on it, and for readers whose transaction began before (REPEATABLE READ).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import Relation, TableName
from dataflare_sdk.schema import literal, quote

if TYPE_CHECKING:
    import psycopg

_LONGEST = 63

_ATTACHED = """
SELECT EXISTS (SELECT 1 FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s)
  OR EXISTS (SELECT 1 FROM pg_constraint WHERE contype = 'f' AND %(oid)s IN (conrelid, confrelid))
  OR EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal)
  OR EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = %(oid)s)
  OR EXISTS (SELECT 1 FROM pg_publication_rel WHERE prrelid = %(oid)s)
  OR EXISTS (SELECT 1 FROM pg_inherits WHERE %(oid)s IN (inhrelid, inhparent))
  OR EXISTS (SELECT 1 FROM pg_class WHERE oid = %(oid)s AND (relkind <> 'r' OR relrowsecurity OR relreplident <> 'd' OR reloftype <> 0))
  OR EXISTS (SELECT 1 FROM pg_depend WHERE refclassid = 'pg_class'::regclass AND refobjid = %(oid)s AND deptype = 'n'
    AND classid = 'pg_proc'::regclass)"""
_SEQUENCES = """
SELECT s.oid::regclass::text, a.attname FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.refobjid = %s AND d.deptype = 'a' AND d.classid = 'pg_class'::regclass"""
_IDENTITIES = _SEQUENCES.replace("deptype = 'a'", "deptype = 'i'")
_INDEXES = """
SELECT c.relname, regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX .* ON (ONLY )?\\S+ USING', '\\1')
  || i.indisprimary::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s ORDER BY i.indexrelid"""
_GRANTS = """
SELECT g.privilege_type, CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END, g.is_grantable, NULL
FROM pg_class c, aclexplode(c.relacl) g WHERE c.oid = %(oid)s AND g.grantee <> c.relowner
UNION ALL
SELECT g.privilege_type, CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END, g.is_grantable, a.attname
FROM pg_attribute a, aclexplode(a.attacl) g WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped"""


def staging_name(table: TableName) -> TableName:
    """Return the name of a table's staging table, in the same schema."""
    name = f"_dataflare_staging_{table.name}"
    if len(name.encode()) > _LONGEST:
        name = f"_dataflare_staging_{hashlib.sha256(table.name.encode()).hexdigest()[:32]}"
    return TableName(table.schema, name)


def make_like(db: psycopg.Connection[Any], staging: TableName, old: Relation) -> None:
    """Create the staging table with the old one's columns, defaults, constraints, indexes and comments."""
    db.execute(f"CREATE TABLE {staging.sql} (LIKE {old.sql} INCLUDING ALL)".encode())


def replace(db: psycopg.Connection[Any], staging: Relation, old: Relation | None, name: TableName, *, rows: bool) -> None:
    """Put the staged rows in the place of the table `old`; `rows`: row by row, even where the tables could be swapped."""
    assert staging.name is not None
    if old is None:
        _rename(db, staging, name.name)
    elif rows or attached(db, old):
        _by_rows(db, staging, old)
    else:
        _swap(db, staging, old, name)


def attached(db: psycopg.Connection[Any], old: Relation) -> bool:
    """Whether something hangs on the table that another table of its name would not have."""
    row = db.execute(_ATTACHED, {"oid": old.oid}).fetchone()
    return bool(row and row[0])


def _by_rows(db: psycopg.Connection[Any], staging: Relation, old: Relation) -> None:
    columns = ", ".join(quote(c.name) for c in staging.columns if c.name not in old.computed)
    db.execute(f"LOCK TABLE {old.sql} IN SHARE ROW EXCLUSIVE MODE".encode())
    db.execute(f"DELETE FROM {old.sql}".encode())
    db.execute(f"INSERT INTO {old.sql} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {staging.sql}".encode())
    db.execute(f"DROP TABLE {staging.sql}".encode())


def _swap(db: psycopg.Connection[Any], staging: Relation, old: Relation, name: TableName) -> None:
    db.execute(f"LOCK TABLE {old.sql} IN ACCESS EXCLUSIVE MODE".encode())
    _hand_over(db, staging, old)
    indexes = db.execute(_INDEXES, (old.oid,)).fetchall()
    db.execute(f"DROP TABLE {old.sql}".encode())
    _rename(db, staging, name.name)
    _name_indexes(db, staging, indexes)


def _rename(db: psycopg.Connection[Any], staging: Relation, name: str) -> None:
    db.execute(f"ALTER TABLE {staging.sql} RENAME TO {quote(name)}".encode())


def _hand_over(db: psycopg.Connection[Any], staging: Relation, old: Relation) -> None:
    """Give the new table the old one's owner, rights, comment, storage parameters and sequences."""
    owner, comment = db.execute(
        "SELECT quote_ident(pg_get_userbyid(relowner)), quote_literal(obj_description(oid, 'pg_class')) FROM pg_class WHERE oid = %s",
        (old.oid,),
    ).fetchall()[0]
    if comment is not None:
        db.execute(f"COMMENT ON TABLE {staging.sql} IS {comment}".encode())
    for right, grantee, grantable, column in db.execute(_GRANTS, {"oid": old.oid}).fetchall():
        columns = "" if column is None else f" ({quote(column)})"
        again = " WITH GRANT OPTION" if grantable else ""
        db.execute(f"GRANT {right}{columns} ON {staging.sql} TO {grantee}{again}".encode())
    _hand_over_settings(db, staging, old)
    for sequence, column in db.execute(_SEQUENCES, (old.oid,)).fetchall():
        db.execute(f"ALTER SEQUENCE {sequence} OWNED BY {staging.sql}.{quote(column)}".encode())
    (mine,) = db.execute("SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class WHERE oid = %s", (staging.oid,)).fetchall()[0]
    if mine != owner:
        db.execute(f"ALTER TABLE {staging.sql} OWNER TO {owner}".encode())


def _hand_over_settings(db: psycopg.Connection[Any], staging: Relation, old: Relation) -> None:
    """Give the new table the old one's storage parameters, and its identity columns the numbers they stand at."""
    (options,) = db.execute("SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = %s", (old.oid,)).fetchall()[0]
    if options:
        db.execute(f"ALTER TABLE {staging.sql} SET ({options})".encode())
    for sequence, column in db.execute(_IDENTITIES, (old.oid,)).fetchall():
        made = f"pg_get_serial_sequence({literal(staging.sql)}, {literal(column)})"
        db.execute(f"SELECT setval({made}, last_value, is_called) FROM {sequence}".encode())
    # Without statistics the first readers of the new table would get bad plans.
    db.execute(f"ANALYZE {staging.sql}".encode())


def _name_indexes(db: psycopg.Connection[Any], staging: Relation, old: list[tuple[Any, ...]]) -> None:
    """Give the new indexes the names of the old ones they were made like."""
    assert staging.name is not None
    left = list(old)
    for name, definition in db.execute(_INDEXES, (staging.oid,)).fetchall():
        match = next((o for o in left if o[1] == definition), None)
        if match is None:
            continue
        left.remove(match)
        if match[0] != name:
            db.execute(f"ALTER INDEX {TableName(staging.name.schema, name).sql} RENAME TO {quote(match[0])}".encode())
