"""K1, P1–P9, B3: whatever graph hypothesis draws gives exactly the rows of one DuckDB query.

One tree is drawn; a workflow and a query are written from it, independently of each other. The workflow runs in
the bulk lane and in the streaming lane with several chunkings; the oracle is DuckDB alone over the same files.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import dataflare

EXAMPLES, MANY = 80, int(os.environ.get("DATAFLARE_ORACLE_EXAMPLES", "600"))
"""Graphs that are drawn in `make test`, where every kind of step and of join is among them, and in a soak."""
CHUNKS = (1, 7, 65536)
SHARDS = 4

COLUMNS = {
    "id": "BIGINT",
    "k": "INTEGER",
    "s": "VARCHAR",
    "d": "DECIMAL(10,2)",
    "f": "DOUBLE",
    "b": "BOOLEAN",
    "dt": "DATE",
    "ts": "TIMESTAMP",
    "tz": "TIMESTAMPTZ",
    "l": "BIGINT[]",
    "st": "STRUCT(x INTEGER, y VARCHAR)",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three sources of one shape (one of them empty) and a lookup with unique keys."""
    folder = tmp_path_factory.mktemp("oracle")
    con = duckdb.connect()
    con.execute("SET TimeZone='UTC'")
    for name, rows, salt in (("a", 47, 1), ("b", 29, 2), ("e", 0, 3)):
        con.execute(
            f"""COPY (SELECT i AS id, CASE WHEN h % 5 = 0 THEN NULL ELSE (h % 4)::INTEGER END AS k,
              CASE h % 6 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'né ß 漢' ELSE 'w' || h % 3 END AS s,
              CASE WHEN h % 7 = 0 THEN NULL ELSE ((h % 1000) / 8)::DECIMAL(10,2) END AS d,
              CASE WHEN h % 9 = 0 THEN NULL ELSE (h % 100) / 4.0 END::DOUBLE AS f,
              CASE WHEN h % 3 = 0 THEN NULL ELSE h % 2 = 0 END AS b,
              DATE '2026-01-01' + (h % 60)::INTEGER AS dt,
              TIMESTAMP '2026-01-01 00:00:00.000001' + INTERVAL (h % 90000) SECOND AS ts,
              TIMESTAMPTZ '2026-03-29 00:30:00+00' + INTERVAL (h % 7200) SECOND AS tz,
              CASE WHEN h % 4 = 0 THEN NULL WHEN h % 4 = 1 THEN [] ELSE [h % 10, NULL, i] END AS l,
              CASE WHEN h % 8 = 0 THEN NULL ELSE {{'x': (h % 5)::INTEGER, 'y': 'y' || h % 2}} END AS st
            FROM (SELECT i, (hash(i * 7 + {salt}) % 1000003)::BIGINT AS h FROM range({rows}) t(i)))
            TO '{folder}/{name}.parquet'"""
        )
    con.execute(f"COPY (SELECT i::INTEGER AS key, 'label ' || i AS label FROM range(3) t(i)) TO '{folder}/look.parquet'")
    before = Path.cwd()
    os.chdir(folder)  # a workflow given as a mapping starts from the current folder
    yield folder
    os.chdir(before)


@dataclass
class Relation:
    """A node of the tree: its workflow side and its query side."""

    node: str
    sql: str
    columns: dict[str, str]
    ordered: bool = True


@dataclass
class Tree:
    """A drawn workflow and the query it should equal."""

    sources: dict[str, dict] = field(default_factory=dict)
    processors: list[dict] = field(default_factory=list)
    ctes: list[str] = field(default_factory=list)
    last: Relation | None = None

    def cte(self, sql: str) -> str:
        name = f"c{len(self.ctes)}"
        self.ctes.append(f"{name} AS ({sql})")
        return name

    def query(self) -> str:
        assert self.last is not None
        columns = ", ".join(f'"{c}"' for c in self.last.columns)
        return "WITH " + ",\n".join(self.ctes) + f"\nSELECT {columns} FROM {self.last.sql}"


def of_type(columns: dict[str, str], *kinds: str) -> list[str]:
    return [c for c, t in columns.items() if t in kinds]


def draw_expression(draw, columns: dict[str, str]) -> tuple[str, str]:
    """An expression that cannot fail on this data, and its type."""
    options: list[tuple[str, str]] = [("42::INTEGER", "INTEGER"), ("'x' || 'é'", "VARCHAR")]
    for c, t in columns.items():
        q = f'"{c}"'
        if t in ("BIGINT", "INTEGER"):
            options += [(f"{q}::BIGINT % 1000 + 1", "BIGINT"), (f"coalesce({q}, -1)", t), (f"{q} IS NULL", "BOOLEAN")]
        if t == "VARCHAR":
            options += [(f"upper({q})", "VARCHAR"), (f"length({q})", "BIGINT"), (f"nullif({q}, '')", "VARCHAR")]
        if t == "DECIMAL(10,2)":
            options += [(f"{q}::DOUBLE", "DOUBLE"), (f"({q})::VARCHAR", "VARCHAR")]
        if t == "DOUBLE":
            options += [(f"{q} * 2", "DOUBLE"), (f"round({q}, 1)", "DOUBLE")]
        if t == "DATE":
            options += [(f"year({q})", "BIGINT"), (f"{q}::VARCHAR", "VARCHAR")]
        if t == "TIMESTAMPTZ":
            options += [(f"date_trunc('day', {q})", "TIMESTAMPTZ"), (f"hour({q})", "BIGINT")]
        if t == "BIGINT[]":
            options += [(f"len({q})", "BIGINT"), (f"{q}[1]", "BIGINT")]
    return draw(st.sampled_from(options))


def draw_condition(draw, columns: dict[str, str]) -> str:
    options = ["true", "NULL::BOOLEAN"]
    for c, t in columns.items():
        q = f'"{c}"'
        if t in ("BIGINT", "INTEGER"):
            options += [f"{q} > 1", f"{q} IS NOT NULL", f"{q} % 2 = 0 OR {q} IS NULL"]
        if t == "VARCHAR":
            options += [f"{q} <> ''", f"{q} LIKE 'w%'"]
        if t == "BOOLEAN":
            options += [q, f"NOT {q}"]
        if t == "DECIMAL(10,2)":
            options += [f"{q} >= 50"]
    return draw(st.sampled_from(options))


def step_map(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    sets: dict[str, tuple[str, str]] = {}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["n1", "n2", "Ünï col", *[c for c in rel.columns if c != "id"]]))
        sets[name] = draw_expression(draw, rel.columns)
    removable = [c for c in rel.columns if c not in sets and c != "id"]
    drop = draw(st.lists(st.sampled_from(removable), max_size=2, unique=True)) if removable else []
    tree.processors.append(
        {"id": node, "use": "map", "from": rel.node, "with": {"set": {n: e for n, (e, _) in sets.items()}, "drop": drop}}
    )
    columns = {**{c: t for c, t in rel.columns.items() if c not in drop}}
    parts = []
    for c in rel.columns:
        if c in sets:
            parts.append(f'({sets[c][0]}) AS "{c}"')
            columns[c] = sets[c][1]
        elif c not in drop:
            parts.append(f'"{c}"')
    for n, (e, t) in sets.items():
        if n not in rel.columns:
            parts.append(f'({e}) AS "{n}"')
            columns[n] = t
    return Relation(node, tree.cte(f"SELECT {', '.join(parts)} FROM {rel.sql}"), columns, rel.ordered)


def step_filter(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    where = draw_condition(draw, rel.columns)
    other = draw(st.booleans())
    tree.processors.append({"id": node, "use": "filter", "from": rel.node, "with": {"where": where}})
    test = f"({where}) IS NOT TRUE" if other else f"({where}) IS TRUE"
    name = f"{node}.else" if other else node
    return Relation(name, tree.cte(f"SELECT * FROM {rel.sql} WHERE {test}"), rel.columns, rel.ordered)


def step_aggregate(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    keys = of_type(rel.columns, "INTEGER", "VARCHAR", "BOOLEAN", "DATE")
    by = draw(st.lists(st.sampled_from(keys), max_size=2, unique=True)) if keys else []
    select: dict[str, tuple[str, str]] = {"n": ("count(*)", "BIGINT")}
    for c in of_type(rel.columns, "BIGINT", "INTEGER")[:2]:
        if c not in by:
            select[f"sum_{c}"] = (f'sum("{c}")', "HUGEINT")
            select[f"max_{c}"] = (f'max("{c}")', rel.columns[c])
    for c in of_type(rel.columns, "DECIMAL(10,2)")[:1]:
        select[f"total_{c}"] = (f'sum("{c}")', "DECIMAL(38,2)")
    for c in of_type(rel.columns, "VARCHAR")[:1]:
        if c not in by:
            select[f"kinds_{c}"] = (f'count(DISTINCT "{c}")', "BIGINT")
    spec = {"select": {n: e for n, (e, _) in select.items()}}
    if by:
        spec["by"] = by
    tree.processors.append({"id": node, "use": "aggregate", "from": rel.node, "with": spec})
    keys_sql = ", ".join(f'"{c}"' for c in by)
    items = ", ".join([*(f'"{c}"' for c in by), *(f'{e} AS "{n}"' for n, (e, _) in select.items())])
    sql = f"SELECT {items} FROM {rel.sql}" + (f" GROUP BY {keys_sql}" if by else "")
    columns = {**{c: rel.columns[c] for c in by}, **{n: t for n, (_, t) in select.items()}}
    return Relation(node, tree.cte(sql), columns, False)


def step_join(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if "k" not in rel.columns or rel.columns["k"] != "INTEGER" or "other_s" in rel.columns:
        return None
    right, kind = draw(st.sampled_from(["b", "e"])), draw(st.sampled_from(["inner", "left", "semi", "anti"]))
    side = f"{node}_r"
    tree.sources.setdefault(right, {"use": "parquet", "with": {"path": f"{right}.parquet"}})
    tree.processors.append({"id": side, "use": "map", "from": right, "with": {"select": ["k", "s"], "rename": {"s": "other_s"}}})
    tree.processors.append({"id": node, "use": "join", "from": [rel.node, side], "with": {"type": kind, "on": ["k"]}})
    table = tree.cte(f"SELECT k, s AS other_s FROM 'DIR/{right}.parquet'")
    if kind in ("semi", "anti"):
        sql = f"SELECT l.* FROM {rel.sql} l {kind.upper()} JOIN {table} r ON l.k = r.k"
        return Relation(node, tree.cte(sql), rel.columns, False)
    sql = f"SELECT l.*, r.other_s FROM {rel.sql} l {kind.upper()} JOIN {table} r ON l.k = r.k"
    return Relation(node, tree.cte(sql), {**rel.columns, "other_s": "VARCHAR"}, False)


def step_enrich(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if rel.columns.get("k") != "INTEGER" or "label" in rel.columns:
        return None
    miss = draw(st.sampled_from(["keep", "drop"]))
    spec = {
        "lookup": {"use": "parquet", "with": {"path": "look.parquet"}},
        "on": {"k": "key"},
        "select": {"label": "label"},
        "on_miss": miss,
    }
    tree.processors.append({"id": node, "use": "enrich", "from": rel.node, "with": spec})
    kind = "LEFT" if miss == "keep" else "INNER"
    sql = f"SELECT l.*, r.label FROM {rel.sql} l {kind} JOIN 'DIR/look.parquet' r ON l.k = r.key"
    return Relation(node, tree.cte(sql), {**rel.columns, "label": "VARCHAR"}, False)


def step_dedupe(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if not rel.ordered or rel.columns.get("id") != "BIGINT" or "k" not in rel.columns:
        return None
    keep = draw(st.sampled_from(["first", "last"]))
    tree.processors.append({"id": node, "use": "dedupe", "from": rel.node, "with": {"key": ["k"], "keep": keep}})
    order = "ASC" if keep == "first" else "DESC"
    sql = f"SELECT * FROM {rel.sql} QUALIFY row_number() OVER (PARTITION BY k ORDER BY id {order}) = 1"
    return Relation(node, tree.cte(sql), rel.columns, False)


def step_route(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    one, two = draw_condition(draw, rel.columns), draw_condition(draw, rel.columns)
    tree.processors.append({"id": node, "use": "route", "from": rel.node, "with": {"routes": {"one": one, "two": two}, "else": "rest"}})
    out = draw(st.sampled_from(["one", "two", "rest"]))
    tests = {
        "one": f"({one}) IS TRUE",
        "two": f"({one}) IS NOT TRUE AND ({two}) IS TRUE",
        "rest": f"({one}) IS NOT TRUE AND ({two}) IS NOT TRUE",
    }
    sql = f"SELECT * FROM {rel.sql} WHERE {tests[out]}"
    return Relation(f"{node}.{out}", tree.cte(sql), rel.columns, rel.ordered)


def step_unnest(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if rel.columns.get("l") != "BIGINT[]":
        return None
    keep = draw(st.booleans())
    tree.processors.append({"id": node, "use": "unnest", "from": rel.node, "with": {"column": "l", "keep_empty": keep}})
    items = ", ".join(f'unnest("{c}") AS "{c}"' if c == "l" else f'"{c}"' for c in rel.columns)
    sql = f"SELECT {items} FROM {rel.sql}"
    if keep:
        empty = ", ".join("NULL AS l" if c == "l" else f'"{c}"' for c in rel.columns)
        sql += f" UNION ALL SELECT {empty} FROM {rel.sql} WHERE l IS NULL OR len(l) = 0"
    return Relation(node, tree.cte(sql), {**rel.columns, "l": "BIGINT"}, False)


def step_flatten(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if not rel.columns.get("st", "").startswith("STRUCT") or {"x", "y"} & rel.columns.keys():
        return None
    tree.processors.append({"id": node, "use": "flatten", "from": rel.node, "with": {"column": "st"}})
    items = ", ".join('st.x AS "x", st.y AS "y"' if c == "st" else f'"{c}"' for c in rel.columns)
    columns: dict[str, str] = {}
    for c, t in rel.columns.items():
        columns.update({"x": "INTEGER", "y": "VARCHAR"} if c == "st" else {c: t})
    return Relation(node, tree.cte(f"SELECT {items} FROM {rel.sql}"), columns, rel.ordered)


def step_mask(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    texts = of_type(rel.columns, "VARCHAR")
    if not texts:
        return None
    column = draw(st.sampled_from(texts))
    how = draw(st.sampled_from(["redact", "hash"]))
    tree.processors.append({"id": node, "use": "mask", "from": rel.node, "with": {"columns": {column: how}, "salt": "pepper"}})
    q = f'"{column}"'
    new = f"CASE WHEN {q} IS NULL THEN NULL ELSE '***' END" if how == "redact" else f"sha256('pepper' || {q})"
    items = ", ".join(f'{new} AS "{c}"' if c == column else f'"{c}"' for c in rel.columns)
    return Relation(node, tree.cte(f"SELECT {items} FROM {rel.sql}"), rel.columns, rel.ordered)


def step_sql(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    where = draw_condition(draw, rel.columns)
    kind = draw(st.sampled_from(["rows", "group"]))
    if kind == "rows":
        text = f"SELECT * FROM {{t}} WHERE {where}"
        columns, ordered = rel.columns, rel.ordered
    else:
        text = f"SELECT count(*) AS n, count(*) FILTER (WHERE {where}) AS hits FROM {{t}}"
        columns, ordered = {"n": "BIGINT", "hits": "BIGINT"}, False
    tree.processors.append({"id": node, "use": "sql", "from": rel.node, "with": {"query": text.format(t=f'"{rel.node}"')}})
    return Relation(node, tree.cte(text.format(t=rel.sql)), columns, ordered)


def step_expect(draw, tree: Tree, rel: Relation, node: str) -> Relation:
    rule = draw_condition(draw, rel.columns)
    tree.processors.append({"id": node, "use": "expect", "from": rel.node, "with": {"rules": {"r": rule}, "on_fail": "drop"}})
    sql = f"SELECT * FROM {rel.sql} WHERE ({rule}) IS NOT FALSE"
    return Relation(node, tree.cte(sql), rel.columns, rel.ordered)


def step_union(draw, tree: Tree, rel: Relation, node: str) -> Relation | None:
    if "id" not in rel.columns or "other_s" in rel.columns or rel.node == "b":
        return None
    if any(rel.columns.get(c, t) != t for c, t in COLUMNS.items()):
        return None
    tree.sources.setdefault("b", {"use": "parquet", "with": {"path": "b.parquet"}})
    tree.processors.append({"id": node, "use": "filter", "from": [rel.node, "b"], "with": {"where": "id % 3 <> 0"}})
    both = tree.cte(f"SELECT * FROM {rel.sql} UNION ALL BY NAME SELECT * FROM 'DIR/b.parquet'")
    columns = {**rel.columns, **{c: t for c, t in COLUMNS.items() if c not in rel.columns}}
    return Relation(node, tree.cte(f"SELECT * FROM {both} WHERE id % 3 <> 0"), columns, False)


STEPS = (
    step_map, step_filter, step_aggregate, step_join, step_enrich, step_dedupe, step_route, step_unnest,
    step_flatten, step_mask, step_sql, step_expect, step_union,
)  # fmt: skip


@st.composite
def trees(draw) -> Tree:
    tree = Tree()
    first = draw(st.sampled_from(["a", "a", "b", "e"]))
    tree.sources[first] = {"use": "parquet", "with": {"path": f"{first}.parquet"}}
    rel = Relation(first, tree.cte(f"SELECT * FROM 'DIR/{first}.parquet'"), dict(COLUMNS))
    for i in range(draw(st.integers(1, 5))):
        step = draw(st.sampled_from(STEPS))
        kept = (len(tree.processors), len(tree.ctes), dict(tree.sources))
        made = step(draw, tree, rel, f"p{i}")
        if made is None:
            del tree.processors[kept[0] :], tree.ctes[kept[1] :]
            tree.sources = kept[2]
            continue
        rel = made
    tree.last = rel
    return tree


def canonical(table: pa.Table) -> list[tuple]:
    """Rows in an order of their own, floats kept exact: nothing here is order-dependent."""
    return sorted(tuple(repr(v) for v in row.values()) for row in table.to_pylist())


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_graph_equals_one_query(shard: int, data: Path) -> None:
    check_graphs(shard, EXAMPLES // SHARDS, data)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_many_graphs_equal_one_query(shard: int, data: Path) -> None:
    check_graphs(2 * SHARDS + shard, MANY // SHARDS, data)


def check_graphs(shard: int, examples: int, data: Path) -> None:
    """Draw graphs, the same for the same shard, and check each."""

    @seed(SHARDS + shard)
    @given(tree=trees())
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    def every(tree: Tree) -> None:
        check_tree(tree, data)

    every()


@functools.cache
def oracle() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("SET TimeZone='UTC'")
    return con


def check_tree(tree: Tree, data: Path) -> None:
    expected = oracle().sql(tree.query().replace("DIR/", f"{data}/")).to_arrow_table()
    rows = canonical(expected)
    types: dict[str, str] = {}
    for lane, chunk in (("auto", 65536), *(("streaming", c) for c in CHUNKS)):
        target = data / "out.parquet"
        target.unlink(missing_ok=True)
        document = {
            "name": "oracle",
            "sources": tree.sources,
            "processors": tree.processors,
            "destinations": {"out": {"use": "parquet", "from": tree.last.node, "with": {"path": "out.parquet"}}},
            "runtime": {"lane": lane, "batch": {"rows": chunk}},
        }
        if not tree.processors:
            del document["processors"]
        run = dataflare.run(document)
        assert run.status == "done", f"{lane} {chunk} {run.error} {document}"
        found = pq.read_table(target)
        assert found.schema.names == list(tree.last.columns), (lane, chunk)
        assert canonical(found) == rows, (lane, chunk, tree.query())
        types[f"{lane}{chunk}"] = ", ".join(f"{f.name} {f.type}" for f in found.schema)
        check_counts(run, document)
    assert set(types.values()) == {", ".join(f"{f.name} {f.type}" for f in as_parquet(expected).schema)}, types


def as_parquet(table: pa.Table) -> pa.Table:
    """What a Parquet file of these types comes back as: names of list items and the like are not kept."""
    held = io.BytesIO()
    pq.write_table(table, held)
    return pq.read_table(held)


def check_counts(run, document: dict) -> None:
    """Both ends of every edge agree, and row-wise nodes account for every row."""
    nodes = run.nodes
    for item in document.get("processors", []):
        counts = nodes[item["id"]]
        if item["use"] in ("map", "filter", "mask", "expect", "flatten"):
            assert counts["rows_in"] == (counts["rows_out"] + counts["filtered"] + counts["skipped"] + counts["dead_lettered"])
        if isinstance(item["from"], str) and "." not in item["from"]:
            assert counts["rows_in"] == nodes[item["from"]]["rows_out"], item
    assert run.rows["written"] == nodes["out"]["rows_out"] == nodes["out"]["rows_in"]
