"""C1, C2: the source in each mode and the destination pass the suites of their kinds, against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.servers.mariadb import MariadbDatabase, MariadbServer

from dataflare_plugins.mysql.destination import MysqlDestination
from dataflare_plugins.mysql.source import MysqlSource
from dataflare_sdk import ExtractSpec
from dataflare_sdk.testing import DestinationSuite, SourceSuite

ROWS = (
    "CREATE TABLE r AS SELECT seq AS id, IF(seq % 4 = 0, NULL, CONCAT('nämé ', seq)) AS name, seq * 1.5 AS amount, "
    "CAST('2024-01-01' AS DATETIME) + INTERVAL seq DIV 3 HOUR AS at FROM seq_0_to_24"
)
SOURCES: dict[str, tuple[dict[str, Any], ExtractSpec]] = {
    "instant": ({"table": "r"}, ExtractSpec()),
    "chunks": ({"table": "r"}, ExtractSpec(options={"consistency": "chunks"})),
    "chunks-of-query": ({"query": "SELECT id, name FROM r WHERE id < 20"}, ExtractSpec(key=("id",), options={"consistency": "chunks"})),
    "incremental": ({"table": "r"}, ExtractSpec(mode="incremental", cursor="id")),
    "incremental-ties": ({"table": "r"}, ExtractSpec(mode="incremental", cursor="at", key=("id",))),
    "incremental-overlap": ({"table": "r"}, ExtractSpec(mode="incremental", cursor="at", overlap=7200.0)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str, mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ROWS, "ALTER TABLE r ADD PRIMARY KEY (id)")
    config, extract = SOURCES[name]
    parsed = MysqlSource.configure({"url": mariadb.url, **config})
    SourceSuite(lambda ctx: MysqlSource(parsed, ctx), folder=tmp_path, extract=extract).assert_conforms()


def test_destination(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    server, made = mariadb.server, list[str]()

    def make(ctx: Any) -> MysqlDestination:
        name = database(server, ctx.base_dir, made)
        return MysqlDestination(MysqlDestination.configure({"url": server.url(name), "table": "t"}), ctx)

    def read(folder: Path) -> list[tuple[Any, ...]] | None:
        name = database(server, folder, made)
        there = server.execute(f"SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{name}' AND TABLE_NAME = 't'")
        return server.execute(f"SELECT id, name FROM {name}.t ORDER BY 1, 2") if there else None

    try:
        DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()
    finally:
        for name in made:
            server.execute(f"DROP DATABASE {name}")


def database(server: MariadbServer, folder: Path, made: list[str]) -> str:
    """Return the database that stands for a folder of the suite: checkpoint rows are of a database."""
    name = f"suite_{folder.name}"
    if name not in made:
        server.execute(f"CREATE DATABASE {name}")
        made.append(name)
    return name
