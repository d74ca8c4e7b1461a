"""Receivers for tests, closed with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.plugins.http.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def start(**options: object) -> Receiver:
        made.append(Receiver(**options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.close()
