"""C3, P8, K2, K3: every component is listed with where it comes from, and every one of them is held to its kind's suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, flow, generate, saved, step, told

SUITES = Path(__file__).parents[1] / "sdk" / "test_builtins_conform.py"
ALONE = {"stdin", "stdout", "python", "blackhole", "mqtt", "test-rows"}
"""Nothing to read again, nothing to read back, what it does is the person's own, or a test is what it is for."""
OWN = {"postgres", "mysql", "file-tail", "webhook", "http", "kafka", "nats", "redis"}
"""Held to their suites in tests of their own, against a server, or files that grow."""
PLUGINS = Path(__file__).parents[1] / "plugins"


def listed() -> list[dict[str, Any]]:
    return json.loads(cli(Path.cwd(), "plugin", "list", "--json").stdout)["plugins"]


def test_every_plugin_is_listed_with_its_origin() -> None:
    plugins = listed()
    assert all(p["version"] and p["origin"].startswith("dataflare ") and p["isolation"] == "inprocess" for p in plugins)
    assert all(isinstance(p["capabilities"], dict) for p in plugins)
    names = {(c["kind"], c["name"]) for p in plugins for c in p["provides"]}
    for name in ("csv", "jsonl", "parquet", "arrow", "sqlite", "duckdb", "stdin", "generate"):
        assert ("source", name) in names
    for name in ("csv", "jsonl", "parquet", "arrow", "sqlite", "duckdb", "stdout", "blackhole"):
        assert ("destination", name) in names
    for name in [
        "map",
        "filter",
        "sql",
        "aggregate",
        "join",
        "enrich",
        "route",
        "dedupe",
        "flatten",
        "unnest",
        "parse",
        "mask",
        "expect",
        "python",
    ]:
        assert ("processor", name) in names


def test_every_connector_and_step_is_held_to_its_suite() -> None:
    text = SUITES.read_text()
    for plugin in listed():
        for component in plugin["provides"]:
            kind, name = component["kind"], component["name"]
            if name in OWN and kind in ("source", "destination"):
                tests = (PLUGINS / name.replace("-", "_")).glob("test_*.py")
                assert any(f"{kind.capitalize()}Suite(" in test.read_text() for test in tests), f"no suite holds the {kind} '{name}'"
            elif kind in ("source", "destination", "processor") and name not in ALONE:
                assert f'"{component["name"]}"' in text, f"no suite holds the {component['kind']} '{component['name']}'"


@pytest.mark.parametrize(
    ("kind", "use", "near"), [("source", "csvv", "csv"), ("processor", "fliter", "filter"), ("destination", "parket", "parquet")]
)
def test_an_unknown_name_gets_the_nearest(kind: str, use: str, near: str, tmp_path: Path) -> None:
    document = flow({"s": generate()}, step("f", "filter", where="true"), out={"out": {"use": "csv", "with": {"path": "o.csv"}}})
    if kind == "source":
        document["sources"]["s"]["use"] = use
    elif kind == "processor":
        document["processors"][0]["use"] = use
    else:
        document["destinations"]["out"]["use"] = use
    saved(tmp_path, document)
    problem = told(tmp_path, "validate", "w.json", code=3)["problems"][0]
    assert (problem["code"], problem["fix"]) == ("plugin.unknown", f"did you mean '{near}'?")
    assert problem["line"] == 1
