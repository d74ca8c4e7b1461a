"""Fixtures over Mosquitto; `tests/conftest.py` makes them known everywhere.

`mosquitto` is a broker for one test: what one test leaves in it (sessions, retained messages) is nobody else's. Where it is not
installed a test is skipped, and fails when CI is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from tests.servers.fixtures import missing
from tests.servers.mosquitto import PLAIN, MosquittoServer, installed


@pytest.fixture
def own_mosquitto() -> Iterator[Callable[..., MosquittoServer]]:
    """Start brokers for one test; the function takes the arguments of `MosquittoServer`."""
    if not installed():
        missing("Mosquitto (apt-get install mosquitto mosquitto-clients)")
    made: list[MosquittoServer] = []

    def start(options: Sequence[str] = PLAIN) -> MosquittoServer:
        made.append(MosquittoServer(options))
        return made[-1].start()

    yield start
    for server in made:
        server.remove()


@pytest.fixture
def mosquitto(own_mosquitto: Callable[..., MosquittoServer]) -> MosquittoServer:
    """A broker that lets everybody in."""
    return own_mosquitto()
