"""Source and destination pass the suites of their kinds, against a real server; the oracle is redis-cli."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.messaging import COLUMNS, message
from tests.servers.redis import RedisServer

from dataflare_plugins.redis.destination import RedisDestination
from dataflare_plugins.redis.source import RedisSource
from dataflare_sdk import ExtractSpec
from dataflare_sdk.testing import DestinationSuite, SourceSuite


def test_source(redis_server: RedisServer, tmp_path: Path) -> None:
    for i in range(25):
        redis_server.cli("XADD", "s", "*", "data", message(i).decode())
    parsed = RedisSource.configure({"url": redis_server.url, "streams": ["s"], "columns": COLUMNS})

    class Once(RedisSource):
        """Stops where the stream ends: the suite waits for an end."""

        def open(self, partition: Any, extract: Any, offset: Any, until: Any = None) -> Any:
            return super().open(partition, extract, offset, until or self.position(partition, extract))

    SourceSuite(lambda ctx: Once(parsed, ctx), folder=tmp_path, extract=ExtractSpec(mode="incremental")).assert_conforms()


@pytest.mark.parametrize("fields", [False, True])
def test_destination(fields: bool, redis_server: RedisServer, tmp_path: Path) -> None:
    databases: dict[str, int] = {}  # checkpoints are of a database

    def number(folder: Path) -> int:
        return databases.setdefault(folder.name, len(databases))

    def make(ctx: Any) -> RedisDestination:
        url = redis_server.url[:-1] + str(number(ctx.base_dir))
        return RedisDestination(RedisDestination.configure({"url": url, "stream": "s", "fields": fields}), ctx)

    def read(folder: Path) -> list[tuple[Any, ...]] | None:
        entries = json.loads(redis_server.cli("-n", str(number(folder)), "--json", "XRANGE", "s", "-", "+"))
        rows = [dict(zip(v[::2], v[1::2], strict=True)) if fields else json.loads(v[1]) for _, v in entries]
        return sorted((int(r["id"]), r.get("name")) for r in rows)

    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()
