"""Signed, unsigned, tampered with, signed by a key that nobody vouches for: told apart everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.plugin_store.building import wheel
from tests.plugins.plugin_store.conftest import Machine

from dataflare_plugins.plugin_store.signatures import check, new_key, sign

ASKS = "capabilities: {secrets: [{ref: T, why: log in}]}\n"


@pytest.fixture
def signed(machine: Machine) -> Path:
    """A signed wheel of a publisher whose key the policy knows."""
    path = wheel(machine.wheels, lines=ASKS)
    key = machine.json("plugin", "sign", "--new-key", machine.root / "key.pem")["key"]
    assert (machine.root / "key.pem").stat().st_mode & 0o077 == 0
    machine.json("plugin", "sign", path, "--key", machine.root / "key.pem", "--publisher", "acme.example")
    machine.policy(keys={"acme.example": [key]}, trust=["acme.example"])
    return path


def status(machine: Machine, path: Path) -> dict[str, Any]:
    made: dict[str, Any] = machine.json("plugin", "inspect", path)["plugin"]["signature"]
    return made


def test_a_verified_publisher_is_one_that_can_be_trusted(machine: Machine, signed: Path) -> None:
    assert status(machine, signed)["status"] == "signed"
    made = machine.json("plugin", "install", signed, "--require-signature")["plugins"][0]
    assert (made["signature"]["status"], made["standing"], made["level"]["given"]) == ("signed", "trusted", "inprocess")
    assert machine.lock()["acme"]["signer"] == "acme.example"
    assert machine.said() == 1
    verified = machine.json("plugin", "verify")["plugins"][0]
    assert (verified["status"], verified["signature"]["status"]) == ("ok", "signed")


def test_who_only_says_so_is_not_trusted(machine: Machine, signed: Path) -> None:
    signed.with_name(signed.name + ".sig").unlink()
    assert status(machine, signed)["status"] == "unsigned"
    refused = machine.json("plugin", "install", signed, "--require-signature", status=6)
    assert refused["error"]["code"] == "plugin.not-signed"
    made = machine.json("plugin", "install", signed)["plugins"][0]
    assert (made["publisher"], made["standing"]) == ("acme.example", "not granted")


def test_a_key_that_nobody_vouches_for(machine: Machine, signed: Path) -> None:
    machine.policy(keys={"other.example": [status(machine, signed)["key"]]}, trust=["acme.example"])
    assert status(machine, signed)["status"] == "unknown key"
    assert machine.json("plugin", "install", signed)["plugins"][0]["standing"] == "not granted"
    assert machine.json("plugin", "install", signed, "--require-signature", status=6)["error"]["code"] == "plugin.not-signed"


def test_what_was_tampered_with_is_not_installed(machine: Machine, signed: Path) -> None:
    beside = signed.with_name(signed.name + ".sig")
    kept = beside.read_text()
    wheel(machine.wheels, lines=ASKS, said="'evil'")
    for text in (
        kept,
        "{}",
        "",
        json.dumps({**json.loads(kept), "publisher": "other.example"}),
        json.dumps({**json.loads(kept), "value": "AAAA"}),
    ):
        beside.write_text(text)
        assert machine.json("plugin", "inspect", signed, status=6)["error"]["code"] == "plugin.tampered"
        assert machine.json("plugin", "install", signed, status=6)["error"]["code"] == "plugin.tampered"


def test_a_signature_that_no_longer_fits_is_found_later(machine: Machine, signed: Path) -> None:
    machine.json("plugin", "install", signed)
    kept = next(machine.store.rglob("artifact/*.sig"))
    kept.write_text(kept.read_text().replace("acme.example", "evil.example"))
    found = machine.json("plugin", "verify", status=6)["plugins"][0]
    assert (found["status"], found["signature"]["status"]) == (f"changed: {kept.name}", "tampered")


def test_a_module_is_signed_together_with_its_manifest(tmp_path: Path) -> None:
    module = tmp_path / "x.wasm"
    module.write_bytes(b"\0asm\x01\0\0\0")
    (tmp_path / "plugin.yaml").write_text("capabilities: {}")
    key = new_key(tmp_path / "key")
    sign(module, "p", tmp_path / "key")
    assert check(module, {"p": [key]}).signer == "p"
    (tmp_path / "plugin.yaml").write_text("capabilities: {net: [{host: evil}]}")
    assert check(module, {"p": [key]}).status == "tampered"


def test_the_verb_says_what_it_needs(machine: Machine, signed: Path) -> None:
    assert machine.run("plugin", "sign").returncode == 2
    assert machine.run("plugin", "sign", signed).returncode == 2
    assert machine.json("plugin", "sign", "--new-key", machine.root / "key.pem", status=3)["error"]["code"] == "plugin.bad-key"
    (machine.root / "bad.pem").write_text("x")
    bad = machine.json("plugin", "sign", signed, "--key", machine.root / "bad.pem", "--publisher", "p", status=3)
    assert bad["error"]["code"] == "plugin.bad-key"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_changed_byte_fits(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.getbasetemp() / "signed"
    if not base.exists():
        base.mkdir()
        (base / "key.pub").write_text(new_key(base / "key"))
        sign(wheel(base), "p", base / "key")
    folder = tmp_path_factory.mktemp("changed")
    for path in base.iterdir():
        shutil.copyfile(path, folder / path.name)
    artifact = next(folder.glob("*.whl"))
    target = data.draw(st.sampled_from([artifact, artifact.with_name(artifact.name + ".sig")]))
    whole = target.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    target.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    keys = {"p": [(folder / "key.pub").read_text()]}
    changed = check(artifact, keys)
    if changed.status == "signed":  # white space of the JSON, or the last bits of its base64
        assert target != artifact
    else:
        assert changed.status in ("tampered", "unknown key")
        assert changed.signer == ""
