"""The PostgreSQL source against a real server: the suite of its kind, each mode row for row against psql."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from dataflare_plugins.postgres.source import PostgresConfig, PostgresSource
from dataflare_sdk import DataflareError, End, ExtractSpec, Partition, Pause
from dataflare_sdk.testing import FakeContext, SourceSuite

CHUNKS = ExtractSpec(options={"consistency": "chunks"})
ROWS = "CREATE TABLE rows AS SELECT i AS id, CASE WHEN i % 4 > 0 THEN 'nämé ' || i END AS name, i * 1.5 AS amount FROM generate_series(0, 24) i"


def source(database, tmp_path, offline=False, **more):
    ctx = FakeContext(tmp_path, "orders")
    ctx.offline = offline
    more = {"table": "public.rows", **more} if "query" not in more else more
    return PostgresSource(PostgresSource.configure({"url": database.url, **more}), ctx)


def drain(made, extract=ExtractSpec(), offset=None, until=None, rows=1000, parts=None):
    """Read all partitions in turn; return their batches and the last offset."""
    batches = []
    stream = made.discover(extract, offset)[0]
    for part in parts or made.partitions(stream, extract):
        part = Partition(part.id, part.stream, json.loads(json.dumps(dict(part.spec))))
        reader = made.open(part, extract, offset, until)
        while True:
            message = reader.read(rows, 1 << 20, time.monotonic() + 5)
            if isinstance(message, (End, Pause)):
                break
            if message is not None:
                batches.append(message)
        reader.close()
    return batches


def values(batches, column="id"):
    return [v for b in batches for v in b.data.column(column).to_pylist()]


def last(batches):
    return json.loads(json.dumps(dict(next(b.offset for b in reversed(batches) if b.offset is not None))))


@pytest.mark.parametrize("extract", [CHUNKS, ExtractSpec(mode="incremental", cursor="id", key=("id",))], ids=["chunks", "incremental"])
def test_it_conforms(every_postgres, tmp_path, extract):
    every_postgres.execute(ROWS)
    every_postgres.execute("ALTER TABLE rows ADD PRIMARY KEY (id)")
    SourceSuite(
        lambda ctx: PostgresSource(PostgresConfig(url=every_postgres.url, table="rows"), ctx), folder=tmp_path, extract=extract
    ).assert_conforms()
