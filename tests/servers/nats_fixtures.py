"""Fixtures over NATS; `tests/conftest.py` makes them known everywhere.

A test takes streams of its own names from `nats_server`, or clears them: every stream is removed before it. Where NATS is not
installed a test is skipped, and fails when CI is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.servers.fixtures import for_one_test, missing
from tests.servers.nats import NatsServer, installed

_SERVERS: list[NatsServer] = []


@pytest.fixture(scope="session")
def shared_nats() -> Iterator[Callable[[], NatsServer]]:
    """Start a server when it is first asked for, and end it with the session."""

    def running() -> NatsServer:
        if not installed():
            missing("NATS (apt-get install nats-server)")
        if not _SERVERS:
            _SERVERS.append(NatsServer().start())
        return _SERVERS[0]

    yield running
    while _SERVERS:
        _SERVERS.pop().remove()


@pytest.fixture
def nats_server(shared_nats: Callable[[], NatsServer]) -> NatsServer:
    """A server without streams."""
    server = shared_nats()

    async def clear(_: Any, js: Any) -> None:
        for stream in await js.streams_info():
            await js.delete_stream(stream.config.name)

    server.run(clear)
    return server


@pytest.fixture
def own_nats() -> Iterator[Callable[..., NatsServer]]:
    """Start servers for one test alone, to be killed or with other settings; the function takes the arguments of `NatsServer`."""
    yield from for_one_test(NatsServer, installed(), "NATS (apt-get install nats-server)")
