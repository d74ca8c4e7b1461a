"""Attacks that are data rather than code, a few of each family here and all of them by `make redteam`; and their judges judged.

A judge is shown an open door that leads nowhere: more memory for a guest, a text that is not cleaned, a wheel that nobody runs. No
attack is let out of its sandbox for it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.redteam import cases, families
from tests.redteam.bench import Bench, Done, judged
from tests.redteam.families import hooks, wasm

ALWAYS = (
    "wasm-endless-loop", "wasm-pointer-outside", "wasm-undeclared-import", "wasm-redirect-to-the-metadata", "arrow-text-that-is-none",
    "wheel-dots", "wheel-dependency-at-an-address", "manifest-slow-version", "manifest-distribution-that-begins-like-ours",
    "hook-parse-workflow", "terminal-log", "secret-in-a-dead-letter",
)  # fmt: skip


def test_the_table_is_whole() -> None:
    table = cases.load()
    assert all(c.what.endswith(".") and len(c.what) > 15 and "\n" not in c.what for c in table.values())
    assert len({c.what for c in table.values()}) == len(table)
    levels = Counter(c.level for c in table.values())
    assert all(levels[level] >= 10 for level in ("process", "wasm", "install", "manifest", "hooks", "terminal", "secrets")), levels


@pytest.mark.parametrize("name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.soak) for n in families.load()])
def test_an_attack_is_stopped_and_works_elsewhere(name: str, tmp_path: Path, confines: None) -> None:
    case = families.load()[name]
    seen = case.attack(tmp_path)
    assert seen.outcome in case.expected, seen
    shown = case.control()
    assert shown.worked, shown.detail


def open_door(name: str, folder: Path) -> str:
    return families.load()[name].attack(folder).outcome


def test_a_guest_that_is_given_more_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm, "LIMITS", "limits: {memory: 1GiB, deadline: 5s}\n")
    assert open_door("wasm-grow-memory", tmp_path) == "breached"


@pytest.mark.parametrize(
    ("name", "weakened"),
    [
        (
            "arrow-text-that-is-none",
            "import pyarrow as pa\nfrom dataflare_plugins.isolation_process.host import connection\n"
            "connection.read = lambda data, schema, most: pa.ipc.read_record_batch(data, schema)",
        ),
        ("wheel-file-that-nobody-listed", "from dataflare_plugins.plugin_store import wheels\nwheels._check_record = lambda *_: None"),
        (
            "manifest-verb-of-a-built-in",
            "from dataflare import cli, index\ncli._provided_commands = lambda: {c[1]: c[3] for m in reversed(index.current()['manifests'])"
            " for c in sorted(m['provides'], key=lambda c: 'Owned' in c[3]) if c[0] == 'command'} | {'run': 'Owned'}",
        ),
        ("hook-authorize-by-publisher", "from dataflare.plugins import PluginManager\nPluginManager._hears = lambda *_: True"),
        (
            "terminal-log",
            "from dataflare_plugins.isolation_process.host import questions, told\n"
            "for module in (questions, told): module.clean = lambda text, most=0: str(text)",
        ),
        (
            "secret-in-an-error",
            "from dataflare.logs import Redactor\nRedactor.text = lambda self, text: text\nRedactor.value = lambda self, value: value",
        ),
    ],
)
def test_a_door_that_is_open_is_seen(name: str, weakened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confines: None) -> None:
    monkeypatch.setattr(Bench, "weakened", weakened)
    assert open_door(name, tmp_path) == "breached"


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        (Done(3, '{"error": {"code": "a.b"}}', "", 1), "refused"), (Done(0, "", "", 1), "breached"),
        (Done(3, '{"error": {"code": "c.d"}}', "", 1), "broken"), (Done(1, "Traceback", "", 1), "broken"),
        (Done(None, "", "", 1), "breached"), (Done(-11, "", "", 1), "breached"), (Done(3, '{"error": {"code": "a.b"}}', "", 2 << 30), "breached"),
        (Done(3, '{"error": {"code": "a.b"}}', "\x1b[2J", 1), "breached"), (Done(3, '{"error": {"code": "a.b"}}', "x\nall is well, says nobody", 1), "breached"),
    ],
)  # fmt: skip
def test_the_judge_of_all(done: Done, outcome: str, tmp_path: Path) -> None:
    assert judged(Bench(tmp_path), done, ("a.b",)).outcome == outcome


def test_what_was_left_behind_is_noticed(tmp_path: Path) -> None:
    good = Done(0, "", "", 1)
    for n, leave in enumerate(("written", "untouched", "log")):
        (tmp_path / str(n)).mkdir()
        bench = Bench(tmp_path / str(n))
        assert judged(bench, good).outcome == "denied"
        {"written": bench.written, "untouched": bench.untouched, "log": bench.work / "log"}[leave].write_text(bench.secret)
        assert judged(bench, good).outcome == "breached", leave
    bench.heard.append(bench.mark)
    assert hooks.judge(bench, good).outcome == "breached"
