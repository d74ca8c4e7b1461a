"""Fixtures over Mosquitto; `tests/conftest.py` makes them known everywhere.

`mosquitto` is a broker for one test: what one test leaves in it (sessions, retained messages) is nobody else's. Where it is not
installed a test is skipped, and fails when CI is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.servers.fixtures import for_one_test
from tests.servers.mosquitto import MosquittoServer, installed


@pytest.fixture
def own_mosquitto() -> Iterator[Callable[..., MosquittoServer]]:
    """Start brokers for one test; the function takes the arguments of `MosquittoServer`."""
    yield from for_one_test(MosquittoServer, installed(), "Mosquitto (apt-get install mosquitto mosquitto-clients)")


@pytest.fixture
def mosquitto(own_mosquitto: Callable[..., MosquittoServer]) -> MosquittoServer:
    """A broker that lets everybody in."""
    return own_mosquitto()
