"""Grants by the verbs and by the question on first use; a terminal is asked once, nobody else ever."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.plugin_store.building import wheel
from tests.plugins.plugin_store.conftest import Machine

from dataflare.capabilities import effective
from dataflare.manifest import Manifest
from dataflare.policy import Policy, asks, more, named
from dataflare_plugins.plugin_store import lockfile

LINES = (
    "capabilities:\n  secrets: [{ref: T, why: 'log in'}, {ref: U}]\n"
    "  net: [{host: api.example, port: 443, why: 'reach it'}, {host: '*'}]\n  state: {max_bytes: 1MiB}\n"
)
VERB = (
    "import click, sys\nfrom dataflare_sdk.commands import verb\n@click.command('use')\n@verb\ndef use(call):\n"
    "    with call.runtime() as runtime: call.say(str(runtime.host.factory('lookup', 'acme').said))\n"
)


@pytest.fixture
def acme(machine: Machine) -> Machine:
    machine.json("plugin", "install", wheel(machine.wheels, lines=LINES))
    return machine


def granted(machine: Machine) -> dict[str, Any]:
    return {f"{c['kind']} {c['what']}": c["granted"] for c in machine.json("plugin", "inspect", "acme")["plugin"]["capabilities"]}


def test_grant_and_revoke_the_whole(acme: Machine) -> None:
    made = acme.json("plugin", "grant", "acme")["plugin"]
    assert (made["standing"], made["level"]["given"]) == ("granted", "process")
    assert granted(acme) == {"secrets T": True, "secrets U": True, "net api.example 443": True, "net *": False, "state 1MiB": True}
    entry = acme.lock()["acme"]
    assert entry["capabilities"] == entry["asked"]
    assert entry["level"] == "process"
    assert acme.json("plugin", "revoke", "acme")["plugin"]["standing"] == "not granted"
    assert not any(granted(acme).values())
    assert set(acme.lock()["acme"]) == {"artifact", "files", "manifest", "minimum", "origin", "publisher", "signer", "version", "when"}


def test_private_addresses_are_granted_by_name(acme: Machine) -> None:
    made = acme.json("plugin", "grant", "acme", "--private")["plugin"]
    assert {c["what"]: (c["granted"], c["private"]) for c in made["capabilities"] if c["kind"] == "net"} == {
        "api.example 443": (True, True), "*": (True, True),
    }  # fmt: skip
    acme.json("plugin", "grant", "acme", "--only", "net:api.example")
    nets = {e["host"]: e.get("private", False) for e in acme.lock()["acme"]["capabilities"]["net"]}
    assert nets == {"*": True, "api.example": False}


def test_parts_of_what_is_asked_for(acme: Machine) -> None:
    assert acme.json("plugin", "grant", "acme", "--only", "secrets:T", "--only", "state")["plugin"]["standing"] == "granted"
    assert [k for k, v in granted(acme).items() if v] == ["secrets T", "state 1MiB"]
    acme.json("plugin", "grant", "acme", "--only", "secrets:U")
    assert [k for k, v in granted(acme).items() if v] == ["secrets T", "secrets U", "state 1MiB"]
    assert acme.json("plugin", "revoke", "acme", "--only", "secrets:T", "--only", "state")["plugin"]["standing"] == "granted"
    assert [k for k, v in granted(acme).items() if v] == ["secrets U"]
    for wrong in ("secrets:X", "env", "state:x"):
        assert acme.run("plugin", "grant", "acme", "--only", wrong).returncode == 2


def test_what_cannot_be_granted(acme: Machine) -> None:
    assert acme.json("plugin", "grant", "acmee", status=3)["error"]["fix"] == "did you mean 'acme'?"
    assert acme.run("plugin", "grant", "dataflare-files").returncode == 2
    acme.policy(deny=["acme"])
    assert acme.json("plugin", "grant", "acme")["plugin"]["standing"] == "denied"
    acme.json("plugin", "install", wheel(acme.wheels, "plain"))
    assert acme.run("plugin", "grant", "plain", "--private").returncode == 2


def test_a_provider_may_refuse_the_decision(acme: Machine) -> None:
    (acme.settings / "config.yaml").write_text("security: {authorize: [nobody]}")
    for verb in ("grant", "revoke", "enable", "disable", "remove"):
        assert acme.json("plugin", verb, "acme", status=6)["error"]["code"] == "security.denied"
    assert acme.json("plugin", "install", acme.wheels / "acme-1.0.0-py3-none-any.whl", status=6)["error"]["code"] == "security.denied"
    assert "capabilities" not in acme.lock()["acme"]


def terminal(machine: Machine, *args: str, answer: str) -> str:
    """Call the command line on a terminal, answer its question, and return everything that was shown."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from dataflare.cli import main; main()", *args]
    with subprocess.Popen(command, cwd=machine.work, env=machine.env, stdin=follower, stdout=follower, stderr=follower) as running:
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                block = os.read(leader, 4096)
            except OSError:  # the other end was closed
                break
            shown += block
            if b"Grant it?" in block:
                os.write(leader, answer.encode())
        running.wait()
    os.close(leader)
    return shown.decode()


def test_first_use_on_a_terminal_asks_once(acme: Machine) -> None:
    acme.json("plugin", "install", wheel(acme.wheels, "user", files={"user/verb.py": VERB}, manifest=(
        "manifest: 1\nname: user\nversion: 1.0.0\napi: '1'\npublisher: p\nprovides:\n  - {kind: command, name: use, entry: 'user.verb:use'}\n"
    )))  # fmt: skip
    acme.policy(isolation={"user": "inprocess", "acme": "inprocess"})
    refused = terminal(acme, "use", answer="n\n")
    assert "The plugin acme 1.0.0 by acme.example (store:acme 1.0.0) asks for:" in refused
    assert "secrets T  (log in)" in refused
    assert "net api.example 443  (reach it)" in refused
    assert "plugin.not-granted" in refused
    assert "capabilities" not in acme.lock()["acme"]
    done = acme.run("use")
    assert (done.returncode, "Grant it?" in done.stderr) == (6, False)
    assert "dataflare plugin grant acme" in done.stderr
    yes = terminal(acme, "use", answer="y\n")
    assert yes.splitlines()[-1] == "1"
    assert acme.lock()["acme"]["capabilities"]["secrets"] == [{"ref": "T", "why": "log in"}, {"ref": "U"}]
    again = terminal(acme, "use", answer="")
    assert again.splitlines() == ["1"]
    acme.json("plugin", "install", wheel(acme.wheels, version="2.0.0", lines=LINES + "  env: [{name: 'E'}]\n"))
    update = terminal(acme, "use", answer="y\n")
    assert "asks for more than was granted:" in update
    assert "env E" in update
    assert "secrets T" not in update
    records = acme.json("plugin", "audit", "--plugin", "acme")["records"]
    assert [(r["action"], r["allowed"]) for r in records[-3:]] == [
        ("load 1.0.0 at the level inprocess", True), ("install 2.0.0, unsigned", True), ("load 2.0.0 at the level inprocess", True),
    ]  # fmt: skip


def test_what_a_plugin_says_cannot_act_on_the_terminal(machine: Machine) -> None:
    evil = LINES.replace("'log in'", '"\\e[2J\\e[1;31mno"')
    assert machine.json("plugin", "install", wheel(machine.wheels, lines=evil), status=3)["error"]["code"] == "plugin.bad-manifest"
    # What is not a manifest's text may come from anywhere: a name in an error, a record of the log.
    done = machine.run("plugin", "inspect", "\x1b[2J\u202eevil")
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    code = "from dataflare.lifecycle import Runtime\nRuntime('.').host.audit('a\\x1b[31m', 'net \\x9b2J\\n2026 allowed x', False)"
    assert machine.python(code).returncode == 0
    shown = machine.run("plugin", "audit", "-n", "1").stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert len(shown.splitlines()) == 1


def test_many_writers_of_one_lock(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dataflare_plugins.plugin_store.lockfile import changing\n"
        "for i in range(25):\n    with changing(Path('.')) as plugins:\n"
        "        plugins[f'{sys.argv[1]}-{i}'] = {'version': '1'}\n        plugins['all'] = {'minimum': str(int(plugins.get('all', {}).get('minimum', 0)) + 1)}\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=tmp_path) for n in range(3)]
    read: list[int] = []
    while any(r.poll() is None for r in running):
        read.append(len(Policy.load(tmp_path, tmp_path).locks))  # readers need no lock: the file is always whole
    assert [r.wait() for r in running] == [0, 0, 0]
    locks = Policy.load(tmp_path, tmp_path).locks
    assert len(locks) == 76
    assert locks["all"]["minimum"] == "75"
    assert read == sorted(read)


def test_threads_take_turns_too_and_a_failed_change_is_none(tmp_path: Path) -> None:
    def add(n: int) -> None:
        for i in range(10):
            with lockfile.changing(tmp_path) as plugins:
                plugins[f"{n}-{i}"] = {}

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Policy.load(tmp_path, tmp_path).locks) == 40
    with pytest.raises(ZeroDivisionError), lockfile.changing(tmp_path) as plugins:
        plugins[str(1 // 0)] = {}
    assert len(json.loads((tmp_path / "dataflare.lock").read_text())["plugins"]) == 40


entries = st.lists(st.builds(lambda r: {"ref": r, "why": "x"}, st.sampled_from("ABCD")), max_size=4, unique_by=lambda e: e["ref"])
states = st.builds(lambda n: {"max_bytes": n}, st.sampled_from(["1kB", "1MiB", "2MiB"]))
asked = st.fixed_dictionaries({}, optional={"secrets": entries, "state": states, "host": st.just(["log", "http"])})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(asked, st.sampled_from(["pin", "grant", "revoke", "part"])), min_size=1, max_size=6))
def test_no_history_of_versions_grants_what_nobody_granted(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[dict[str, Any], str]]
) -> None:
    """A plugin is updated and decided on again and again: at every moment it may do no more than the last decisions allow."""
    folder = tmp_path_factory.getbasetemp()
    allowed: set[str] = set()
    entry: dict[str, Any] = {}
    for i, (wants, what) in enumerate(history):
        manifest = Manifest("p", f"1.{i}", "1", "x", capabilities=wants, origin="store:p 1", site=str(folder / "no-such-folder"))
        refs = {e["ref"] for e in wants.get("secrets", ())}
        if what == "grant":
            entry, allowed = lockfile.granted(manifest, entry, "process"), refs
        elif what == "revoke":
            entry, allowed = lockfile.without(entry), set()
        elif what == "part" and "A" in refs:
            entry = lockfile.granted(manifest, entry, "process", ["secrets:A"])
            allowed = (allowed & refs) | {"A"}
        else:
            entry = lockfile.pinned(manifest, entry)
            allowed = allowed & refs
        policy = Policy(locks={"p": entry})
        assert effective(manifest, policy).secrets == allowed
        new = more(asks(manifest), entry.get("asked", {}))
        decided = {e["ref"] for e in entry.get("asked", {}).get("secrets", ())}
        assert (policy.standing(manifest) in ("granted", "asks for nothing")) == (
            ("capabilities" in entry and not new) or not asks(manifest)
        )
        assert allowed <= decided
        assert all(named(e) in [named(x) for x in wants.get("secrets", ())] for e in entry.get("capabilities", {}).get("secrets", ()))
