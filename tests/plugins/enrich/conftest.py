"""The step under test, with a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.plugins.enrich.enriching import Clock, Enriching

from dataflare.lifecycle import Runtime


@pytest.fixture(scope="session")
def enrich_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A runtime that builds components."""
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


@pytest.fixture
def enriching(enrich_runtime: Runtime, tmp_path: Path) -> Iterator[Enriching]:
    """A step over nothing yet."""
    made = Enriching(enrich_runtime, tmp_path, Clock())
    yield made
    made.close()
