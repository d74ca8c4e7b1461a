"""Databases side by side with the tools their makers ship: psql, pg_recvlogical, hand-written SQL; and with dlt."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import PEERS, peer
from tests.benchmarks.measure import Case, Contestant
from tests.servers.postgres import PostgresServer, installed

SOURCE = """
SELECT i::bigint AS id, ((i * 7) % 1000003)::bigint AS customer, 'customer ' || (i % 100000) AS name,
  (ARRAY['paid','shipped','open'])[1 + i % 3] AS status, ((i * 37) % 1000000 / 100.0)::numeric(12,2) AS total,
  (i % 97) / 7.0::float8 AS rate, timestamptz '2026-01-01' + i * interval '1 second' AS created_at, (i % 2 = 0) AS flag,
  date '2026-01-01' + (i % 365)::int AS day, 'note ' || i AS note
FROM generate_series(1, {rows}) i
"""
COLUMNS = "id bigint, customer bigint, name text, status text, total numeric(12,2), rate float8, created_at timestamptz, flag bool, day date, note text"
LOADING = "1 M rows, PostgreSQL → PostgreSQL, beside dlt"
NARROW = "a bigint primary key, b int, c float8, d bool, e timestamptz, f text, g text"


@dataclass
class Bench:
    """A server with its databases, and the folder workflows are written into."""

    server: PostgresServer
    source: str
    target: str
    folder: Path

    def psql(self, database: str) -> str:
        return f"{shlex.quote(str(self.server.binaries.folder / 'psql'))} -Xq {shlex.quote(self.server.url(database))}"

    def url(self, database: str) -> str:
        return self.server.url(database)

    def fresh(self, statement: str) -> Any:
        """Return what brings the target database back to where a run begins."""
        return lambda: self.server.execute(statement, self.target)

    def ours(self, name: str, document: dict[str, Any], before: Any, *flags: str) -> Contestant:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "workflow.json").write_text(json.dumps({"dataflare": 1, "name": name, **document}))
        command = [str(Path(sys.executable).parent / "dataflare"), "run", "workflow.json", "-q", *flags]
        return Contestant("DataFlare", command, place, before=before)

    def shell(self, name: str, command: str, before: Any) -> Contestant:
        place = self.folder / name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        return Contestant(name, ["sh", "-c", command], place, before=before)


@contextmanager
def bench(rows: int, folder: Path) -> Iterator[Bench]:
    """Start a server with a filled table."""
    server = PostgresServer(installed()[0], options={"shared_buffers": "256MB", "max_wal_size": "8GB"}).start()
    try:
        made = Bench(server, server.create_database(), server.create_database(), folder)
        server.execute(f"CREATE TABLE src AS {SOURCE.format(rows=rows)}", made.source)
        server.execute("ALTER TABLE src ADD PRIMARY KEY (id)", made.source)
        server.execute("VACUUM ANALYZE src", made.source)
        yield made
    finally:
        server.remove()


def copying(made: Bench) -> list[Case]:
    """Return the comparisons of whole tables."""
    read = {"o": {"use": "postgres", "with": {"url": made.url(made.source), "table": "public.src"}}}
    write = {"t": {"use": "postgres", "with": {"url": made.url(made.target), "table": "public.dst"}}}
    changed = [{"id": "m", "use": "map", "with": {"set": {"total": "total * 2", "status": "upper(status)"}}}]
    pipe = f"{made.psql(made.source)} -c 'COPY src TO STDOUT (FORMAT binary)' | {made.psql(made.target)} -c 'COPY ref FROM STDIN (FORMAT binary)'"
    new_ref = made.fresh(f"DROP TABLE IF EXISTS ref; CREATE TABLE ref ({COLUMNS})")
    no_dst = made.fresh("DROP TABLE IF EXISTS dst")

    def same(*tables: str) -> Any:
        def check(_one: Contestant, _other: Contestant) -> None:
            sums = [made.server.execute(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {t} t", made.target) for t in tables]
            if sums[0] != sums[1]:
                raise AssertionError(f"the tables differ: {sums}")

        return check

    upsert_into = {
        "t": {**write["t"], "with": {"url": made.url(made.target), "table": "public.up"}, "write": {"mode": "upsert", "key": ["id"]}}
    }
    half = f"CREATE TABLE {{0}} ({COLUMNS}, PRIMARY KEY (id)); INSERT INTO {{0}} {SOURCE.format(rows=500_000)}"
    sets = ", ".join(f"{c} = excluded.{c}" for c in ("customer", "name", "status", "total", "rate", "created_at", "flag", "day", "note"))
    staged = (
        f'{made.psql(made.source)} -c "COPY (SELECT * FROM src WHERE id <= 1000000) TO STDOUT (FORMAT binary)" | {made.psql(made.target)} '
        f'-c "BEGIN; CREATE TEMP TABLE stage ({COLUMNS}) ON COMMIT DROP" -c "COPY stage FROM STDIN (FORMAT binary)" '
        f'-c "INSERT INTO hand SELECT * FROM stage ON CONFLICT (id) DO UPDATE SET {sets}" -c COMMIT'
    )
    million = {"o": {"use": "postgres", "with": {"url": made.url(made.source), "query": "SELECT * FROM src WHERE id <= 1000000"}}}
    return [
        Case("PostgreSQL → PostgreSQL", "handed over", made.ours("copy", {"sources": read, "destinations": write}, no_dst),
             made.shell("psql COPY binary pipe", pipe, new_ref), 1.35, check=same("dst", "ref")),
        Case("PostgreSQL → map → PostgreSQL", "streaming lane", made.ours("mapped", {"sources": read, "processors": changed, "destinations": write}, no_dst),
             made.shell("psql COPY binary pipe", pipe, new_ref), 2.5),
        Case("PostgreSQL → upsert of 1 M rows", "handed over", made.ours("upsert", {"sources": million, "destinations": upsert_into}, made.fresh("DROP TABLE IF EXISTS up; " + half.format("up"))),
             made.shell("staging + ON CONFLICT by hand", staged, made.fresh("DROP TABLE IF EXISTS hand; " + half.format("hand"))), 1.2, check=same("up", "hand")),
    ]  # fmt: skip


def loading(made: Bench) -> list[Case]:
    """Return a copy of a million rows into PostgreSQL beside dlt, when it is there."""
    code = f"""
import dlt, tempfile
from dlt.sources.sql_database import sql_table
t = sql_table(credentials={made.url(made.source).replace("postgresql://", "postgresql+psycopg2://")!r}, table='million', backend='pyarrow')
p = dlt.pipeline('bench', destination=dlt.destinations.postgres({made.url(made.target)!r}), dataset_name='theirs', pipelines_dir=tempfile.mkdtemp(dir='.'))
p.run(t, loader_file_format='csv', write_disposition='replace')
"""
    other = peer(made.folder, "load", "dlt", code, "out") if PEERS.exists() else None
    if other is None:
        return []
    made.server.execute("CREATE TABLE IF NOT EXISTS million AS SELECT * FROM src WHERE id <= 1000000", made.source)
    read = {"o": {"use": "postgres", "with": {"url": made.url(made.source), "table": "public.million"}}}
    write = {"t": {"use": "postgres", "with": {"url": made.url(made.target), "table": "public.ours"}}}

    def same(_one: Contestant, _other: Contestant) -> None:
        sums = "SELECT count(*), sum(id), sum(customer), sum(total), sum(hashtextextended(name || note, 0)) FROM {}"
        found = [made.server.execute(sums.format(t), made.target) for t in ("ours", "theirs.million")]
        if found[0] != found[1]:
            raise AssertionError(f"the tables differ: {found}")

    return [Case(LOADING, "handed over", made.ours("load", {"sources": read, "destinations": write}, None), other, 1 / 8, check=same)]


def to_parquet(made: Bench) -> list[Case]:
    """Return PostgreSQL → Parquet beside dlt, when it is there."""
    code = f"""
import dlt, tempfile
from dlt.sources.sql_database import sql_table
t = sql_table(credentials={made.url(made.source).replace("postgresql://", "postgresql+psycopg2://")!r}, table='src', backend='pyarrow')
p = dlt.pipeline('bench', destination=dlt.destinations.filesystem('file://{{out}}'), dataset_name='d', pipelines_dir=tempfile.mkdtemp(dir='.'))
p.run(t, loader_file_format='parquet')
"""
    other = peer(made.folder, "parquet", "dlt", code, "out") if PEERS.exists() else None
    if other is None:
        return []
    read = {"o": {"use": "postgres", "with": {"url": made.url(made.source), "table": "public.src"}}}
    mine = made.ours("parquet", {"sources": read, "destinations": {"t": {"use": "parquet", "with": {"path": "o.parquet"}}}}, None)
    return [Case("PostgreSQL → Parquet", "streaming lane", mine, other, 1 / 1.5)]


def capturing(made: Bench) -> list[Case]:
    """Return changes into nowhere beside `pg_recvlogical` into a null file: a million inserts, and a mix."""
    return [_capture(made, name, sql) for name, sql in (("1 M inserts", INSERTS), ("1 M changes, 40/40/20", MIX))]


INSERTS = (
    "INSERT INTO {table} SELECT i, i::int, i / 3.0, i % 2 = 0, timestamptz '2026-01-01' + i * interval '1 s', 'name ' || i % 1000, 'note ' || i "
    "FROM generate_series({first}, {last}) i"
)
MIX = (
    "INSERT INTO {table} SELECT i, i::int, i / 3.0, i % 2 = 0, now(), 'name ' || i % 1000, 'note ' || i FROM generate_series({first}, {first} + 399) i; "
    "UPDATE {table} SET b = b + 1, g = 'changed' WHERE a BETWEEN {first} AND {first} + 399; "
    "DELETE FROM {table} WHERE a BETWEEN {first} AND {first} + 199"
)


def _capture(made: Bench, name: str, statement: str) -> Case:
    server, database = made.server, made.source
    table = "ins" if statement is INSERTS else "mix"
    slot, publication = f"made_{table}", f"pub_{table}"
    server.execute(f"CREATE TABLE {table} ({NARROW})", database)
    server.execute(f"CREATE PUBLICATION {publication} FOR TABLE {table}", database)
    server.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')", database)
    with server.connect(database) as db:
        for n in range(1000):
            db.execute(statement.format(table=table, first=n * 1000 + 1, last=(n + 1) * 1000))
    end = server.execute("SELECT pg_current_wal_lsn()", database)[0][0]

    def again(copy: str) -> Any:
        def before() -> None:
            known = server.execute(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{copy}'", database)
            if known:
                server.execute(f"SELECT pg_drop_replication_slot('{copy}')", database)
            server.execute(f"SELECT pg_copy_logical_replication_slot('{slot}', '{copy}')", database)

        return before

    receive = (
        f"{shlex.quote(str(server.binaries.folder / 'pg_recvlogical'))} -d {shlex.quote(made.url(database))} --slot {slot}_ref --start "
        f"-o proto_version=1 -o publication_names={publication} -o binary=true --endpos {end} --no-loop -f /dev/null"
    )
    # The table as it is now would be copied first: the capture is told that this was done.
    source = {
        "use": "postgres",
        "with": {"url": made.url(database), "table": table, "slot": f"{slot}_own", "publication": publication},
        "extract": {"mode": "cdc"},
    }
    document = {
        "sources": {"s": source},
        "destinations": {"o": {"use": "blackhole", "write": {"mode": "append"}}},
        "state": {"checkpoint": {"every": "1s"}},
    }
    mine = made.ours(f"capture-{table}", document, again(f"{slot}_own"), "--once")
    start = server.execute(f"SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'", database)[0][
        0
    ]
    offset = json.dumps({"v": 1, "phase": "stream", "lsn": int(start), "high": int(start)})
    mine.prepare = [str(Path(sys.executable).parent / "dataflare"), "state", "set", "workflow.json", "--stream", "s", "--offset", offset]
    return Case(
        f"PostgreSQL changes: {name}", "checkpoints on", mine, made.shell(f"pg_recvlogical {table}", receive, again(f"{slot}_ref")), 1.15
    )
