"""Fixtures over Kafka; `tests/conftest.py` makes them known everywhere.

A test that asks for `kafka` runs twice: with the mock inside librdkafka, which is no broker (see `tests/servers/kafka.py`), and with
a broker: the one that KAFKA_BOOTSTRAP names, else one that is started from what `tests/servers/kafka.sh` fetched. `kafka_broker` is a broker
only. Where there is none those are skipped; they fail when CI is set and Maven is here to fetch it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.servers.fixtures import missing


def _absent() -> None:
    if shutil.which("mvn") is not None and shutil.which("java") is not None:
        missing("a Kafka broker (tests/servers/kafka.sh)")
    pytest.skip("there is no Kafka broker: neither KAFKA_BOOTSTRAP, nor Java and Maven for tests/servers/kafka.sh")


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
