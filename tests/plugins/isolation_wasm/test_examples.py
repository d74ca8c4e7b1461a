"""The examples run as they stand: built, installed, their workflows run by the engine like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.isolation_wasm.building import rustc
from tests.plugins.isolation_wasm.server import serving

import dataflare
from dataflare.lifecycle import Runtime

Installed = Callable[[str], Path]


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_total_in_c(installed: Installed) -> None:
    folder = installed("wasm-c-total")
    dataflare.run(folder / "workflow.yaml", check=True)
    assert [(r["id"], r["total"]) for r in written(folder)] == [(1, 19.0), (2, None), (3, 100.0), (4, 10.0)]


def test_shout_in_zig(installed: Installed) -> None:
    folder = installed("wasm-zig-shout")
    dataflare.run(folder / "workflow.yaml", check=True)
    assert [r["name"] for r in written(folder)] == ["ALICE", None, "ZOë O'NEIL"]


def grant(folder: Path, name: str, **capabilities: Any) -> None:
    entry = {"version": "1.0.0", "capabilities": capabilities}
    (folder / "dataflare.lock").write_text(json.dumps({"plugins": {name: entry}}))


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")
def test_initials_in_go(installed: Installed) -> None:
    folder = installed("wasm-go-initials")
    refused = dataflare.run(folder / "workflow.yaml")
    assert refused.error is not None
    assert refused.error["code"] == "plugin.not-granted", "WASI has to be granted"
    grant(folder, "example-wasm-go-initials", host=["wasi"])
    dataflare.run(folder / "workflow.yaml", check=True)
    assert [r["initials"] for r in written(folder)] == ["AL", None, "ZvÄ"]


@pytest.mark.skipif(shutil.which("asc") is None, reason="there is no AssemblyScript here")
def test_double_in_assemblyscript(installed: Installed) -> None:
    folder = installed("wasm-as-double")
    dataflare.run(folder / "workflow.yaml", check=True)
    assert [r["amount"] for r in written(folder)] == [3.0, None, -8.0]


@pytest.mark.skipif(rustc() is None, reason="there is no Rust for WebAssembly here")
def test_words_in_rust(installed: Installed) -> None:
    folder = installed("wasm-rust-words")
    dataflare.run(folder / "workflow.yaml", check=True)
    assert [(r["id"], r["line"], r["place"]) for r in written(folder)] == [
        (1, "the", 1), (1, "quick", 2), (1, "fox", 3), (3, "Zoë", 1), (3, "sprang", 2),
    ]  # fmt: skip


def test_numbers_in_c(installed: Installed) -> None:
    folder = installed("wasm-c-numbers")
    dataflare.run(folder / "workflow.yaml", check=True)
    rows = written(folder)
    assert [r["n"] for r in rows] == list(range(8, 1201))
    assert rows[5] == {"n": 13, "word": "three"}


def grant_post(folder: Path) -> None:
    net = [{"host": "${config.host}", "port": "${config.port}", "private": True}]
    grant(folder, "example-wasm-c-post", net=net, secrets=[{"ref": "post_token"}])


def test_post_in_c(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = installed("wasm-c-post")
    monkeypatch.setenv("post_token", "s3cret")
    with serving() as server:
        monkeypatch.setenv("POST_PORT", str(server.port))
        refused = dataflare.run(folder / "workflow.yaml")
        assert refused.error is not None
        assert refused.error["code"] == "plugin.not-granted", "nothing was granted"
        assert not server.asked
        grant_post(folder)
        run = dataflare.run(folder / "workflow.yaml", check=True)
    assert run.rows["written"] == 3
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.headers["Authorization"]) == ("POST", "/rows", "Bearer s3cret")
    assert [json.loads(line) for line in asked.body.splitlines()] == [
        {"id": 1, "name": "alice"}, {"id": 2, "name": None}, {"id": 3, "name": "Zoë o'Neil"},
    ]  # fmt: skip


def test_what_the_runtime_says_of_them(installed: Installed) -> None:
    folder = installed("wasm-c-post")
    grant_post(folder)
    with Runtime(folder) as runtime:
        (provided,) = [p for p in runtime.host.provided("destination") if p.name == "post"]
    assert (provided.isolation, provided.plugin) == ("wasm", "example-wasm-c-post")
