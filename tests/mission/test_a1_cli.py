"""A1: a newcomer's verbs: init and run, completion, doctor, schema, plan pictures; codes of exits; one object with `--json`."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, flow, generate, json_rows, saved, step, told

EXAMPLES = sorted(
    p for p in (Path(__file__).parents[2] / "examples").rglob("*.yaml") if "plugins" not in p.parts and not p.name.endswith(".test.yaml")
)


def test_init_and_run(tmp_path: Path) -> None:
    made = told(tmp_path, "init")["files"]
    assert "dataflare.yaml" in made
    assert told(tmp_path, "validate")["valid"] is True
    run = told(tmp_path, "run")
    assert run["status"] == "done"
    assert run["rows"]["written"] > 0
    before = (tmp_path / "dataflare.yaml").read_text()
    assert told(tmp_path, "init", code=4)["error"]["code"] == "init.exists"
    assert (tmp_path / "dataflare.yaml").read_text() == before


def test_init_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    told(tmp_path, "init")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert told(tmp_path, "init", "no-such-template", code=2)["error"]["code"] == "usage.unknown-template"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    assert "dataflare" in cli(tmp_path, "completion", shell).stdout
    assert told(tmp_path, "completion", shell)["shell"] == shell


def test_the_schema_takes_the_examples_and_refuses_a_wrong_key(tmp_path: Path) -> None:
    import jsonschema

    from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

    schema = json.loads(cli(tmp_path, "schema").stdout)
    validator = jsonschema.Draft202012Validator(schema)
    for path in EXAMPLES:
        document = load_yaml(path.read_text()).value
        assert not list(validator.iter_errors(document)), path
        first = next(iter(document["sources"].values()))
        first["with"]["no-such-key"] = 1
        assert list(validator.iter_errors(document)), path


def test_pictures_of_the_graph(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": generate()}, step("f", "filter", where="i > 1")))
    mermaid = cli(tmp_path, "plan", "w.json", "--format", "mermaid").stdout
    assert mermaid.startswith(("flowchart", "graph"))
    assert all(node in mermaid for node in ("s", "f", "out"))
    root = ET.fromstring(cli(tmp_path, "plan", "w.json", "--format", "svg").stdout)
    assert root.tag.endswith("svg")


def test_rows_and_object_keep_apart(tmp_path: Path) -> None:
    saved(
        tmp_path,
        flow(
            {"s": {"use": "stdin", "with": {"format": "csv"}}},
            step("m", "map", set={"b": "a + 1"}),
            out={"o": {"use": "stdout", "with": {"format": "jsonl"}}},
        ),
    )
    done = cli(tmp_path, "run", "w.json", "--json", stdin="a\n1\n2\n")
    assert done.stdout == '{"a":1,"b":2}\n{"a":2,"b":3}\n'
    assert json.loads(done.stderr)["rows"]["written"] == 2
    failed = cli(tmp_path, "run", "w.json", "--json", stdin="a\nx\n")
    assert (failed.returncode, failed.stdout) == (1 if json.loads(failed.stderr)["error"]["code"].startswith("data.") else 3, "")


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (flow({"s": generate()}), 0),
        (flow({"s": generate(3, i="i")}, step("m", "map", set={"x": "error('no')"})), 1),
        (flow({"s": {"use": "nothing"}}), 3),
        (flow({"s": {"use": "csv", "with": {"path": "absent.csv"}}}), 4),
        (flow({"s": {"use": "csv", "with": {"path": "${env:NOT_SET_AT_ALL}"}}}), 3),
        (flow({"s": {"use": "csv", "with": {"path": "${secret:NOT_SET_AT_ALL}"}}}), 3),
    ],
)
def test_exit_codes_of_a_run(document: dict, code: int, tmp_path: Path) -> None:
    saved(tmp_path, document)
    run = told(tmp_path, "run", "w.json", code=code)
    assert (run["status"] == "done", run["error"] is None) == (code == 0, code == 0)
    if code:
        assert run["error"]["fix"]
        assert all(p["code"] and p["message"] and p["fix"] for p in run["problems"])
    assert set(run) >= {"run_id", "workflow", "lane", "resumed", "rows", "nodes", "guarantee", "lineage", "peak_memory_bytes"}
    person = cli(tmp_path, "run", "w.json")
    assert "Traceback" not in person.stdout + person.stderr


@pytest.mark.parametrize("args", [["--nothing"], ["nothing"], ["run", "--lane", "fast"], ["run", "-p", "x"], ["preview"]])
def test_a_wrong_command_line_is_2(args: list[str], tmp_path: Path) -> None:
    assert told(tmp_path, *args, code=2)["error"]["code"].startswith("usage.")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id\n1\n")
    document = flow({"s": {"use": "csv", "with": {"path": "a.csv"}}})
    del document["name"]
    (tmp_path / "in" / "my.flow.json").write_text(json.dumps(document))
    run = told(tmp_path, "run", "in/my.flow.json")
    assert run["workflow"] == "my"
    assert json_rows(tmp_path / "in" / "o.jsonl") == [{"id": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
