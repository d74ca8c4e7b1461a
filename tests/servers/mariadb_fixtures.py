"""Fixtures over MariaDB; `tests/conftest.py` makes them known everywhere.

`mariadb` is a fresh database of a server with full row images; `mariadb_minimal` of one that logs as little as it can
(`binlog_row_image=MINIMAL`, no metadata), as servers out there do by default. Where MariaDB is not installed a test is
skipped, and fails when CI is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.servers.fixtures import for_one_test, missing
from tests.servers.mariadb import MariadbDatabase, MariadbServer, installed

VARIANTS: dict[str, dict[str, str]] = {
    "full": {},
    "minimal": {"binlog-row-image": "MINIMAL", "binlog-row-metadata": "NO_LOG"},
}
_SERVERS: dict[str, MariadbServer] = {}


def _running(variant: str) -> MariadbServer:
    if not installed():
        missing("MariaDB (apt-get install mariadb-server)")
    if variant not in _SERVERS:
        _SERVERS[variant] = MariadbServer(VARIANTS[variant]).start()
    return _SERVERS[variant]


@pytest.fixture(scope="session")
def mariadb_servers() -> Iterator[Callable[[str], MariadbServer]]:
    """Start servers by the name of their variant when they are first asked for, and end them with the session."""
    yield _running
    while _SERVERS:
        _SERVERS.popitem()[1].remove()


def _fresh(server: MariadbServer) -> Iterator[MariadbDatabase]:
    database = MariadbDatabase(server, server.create_database())
    yield database
    database.drop()


@pytest.fixture
def mariadb(mariadb_servers: Callable[[str], MariadbServer]) -> Iterator[MariadbDatabase]:
    """A fresh database; the server logs whole rows with metadata."""
    yield from _fresh(mariadb_servers("full"))


@pytest.fixture
def mariadb_minimal(mariadb_servers: Callable[[str], MariadbServer]) -> Iterator[MariadbDatabase]:
    """A fresh database; the server logs changed columns only, without metadata."""
    yield from _fresh(mariadb_servers("minimal"))


@pytest.fixture
def own_mariadb() -> Iterator[Callable[..., MariadbServer]]:
    """Start servers for one test alone; ended with the test. The function takes the arguments of `MariadbServer`."""
    yield from for_one_test(MariadbServer, installed(), "MariaDB (apt-get install mariadb-server)")
