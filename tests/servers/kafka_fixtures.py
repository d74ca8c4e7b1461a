"""Fixtures over Kafka; `tests/conftest.py` makes them known everywhere.

A test that asks for `kafka` runs twice: with the mock inside librdkafka, which is no broker (see `tests/servers/kafka.py`), and with
a broker: the one that KAFKA_BOOTSTRAP names, else one that is started from what `tests/servers/kafka.sh` fetched. `kafka_broker` is a broker
only. Where there is none those are skipped, also in CI: a broker comes neither from PyPI nor from Debian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


def _absent() -> None:
    pytest.skip("there is no Kafka broker: KAFKA_BOOTSTRAP names none, and `make kafka` has fetched none")


@pytest.fixture(scope="session")
def kafka_brokers() -> Iterator[Callable[[str], Any]]:
    """Start the mock and the broker when they are first asked for, and end them with the session."""
    from tests.servers.kafka import KafkaServer, MockKafka, given, installed

    made: dict[str, Any] = {}

    def running(kind: str) -> Any:
        if kind not in made:
            if kind == "broker" and given() is None and not installed():
                _absent()
            made[kind] = MockKafka() if kind == "mock" else given() or KafkaServer().start()
        return made[kind]

    yield running
    for server in made.values():
        if isinstance(server, KafkaServer):
            server.remove()


@pytest.fixture(params=["mock", "broker"])
def kafka(request: pytest.FixtureRequest, kafka_brokers: Callable[[str], Any]) -> Any:
    """Give the mock, then a broker."""
    return kafka_brokers(request.param)


@pytest.fixture
def kafka_mock(kafka_brokers: Callable[[str], Any]) -> Any:
    """Give the mock inside librdkafka."""
    return kafka_brokers("mock")


@pytest.fixture
def kafka_broker(kafka_brokers: Callable[[str], Any]) -> Any:
    """Give a broker."""
    return kafka_brokers("broker")


@pytest.fixture
def own_kafka() -> Iterator[Callable[..., Any]]:
    """Make brokers for one test alone, to kill them or with other settings; the test starts them, they end with it."""
    from tests.servers.kafka import KafkaServer, installed

    if not installed():
        _absent()
    made: list[Any] = []

    def make(settings: dict[str, str] | None = None) -> Any:
        made.append(KafkaServer(settings))
        return made[-1]

    yield make
    for server in made:
        server.remove()
