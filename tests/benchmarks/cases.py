"""The comparisons: each ours beside the same statement in bare DuckDB, some beside other tools too."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
from tests.benchmarks.data import COLUMNS
from tests.benchmarks.measure import Case, Contestant, python

TYPES = "{" + ", ".join(f"'{n}': '{t}'" for n, t in COLUMNS.items()) + "}"
READ_CSV = f"read_csv('{{data}}/orders.csv', columns={TYPES}, header=true)"
SET = {"total_eur": "total * rate", "label": "upper(country) || '-' || status", "day": "created_at::DATE"}
WHERE = "status in ('paid', 'shipped') and total_eur > 10"
PEERS = Path(__file__).parents[2] / ".venv-bench"
MAPPED = ", ".join(f"{e} AS {n}" for n, e in SET.items())


def ours(folder: Path, name: str, document: dict, output: str, *flags: str) -> Contestant:
    """Return our process over a workflow written into a folder of its own."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "workflow.json").write_text(json.dumps({"dataflare": 1, "name": name, **document}))
    command = [str(Path(sys.executable).parent / "dataflare"), "run", "workflow.json", "-q", *flags]
    return Contestant("DataFlare", command, place, place / output)


def bare(folder: Path, name: str, statement: str, output: str) -> Contestant:
    """Return DuckDB alone with one statement; `{out}` in it is the file it writes."""
    place = folder / f"{name}-duckdb"
    place.mkdir(parents=True, exist_ok=True)
    sql = statement.replace("{out}", str(place / output))
    code = f"import duckdb; c = duckdb.connect(config={{'threads': 2}}); c.execute({sql!r})"
    return Contestant("DuckDB", python(code), place, place / output)


def peer(folder: Path, name: str, tool: str, code: str, output: str) -> Contestant | None:
    """Return another tool on the same task, or None when it is not installed.

    Peers live in an environment of their own (`make bench` makes it): what they bring must not slow us or DuckDB down.
    """
    if not list(PEERS.glob(f"lib/python3*/site-packages/{tool}")):
        return None
    place = folder / f"{name}-{tool}"
    place.mkdir(parents=True, exist_ok=True)
    return Contestant(tool, [str(PEERS / "bin" / "python"), "-c", code.replace("{out}", str(place / output))], place, place / output)


def same_rows(kind: str):
    """Return a check that two outputs hold the same rows, by DuckDB."""

    def check(one: Contestant, other: Contestant) -> None:
        read = {"parquet": "read_parquet", "jsonl": "read_json"}[kind]
        left, right = (f"(SELECT * FROM {read}('{_glob(c.output)}'))" for c in (one, other))
        with duckdb.connect() as con:
            # Other tools write other widths of the same values: all are read as the reference has them.
            # Sums of floats depend on the order of the rows: compared to 9 digits, whatever their size.
            kinds = dict(con.execute(f"SELECT column_name, column_type FROM (DESCRIBE FROM {right})").fetchall())
            items = ", ".join(
                f'printf(\'%.8e\', "{n}"::DOUBLE) AS "{n}"' if k == "DOUBLE" else f'"{n}"::{k} AS "{n}"' for n, k in kinds.items()
            )
            query = f"SELECT count(*), bit_xor(hash(t)), sum(hash(t)) FROM (SELECT {items} FROM {{}}) t"
            a, b = (con.execute(query.format(side)).fetchall() for side in (left, right))
        if a != b:
            raise AssertionError(f"{one.name} and {other.name} wrote different rows: {a} {b}")

    return check


def _glob(output: Path | None) -> str:
    assert output is not None
    return f"{output}/**/*.parquet" if output.is_dir() else str(output)


def source(data: Path, kind: str, **more: object) -> dict:
    """Return a source block over the made data."""
    return {"orders": {"use": kind, "with": {"path": str(data / f"orders.{kind}"), "columns": COLUMNS, **more}}}


def all_cases(data: Path, folder: Path) -> list[Case]:
    """Return every comparison."""
    steps = [
        {"id": "clean", "use": "map", "with": {"set": SET, "drop": ["note"]}},
        {"id": "paid", "use": "filter", "with": {"where": WHERE}},
    ]
    csv = READ_CSV.replace("{data}", str(data))
    to_parquet = {"out": {"use": "parquet", "with": {"path": "out.parquet"}}}
    filtered = f"SELECT * EXCLUDE (note), {MAPPED} FROM {csv} WHERE {WHERE}"
    fused = bare(folder, "map", f"COPY ({filtered}) TO '{{out}}' (FORMAT parquet)", "out.parquet")
    polars = f"""
import polars as pl
t = pl.scan_csv({str(data / "orders.csv")!r}, try_parse_dates=True)
t = t.with_columns(total_eur=pl.col('total') * pl.col('rate'), label=pl.col('country').str.to_uppercase() + '-' + pl.col('status'), day=pl.col('created_at').dt.date()).drop('note')
t.filter(pl.col('status').is_in(['paid', 'shipped']) & (pl.col('total_eur') > 10)).sink_parquet('{{out}}')
"""
    pandas = f"""
import pandas as pd
t = pd.read_csv({str(data / "orders.csv")!r}, parse_dates=['created_at'])
t['total_eur'] = t['total'] * t['rate']
t['label'] = t['country'].str.upper() + '-' + t['status']
t['day'] = t['created_at'].dt.date
t = t.drop(columns='note')
t[t['status'].isin(['paid', 'shipped']) & (t['total_eur'] > 10)].to_parquet('{{out}}')
"""
    dlt = f"""
import dlt, duckdb, tempfile
@dlt.resource(name='orders')
def orders():
    reader = duckdb.sql({filtered!r}).to_arrow_reader(100000)
    for batch in reader:
        yield batch
p = dlt.pipeline('bench', destination=dlt.destinations.filesystem('file://{{out}}'), dataset_name='d', pipelines_dir=tempfile.mkdtemp(dir='.'))
p.run(orders(), loader_file_format='parquet')
"""
    peers = [peer(folder, "map", "polars", polars, "out.parquet"), peer(folder, "map", "pandas", pandas, "out.parquet")]
    streaming = ours(folder, "streaming", {"sources": source(data, "csv"), "processors": steps, "destinations": to_parquet,
        "runtime": {"lane": "streaming"}, "state": {"checkpoint": {"every": "10s"}}}, "out.parquet")  # fmt: skip
    parts = {"out": {"use": "parquet", "with": {"path": "out/"}, "write": {"mode": "append"}}}
    checkpointed, unbroken = (
        replace(ours(folder, f"checkpoints-{every}", {"sources": source(data, "csv"), "processors": steps, "destinations": parts,
            "runtime": {"lane": "streaming"}, "state": {"checkpoint": {"every": every}}}, "out"), name=name)
        for every, name in (("1s", "DataFlare"), ("1h", "DataFlare without checkpoints"))
    )  # fmt: skip
    groups = {"by": ["country", "status"], "select": {"orders": "count(*)", "revenue": "sum(total)", "top": "max(total)"}}
    grouped = (
        f"SELECT country, status, count(*) AS orders, sum(total) AS revenue, max(total) AS top FROM {csv} WHERE total > 10 GROUP BY ALL"
    )
    names = ", ".join(f"{n}: '{t}'" for n, t in COLUMNS.items())
    lookup = {
        "lookup": {"use": "parquet", "with": {"path": str(data / "customers.parquet")}},
        "on": {"customer": "id"},
        "select": {"segment": "segment", "code": "code"},
    }
    parquet = {"orders": {"use": "parquet", "with": {"path": str(data / "orders.parquet")}}}
    joined = f"SELECT o.*, c.segment, c.code FROM '{data}/orders.parquet' o LEFT JOIN '{data}/customers.parquet' c ON o.customer = c.id"
    ten = folder / "ten"
    ten.mkdir(parents=True, exist_ok=True)
    (ten / "in.csv").write_text("a,b\n" + "".join(f"{i},x{i}\n" for i in range(10)))
    imports = Contestant("import duckdb, pyarrow", python("import duckdb, pyarrow; duckdb.sql('select 1').arrow()"), ten)
    cases = [
        Case("CSV → map, filter → Parquet", "bulk lane", ours(folder, "map", {"sources": source(data, "csv"), "processors": steps, "destinations": to_parquet}, "out.parquet"),
             fused, 1.15, peers=[p for p in peers if p], check=same_rows("parquet")),
        Case("CSV → filter → group by → Parquet", "bulk lane", ours(folder, "group", {"sources": source(data, "csv"), "processors": [
            {"id": "some", "use": "filter", "with": {"where": "total > 10"}}, {"id": "daily", "use": "aggregate", "with": groups}], "destinations": to_parquet}, "out.parquet"),
             bare(folder, "group", f"COPY ({grouped}) TO '{{out}}' (FORMAT parquet)", "out.parquet"), 1.15, check=same_rows("parquet")),
        Case("JSONL → map → JSONL", "bulk lane", ours(folder, "json", {"sources": source(data, "jsonl"), "processors": steps[:1],
             "destinations": {"out": {"use": "jsonl", "with": {"path": "out.jsonl"}}}}, "out.jsonl"),
             bare(folder, "json", f"COPY (SELECT * EXCLUDE (note), {MAPPED} FROM read_json('{data}/orders.jsonl', columns={{{names}}}, format='newline_delimited')) TO '{{out}}' (FORMAT json)", "out.jsonl"), 1.2, check=same_rows("jsonl")),
        Case("the first task, streaming lane, checkpoints every 10 s", "streaming lane", streaming, bare(folder, "streaming", f"COPY ({filtered}) TO '{{out}}' (FORMAT parquet)", "out.parquet"), 1.4, by="cpu", check=same_rows("parquet")),
        Case("the first task into a folder, a checkpoint every second", "streaming lane", checkpointed, unbroken, 1.05, check=same_rows("parquet")),
        Case("enrich 5 M rows from 1 M", "bulk lane", ours(folder, "enrich", {"sources": parquet, "processors": [{"id": "who", "use": "enrich", "with": lookup}], "destinations": to_parquet}, "out.parquet"),
             bare(folder, "enrich", f"COPY ({joined}) TO '{{out}}' (FORMAT parquet)", "out.parquet"), 1.15, check=same_rows("parquet")),
        Case("10 rows, CSV → JSONL", "start-up", ours(folder, "ten", {"sources": {"in": {"use": "csv", "with": {"path": "in.csv"}}}, "destinations": {"out": {"use": "jsonl", "with": {"path": "out.jsonl"}}}}, "out.jsonl"),
             imports, 1.6),
    ]  # fmt: skip
    loaded = peer(folder, "map", "dlt", dlt, "out")
    if loaded is not None:
        cases[0].peers = [*cases[0].peers, loaded]
    return cases
