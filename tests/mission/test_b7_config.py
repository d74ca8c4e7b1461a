"""B7: which layer a setting comes from; `fmt` and `migrate` say the same again and do so once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, told

FILE = """# about this file
dataflare: 1
name: w
runtime: {threads: 3, memory: 300MiB}   # its limits
sources:
  in: {use: generate, with: {rows: 3, columns: {i: i, on: "'no'"}}}
destinations:
  out: {use: csv, with: {path: "${env:X:-o.csv}"}}
profiles:
  small: {runtime: {threads: 1, lane: streaming}}
"""
EXAMPLES = sorted(p for p in (Path(__file__).parents[2] / "examples").rglob("*.yaml") if not p.name.endswith(".test.yaml"))
UGLY = """
destinations:
   out: {use: csv, with: {path: o.csv}}   # the end
processors:
- {id: f, use: filter, with: {where: "i > 1"}}
sources:
      in:
          with: {rows: 3, columns: {i: i}}
          use: generate
name:    w
"""


def comments(text: str) -> list[str]:
    """Return the comments of a text; those of one line come in another order when the line is broken up."""
    return sorted(line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line and '"#' not in line)


def explained(folder: Path, *args: str, **env: str) -> dict[str, dict]:
    (folder / "w.yaml").write_text(FILE)
    return told(folder, "config", "explain", "w.yaml", *args, **env)["settings"]


def test_every_layer_stands_over_the_one_before(tmp_path: Path) -> None:
    found = explained(tmp_path)
    assert found["runtime.lane"] == {"value": "auto", "origin": "default", "overrides": []}
    assert (found["runtime.threads"]["value"], found["runtime.threads"]["origin"]) == (3, "w.yaml")
    found = explained(tmp_path, "--profile", "small")
    assert (found["runtime.threads"]["value"], found["runtime.threads"]["origin"]) == (1, "profile small")
    found = explained(tmp_path, "--profile", "small", DATAFLARE_RUNTIME_THREADS="5", DATAFLARE_RUNTIME_LANE="bulk")
    assert (found["runtime.threads"]["value"], found["runtime.threads"]["origin"]) == (5, "DATAFLARE_RUNTIME_THREADS")
    assert [o["origin"] for o in found["runtime.threads"]["overrides"]] == ["profile small", "w.yaml", "default"]
    assert told(tmp_path, "run", "w.yaml", "--lane", "streaming", DATAFLARE_RUNTIME_LANE="bulk")["lane"] == "streaming"
    assert told(tmp_path, "run", "w.yaml", DATAFLARE_RUNTIME_LANE="bulk")["lane"] == "bulk"
    assert told(tmp_path, "run", "w.yaml", "--profile", "small")["lane"] == "streaming"


@pytest.mark.parametrize("text", [FILE, UGLY, *[p.read_text() for p in EXAMPLES]], ids=["file", "ugly", *[p.stem for p in EXAMPLES]])
@pytest.mark.parametrize("verb", ["fmt", "migrate"])
def test_a_second_time_changes_nothing(verb: str, text: str, tmp_path: Path) -> None:
    from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

    path = tmp_path / "w.yaml"
    path.write_text(text)
    assert cli(tmp_path, verb, "w.yaml").returncode == 0
    once = path.read_text()
    assert load_yaml(once).value == {"dataflare": 1, **load_yaml(text).value} or load_yaml(once).value == load_yaml(text).value
    assert comments(once) == comments(text)
    assert once.count("#") == text.count("#"), "a comment got lost"
    assert cli(tmp_path, verb, "w.yaml").returncode == 0
    assert path.read_text() == once
    if verb == "fmt":
        assert cli(tmp_path, "fmt", "w.yaml", "--check").returncode == 0


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(FILE.replace("threads: 3", "thread: 3"))
    problem = told(tmp_path, "validate", "w.yaml", code=3)["problems"][0]
    assert (problem["code"], problem["line"], problem["column"], problem["fix"]) == (
        "workflow.unknown-key",
        4,
        11,
        "did you mean 'threads'?",
    )
