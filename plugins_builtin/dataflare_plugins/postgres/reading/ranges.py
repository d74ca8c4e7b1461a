"""Parts of a table: by ranges of a column, or by the blocks it is stored in. Together they are all of it, none twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import Relation
from dataflare_sdk import code
from dataflare_sdk.fields import nearest
from dataflare_sdk.schema import literal, quote

if TYPE_CHECKING:
    import psycopg

NO_PARTITION_COLUMN = code(
    "postgres.no-partition-column",
    3,
    "The column to partition by does not exist, or its values have no order.",
    "Use a column of numbers, times or text, or leave `by` out.",
)
SAMPLED = 1_000_000
"""Rows from which bounds are taken from a sample."""


def typed(value: str, kind: str) -> str:
    """Return a value given as the server's text as a literal of its type."""
    text = literal(value)
    return f"{'E' + text.replace(chr(92), chr(92) * 2) if chr(92) in value else text}::{kind}"


def by_column(db: psycopg.Connection[Any], relation: Relation, name: str, into: int) -> list[dict[str, Any]]:
    """Cut a table into ranges of about equally many rows; fewer than `into` where the column has few values.

    Raises:
        DataflareError: `postgres.no-partition-column`.
    """
    if name not in relation.names:
        near = nearest(name, relation.names)
        raise NO_PARTITION_COLUMN.error(f"there is no column '{name}'", fix=f"did you mean '{near}'?" if near else None, path=None)
    fractions = [i / into for i in range(1, into)]
    column = quote(name)
    sql = (
        f"SELECT percentile_disc(%s::float8[]) WITHIN GROUP (ORDER BY {column})::text[] FROM {relation.sql} AS given{_sample(db, relation)}"
    )
    row = db.execute(sql.encode(), (fractions,)).fetchone()
    bounds = list(dict.fromkeys(b for b in (row[0] or [] if row else []) if b is not None))
    edges: Sequence[str | None] = [None, *bounds, None]
    kind = relation.column(name).sql
    return [{"by": name, "type": kind, "over": edges[i], "to": edges[i + 1]} for i in range(len(edges) - 1)]


def _sample(db: psycopg.Connection[Any], relation: Relation) -> str:
    if relation.kind not in ("r", "m", "p"):
        return ""
    row = db.execute(
        "SELECT sum(c.reltuples) FROM pg_partition_tree(%s::oid) t JOIN pg_class c ON c.oid = t.relid", (relation.oid,)
    ).fetchone()
    if row is None or row[0] is None:
        row = db.execute("SELECT reltuples FROM pg_class WHERE oid = %s", (relation.oid,)).fetchone()
    rows = float(row[0]) if row and row[0] else 0.0
    return f" TABLESAMPLE SYSTEM ({min(100.0, 100.0 * SAMPLED / 10 / rows):.6f}) REPEATABLE (1)" if rows > SAMPLED else ""


def by_blocks(db: psycopg.Connection[Any], relation: Relation, into: int) -> list[dict[str, Any]]:
    """Cut a table into ranges of its blocks; sound within one snapshot only, where no row moves."""
    row = db.execute("SELECT pg_relation_size(%s::oid) / current_setting('block_size')::bigint", (relation.oid,)).fetchone()
    blocks = int(row[0]) if row else 0
    edges = sorted({blocks * i // into for i in range(1, into)} - {0})
    cuts: list[int | None] = [0, *edges, None]
    return [{"blocks": [cuts[i], cuts[i + 1]]} for i in range(len(cuts) - 1)]


def predicate(spec: Mapping[str, Any]) -> str:
    """Return the condition of a part; NULLs belong to the first range."""
    if "blocks" in spec:
        low, high = spec["blocks"]
        return f"ctid >= '({low},0)'::tid" + ("" if high is None else f" AND ctid < '({high},0)'::tid")
    if "by" not in spec:
        return "true"
    column, low, high = quote(spec["by"]), spec["over"], spec["to"]
    if low is not None:
        return f"{column} > {typed(low, spec['type'])}" + ("" if high is None else f" AND {column} <= {typed(high, spec['type'])}")
    return "true" if high is None else f"({column} <= {typed(high, spec['type'])} OR {column} IS NULL)"
