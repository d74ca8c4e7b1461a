"""Every check of the conformance suites has a broken twin that it, and no other check, refuses."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dataflare_sdk.testing import (
    DestinationSuite,
    FakeContext,
    LetterStoreSuite,
    LookupSuite,
    ProcessorSuite,
    SourceSuite,
    StateStoreSuite,
    Suite,
)


def load(name: str) -> ModuleType:
    """Import a file of twins by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"broken_{name}", Path(__file__).parent / "broken" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources, destinations, processors, lookups, states, letters = map(
    load, ("sources", "destinations", "processors", "lookups", "states", "letters")
)
SUITES: dict[str, tuple[type[Suite], ModuleType]] = {
    "source": (SourceSuite, sources),
    "destination": (DestinationSuite, destinations),
    "processor": (ProcessorSuite, processors),
    "lookup": (LookupSuite, lookups),
    "state": (StateStoreSuite, states),
    "letters": (LetterStoreSuite, letters),
}


def suite_of(kind: str, made: type[Any], folder: Path) -> Suite:
    if kind == "source":
        return SourceSuite(lambda ctx: made(made.Config(), ctx), folder=folder, extract=made.extract)
    if kind == "destination":
        return DestinationSuite(lambda ctx: made(made.Config(), ctx), read=destinations.read, folder=folder)
    if kind == "processor":
        return ProcessorSuite(lambda ctx: made(made.Config(), ctx), inputs=processors.inputs(), folder=folder, ordered=made.ordered)
    if kind == "lookup":
        return LookupSuite(lambda ctx: made(made.Config(), ctx), rows=lookups.ROWS, keys=["id"], folder=folder)
    suite = StateStoreSuite if kind == "state" else LetterStoreSuite
    return suite(lambda place: made(made.Config(), FakeContext(place)), folder=folder)


def cases(which: str) -> list[Any]:
    return list(_cases(which))


def _cases(which: str) -> Iterator[Any]:
    for kind, (_, module) in SUITES.items():
        for made in module.twins() if which == "twins" else module.REFERENCES:
            yield pytest.param(kind, made, id=f"{kind}-{made.fails or 'all'}-{made.__name__}")


@pytest.mark.parametrize(("kind", "made"), cases("references"))
def test_the_reference_conforms(kind: str, made: type[Any], tmp_path: Path) -> None:
    suite_of(kind, made, tmp_path).assert_conforms()


@pytest.mark.parametrize(("kind", "made"), cases("twins"))
def test_a_twin_fails_its_check_and_no_other(kind: str, made: type[Any], tmp_path: Path) -> None:
    failures = list(suite_of(kind, made, tmp_path).failures())
    assert [f.check for f in failures] == [made.fails], failures


@pytest.mark.parametrize("kind", SUITES)
def test_every_check_has_a_twin(kind: str) -> None:
    suite, module = SUITES[kind]
    assert {made.fails for made in module.twins()} == {c.name for c in suite.checks()}


def test_a_failed_suite_names_the_check_its_demand_and_the_reason(tmp_path: Path) -> None:
    suite = suite_of("source", sources.PausesWhenFull, tmp_path)
    with pytest.raises(AssertionError, match=r"ends-as-its-mode-says: A full extraction ends(.|\n)*ended with Pause"):
        suite.assert_conforms()
