"""Captures for tests: closed with the test."""

from collections.abc import Callable, Iterator

import pytest
from tests.plugins.postgres.capturing import Engine


@pytest.fixture
def made(tmp_path) -> Iterator[Callable[..., Engine]]:
    """Make engines over captures; the function takes the arguments of `Engine` without the folder."""
    engines: list[Engine] = []

    def make(database, *args, **options) -> Engine:
        engines.append(Engine(database, tmp_path, *args, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop()
