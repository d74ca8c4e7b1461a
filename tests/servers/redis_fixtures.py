"""Fixtures over Redis; `tests/conftest.py` makes them known everywhere.

`redis_server` is emptied for every test. Where Redis is not installed a test is skipped, and fails when CI is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.servers.fixtures import for_one_test, missing
from tests.servers.redis import RedisServer, installed

_SERVERS: list[RedisServer] = []


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[Callable[[], RedisServer]]:
    """Start a server when it is first asked for, and end it with the session."""

    def running() -> RedisServer:
        if not installed():
            missing("Redis (apt-get install redis-server)")
        if not _SERVERS:
            _SERVERS.append(RedisServer(["--appendfsync", "no", "--databases", "64"]).start())
        return _SERVERS[0]

    yield running
    while _SERVERS:
        _SERVERS.pop().remove()


@pytest.fixture
def redis_server(shared_redis: Callable[[], RedisServer]) -> RedisServer:
    """An empty server."""
    server = shared_redis()
    server.cli("FLUSHALL")
    return server


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Start servers for one test alone, to be killed or with other settings; the function takes the arguments of `RedisServer`."""
    yield from for_one_test(RedisServer, installed(), "Redis (apt-get install redis-server)")
