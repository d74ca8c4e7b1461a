"""Every refusal has its code, its place, its mend, and no password in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.mysql.driver import CDC, Reading, source
from tests.servers.mariadb import PASSWORD, MariadbDatabase, MariadbServer
from tests.servers.processes import free_port

from dataflare_sdk import DataflareError, ExtractSpec

INCREMENTAL = ExtractSpec(mode="incremental", cursor="n")


def caught(act: Callable[[], Any], code: str, exit_code: int, path: str | None = None) -> DataflareError:
    with pytest.raises(DataflareError) as found:
        act()
    problem = found.value.problems[0]
    assert (problem.code, found.value.exit_code) == (code, exit_code), str(found.value)
    assert problem.fix
    assert PASSWORD not in str(found.value)
    if path is not None:
        assert problem.path == path
    return found.value


@pytest.mark.parametrize(
    "url",
    ["postgres://u:correct-horse@h/d", "mysql://u:correct-horse@h", "mysql://u:correct-horse@h:x/d", "mysql://u:correct-horse@h/d?tls=1"],
)
def test_urls(url: str, tmp_path: Path) -> None:
    caught(lambda: source(tmp_path, url=url, table="t"), "mysql.bad-url", 3, "url")


def test_what_to_read(tmp_path: Path) -> None:
    url = "mysql://u@h/d"
    caught(lambda: source(tmp_path, url=url), "mysql.what-to-read", 3)
    caught(lambda: source(tmp_path, url=url, table="t", query="SELECT 1"), "mysql.what-to-read", 3)
    caught(lambda: source(tmp_path, url=url, query="DELETE FROM t"), "config.not-one-select", 3, "query")


def test_offline_no_socket_is_opened(tmp_path: Path) -> None:
    made = source(tmp_path, url=f"mysql://u@127.0.0.1:{free_port()}/d", table="t", columns={"a": "BIGINT"})
    made.ctx.offline = True
    assert made.discover(ExtractSpec(), None)[0].schema.names == ["a"]


def test_the_world(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute("CREATE TABLE orders (id INT PRIMARY KEY, n INT, e ENUM('a'))", "INSERT INTO orders VALUES (1, NULL, 'a')")
    server, discover = mariadb.server, lambda **c: lambda: source(tmp_path, **c).discover(ExtractSpec(), None)
    error = caught(discover(url=f"mysql://app:{PASSWORD}@127.0.0.1:{free_port()}/d", table="t"), "mysql.unreachable", 4, "url")
    assert type(error).__name__ == "RetriableError"
    caught(discover(url=server.url(mariadb.name, password="wrong"), table="orders"), "mysql.denied", 4, "url")
    caught(discover(url=server.url("nowhere"), table="orders"), "mysql.no-database", 4, "url")
    error = caught(discover(url=mariadb.url, table="ordres"), "mysql.no-table", 4, "table")
    assert "did you mean 'orders'?" in str(error)
    caught(discover(url=mariadb.url, tables=["orders", "nope"]), "mysql.no-table", 4, "tables[1]")
    caught(discover(url=mariadb.url, query="SELECT nope FROM orders"), "mysql.bad-query", 3, "query")
    caught(discover(url=mariadb.url, table="orders", columns={"idd": "INTEGER"}), "mysql.no-column", 3, "columns.idd")
    made = source(tmp_path, url=mariadb.url, table="orders")
    caught(lambda: made.discover(ExtractSpec(mode="incremental", cursor="nope"), None), "source.no-cursor", 3)
    caught(lambda: read(made, INCREMENTAL), "mysql.null-cursor", 1)
    caught(lambda: read(made, ExtractSpec(mode="incremental", cursor="e")), "mysql.bad-cursor", 3)
    caught(lambda: read(made, ExtractSpec(mode="incremental", cursor="n", overlap=5.0)), "mysql.bad-cursor", 3)
    chunks = ExtractSpec(key=("e",), options={"consistency": "chunks"})
    caught(lambda: read(made, chunks), "mysql.no-chunk-key", 3)
    made.close()
    skipping = source(tmp_path, url=mariadb.url, table="orders", on_null_cursor="skip")
    assert type(read(skipping, INCREMENTAL)).__name__ == "Pause"
    skipping.close()


def read(made: Any, extract: ExtractSpec) -> Any:
    stream = made.discover(extract, None)[0]
    return made.open(made.partitions(stream, extract)[0], extract, None).read(10, 1 << 20, 0.0)


def test_rights_of_a_reader_of_the_log(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute("CREATE TABLE orders (id INT PRIMARY KEY)")
    mariadb.server.execute("CREATE OR REPLACE USER meek@'%' IDENTIFIED BY 'correct-horse'")
    mariadb.server.execute(f"GRANT SELECT ON {mariadb.name}.* TO meek@'%'")
    reading = Reading(tmp_path, url=mariadb.server.url(mariadb.name, user="meek"), table="orders")
    made, reader = reading.open(CDC)
    error = caught(lambda: reader.read(10, 1 << 20, 0.0), "mysql.permission", 4, "url")
    assert "GRANT REPLICATION SLAVE" in str(error)
    reader.close()
    made.close()


@pytest.mark.parametrize(
    ("option", "code"), [({"binlog-format": "STATEMENT"}, "mysql.binlog-format"), ({"skip-log-bin": "1"}, "mysql.no-binlog")]
)
def test_logs_that_cannot_be_read(own_mariadb: Callable[..., MariadbServer], option: dict[str, str], code: str, tmp_path: Path) -> None:
    server = own_mariadb(option)
    name = server.create_database()
    server.execute("CREATE TABLE orders (id INT PRIMARY KEY)", name)
    reading = Reading(tmp_path, url=server.url(name), table="orders")
    made, reader = reading.open(CDC)
    caught(lambda: reader.read(10, 1 << 20, 0.0), code, 4, "url")
    reader.close()
    made.close()


def test_a_query_has_no_changes(tmp_path: Path) -> None:
    made = source(tmp_path, url="mysql://u@h/d", query="SELECT 1")
    caught(lambda: made.discover(CDC, None), "mysql.cdc-query", 3, "query")
