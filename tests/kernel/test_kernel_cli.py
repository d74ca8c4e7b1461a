import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = """
import click
from dataflare.errors import INPUT_MISSING, CONFIG_INVALID, DataflareError
from dataflare_sdk.commands import verb

@click.command("greet")
@click.argument("who")
@verb
def greet(call, who):
    '''Greet somebody.'''
    if who == "missing":
        raise INPUT_MISSING.error("no such person", file="a.yaml", line=3, column=7, path="x.y", fix="look again")
    if who == "both":
        raise DataflareError(INPUT_MISSING.problem("a"), CONFIG_INVALID.problem("b"))
    if who == "bug":
        raise ZeroDivisionError("by zero")
    if who == "stop":
        raise KeyboardInterrupt
    if who == "usage":
        raise click.UsageError("not like that")
    call.say("hello " + who)
    call.emit({"dataflare": 1, "command": call.command, "who": who})
    return 5 if who == "five" else None

@click.group("state")
def state():
    pass

state.add_command(greet, "show")
"""
LINES = """
provides:
  - {kind: command, name: greet, entry: 'greeter:greet', summary: Greet somebody kindly}
  - {kind: command, name: state, entry: 'greeter:state', summary: Look at state}
  - {kind: command, name: plugin-inspect, entry: 'greeter:greet', summary: Look at a plugin}
"""
HEAVY = "pluggy yaml jsonschema loguru pyarrow duckdb rich dataclasses greeter dataflare_sdk dataflare_plugins"

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(install: Callable[..., Path], tmp_path: Path) -> Call:
    install("greeter", COMMAND, LINES)
    (tmp_path / "config" / "dataflare" / "config.yaml").write_text(
        "plugins: {prefer: {command/plugin-inspect: greeter, command/state: greeter}}"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    work = tmp_path / "work"
    work.mkdir()

    def made(*args: str, code: str = "from dataflare.cli import main; main()") -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=work, env=env, check=False)

    return made


@pytest.mark.parametrize("args", [["--help"], ["plugin", "list"], ["plugin", "list", "--json"]])
def test_the_first_verbs_import_nothing_heavy(call: Call, tmp_path: Path, args: list[str]) -> None:
    # A policy is YAML and has to be read; a lock is not.
    (tmp_path / "config" / "dataflare" / "policy.yaml").unlink()
    (tmp_path / "work" / "dataflare.lock").write_text('{"plugins": {"greeter": {"version": "1.0.0", "capabilities": {}}}}')
    code = (
        "import sys\nfrom dataflare.cli import main\ntry: main()\n"
        f"except SystemExit: print('LOADED', [m for m in {HEAVY.split()!r} if m in sys.modules])"
    )
    for _ in range(3):  # the first fills the index; so does the next, if somebody installs something meanwhile
        done = call(*args, code=code)
        if "'yaml'" not in done.stdout:
            break
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stdout + done.stderr


def test_help_lists_verbs_from_manifests(call: Call) -> None:
    done = call("--help")
    assert done.returncode == 0
    assert "greet Greet somebody kindly" in " ".join(done.stdout.split())
    assert call("greet", "--help").stdout.startswith("Usage: dataflare greet")
    assert call("--version").stdout.strip()


def test_plugin_list(call: Call) -> None:
    listed = {p["name"]: p for p in json.loads(call("plugin", "list", "--json").stdout)["plugins"]}
    assert listed["greeter"] == {
        "name": "greeter",
        "version": "1.0.0",
        "provides": [{"kind": "command", "name": n} for n in ("greet", "state", "plugin-inspect")],
        "isolation": "inprocess",
        "origin": "greeter 1.0.0",
        "capabilities": {},
        "granted": True,
        "standing": "asks for nothing",
        "install": "trusted install",
    }
    assert "greeter 1.0.0  (greeter 1.0.0)  inprocess, asks for nothing, trusted install" in call("plugin", "list").stdout
    built_in = listed["dataflare-files"]
    assert (built_in["isolation"], built_in["granted"], built_in["install"]) == ("inprocess", True, "built-in")
    assert call("plugin", "inspect", "ann").stdout == "hello ann\n"
    helped = call("plugin", "--help").stdout
    assert re.search(r"\binspect +\S", helped)
    assert "Look at a plugin" not in helped, "a stranger does not describe what is built in"
    assert "plugin-inspect" not in call("--help").stdout


def test_a_verb(call: Call) -> None:
    done = call("greet", "ann")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello ann\n", "")
    assert call("greet", "ann", "-q").stdout == ""
    assert call("greet", "five").returncode == 5
    done = call("state", "show", "ann", "--json")
    assert json.loads(done.stdout) == {"dataflare": 1, "command": "state show", "who": "ann"}
    assert done.stderr == "hello ann\n"


def test_an_error_has_place_code_and_mend(call: Call) -> None:
    done = call("greet", "missing")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "a.yaml:3:7: no such person [world.missing-input]\n  fix: look again\n"
    done = call("greet", "missing", "--json")
    document = json.loads(done.stdout)
    assert done.stderr == ""
    assert document["error"] == {
        "code": "world.missing-input", "message": "no such person", "where": "a.yaml:3:7", "fix": "look again",
    }  # fmt: skip
    assert document["problems"][0]["path"] == "x.y"
    assert call("greet", "both").returncode == 3


def test_a_bug_shows_its_traceback_with_v_only(call: Call) -> None:
    done = call("greet", "bug")
    assert done.returncode == 1
    assert "internal.bug" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in call("greet", "bug", "-v").stderr
    assert json.loads(call("greet", "bug", "--json").stdout)["error"]["code"] == "internal.bug"


def test_an_interrupt_is_130(call: Call) -> None:
    assert call("greet", "stop").returncode == 130


@pytest.mark.parametrize(
    "args",
    [["greet"], ["greet", "a", "b"], ["greet", "a", "--nope"], ["greet", "usage"], ["gret"], ["plugin", "x"], ["--x"]],
)
def test_a_wrong_command_line_is_2_and_one_object(call: Call, args: list[str]) -> None:
    done = call(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    done = call(*args, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage.bad-option"


def test_the_nearest_verb_is_named(call: Call) -> None:
    assert "Did you mean 'greet'?" in call("gret").stderr


def test_a_broken_policy_is_reported_before_a_verb_runs(call: Call, tmp_path: Path) -> None:
    (tmp_path / "work" / "policy.yaml").write_text("- a")
    done = call("greet", "ann", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "policy.invalid"


def test_import_dataflare_is_light() -> None:
    code = "import dataflare, sys; print([m for m in ('dataclasses', 'click', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
