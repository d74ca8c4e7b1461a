"""Unmodified components of a stranger conform through their proxies, and give the rows they give in-process."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dataflare_sdk import RunInfo
from dataflare_sdk.testing import DestinationSuite, FakeContext, ProcessorSuite, SourceSuite


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "sdk" / "broken" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"isolated_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources, processors, destinations = map(load, ("sources", "processors", "destinations"))
HERE = {"fs": [{"path": ".", "mode": "rw"}]}


@pytest.mark.parametrize("extract", [sources.FULL, sources.INCREMENTAL], ids=lambda e: e.mode)
def test_a_source_conforms(build: Callable[..., Any], tmp_path: Path, extract: Any) -> None:
    SourceSuite(lambda ctx: build("sources:ListSource", ctx=ctx), folder=tmp_path / "work", extract=extract).assert_conforms()


@pytest.mark.parametrize("name", ["Doubled", "Summed"])
def test_a_processor_conforms(build: Callable[..., Any], tmp_path: Path, name: str) -> None:
    def make(ctx: Any) -> Any:
        return build(f"processors:{name}", ctx=ctx)

    ordered = getattr(processors, name).ordered
    ProcessorSuite(make, inputs=processors.inputs(), folder=tmp_path / "work", ordered=ordered).assert_conforms()


def test_a_destination_conforms(build: Callable[..., Any], tmp_path: Path) -> None:
    def make(ctx: Any) -> Any:
        return build("destinations:JsonDestination", grants=HERE, ctx=ctx)

    DestinationSuite(make, read=destinations.read, folder=tmp_path / "work").assert_conforms()


def broken(module: ModuleType, kind: str) -> list[Any]:
    chosen = {"source": ("ends-as-its-mode-says",), "processor": ("answers-once",)}
    return [pytest.param(kind, t, id=t.__name__) for t in module.twins() if t.fails in chosen[kind]]


@pytest.mark.parametrize(("kind", "twin"), [*broken(sources, "source"), *broken(processors, "processor")])
def test_a_broken_one_fails_the_same_check_as_in_process(build: Callable[..., Any], tmp_path: Path, kind: str, twin: Any) -> None:
    module = f"{kind}s"
    line = f'  - {{kind: {kind}, name: twin, entry: "stranger.{module}:{twin.__name__}"}}\n'

    def make(ctx: Any) -> Any:
        return build(f"{module}:{twin.__name__}", ctx=ctx, extra=line)

    folder = tmp_path / "work"
    suite: Any
    if kind == "source":
        suite = SourceSuite(make, folder=folder, extract=twin.extract)
    else:
        suite = ProcessorSuite(make, inputs=processors.inputs(), folder=folder, ordered=twin.ordered)
    assert [f.check for f in suite.failures()] == [twin.fails]


def test_a_plugin_sees_its_run(build: Callable[..., Any], tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work", "node-7")
    ctx.run = RunInfo("r", "w", "id", 5)
    made = build("connectors:Twice", ctx=ctx)
    assert made._cell.alive
    assert json.dumps(sorted(made.features)) == '["ahead", "one_to_one", "rowwise"]'
