"""How a plugin stands under the policy and the lock, and what it may do: never more than manifest AND grant, deny wins."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.artifacts import artifact_hash, files
from dataflare.capabilities import admit, effective
from dataflare.discovery import discover
from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime
from dataflare.manifest import Component, Manifest
from dataflare.policy import LEVELS, READY, Policy, asks, more, named, parse_bytes
from dataflare.versions import older

ASKED = {"secrets": [{"ref": "T", "why": "log in"}]}


def plugin(**said: Any) -> Manifest:
    known = {"name": "acme", "version": "1.0", "api": "1", "publisher": "acme.example", "origin": "acme 1.0", "hash": "sha256:m"}
    return Manifest(**{**known, **said})


def code_of(manifest: Manifest, policy: Policy) -> str:
    try:
        admit(manifest, policy)
    except DataflareError as error:
        assert error.exit_code == 6
        assert "acme" in str(error)
        return error.code
    return ""


@pytest.mark.parametrize(
    ("policy", "manifest", "standing", "code"),
    [
        ({}, {}, "asks for nothing", ""),
        ({}, {"capabilities": {"host": ["log", "metric", "clock"]}}, "asks for nothing", ""),
        ({}, {"capabilities": {"host": ["http"]}}, "not granted", "plugin.not-granted"),
        ({}, {"native": True}, "not granted", "plugin.not-granted"),
        ({}, {"capabilities": {"state": {}}}, "not granted", "plugin.not-granted"),
        ({}, {"capabilities": ASKED}, "not granted", "plugin.not-granted"),
        ({"trust": ("acme",)}, {"capabilities": ASKED}, "trusted", ""),
        ({"trust": ("installed",)}, {"capabilities": ASKED}, "trusted", ""),
        ({"trust": ("acme.example",)}, {"capabilities": ASKED}, "not granted", "plugin.not-granted"),
        ({"trust": ("acme.example",)}, {"capabilities": ASKED, "signer": "acme.example"}, "trusted", ""),
        ({"trust": ("acme",), "deny": ("acme.example",)}, {"capabilities": ASKED}, "denied", "capability.denied"),
        ({"trust": ("acme",), "deny": ("*",)}, {}, "denied", "capability.denied"),
        ({"deny": ("acme",)}, {"origin": "dataflare 0.1"}, "denied", "capability.denied"),
        ({}, {"origin": "dataflare 0.1", "capabilities": ASKED}, "built-in", ""),
        ({}, {"origin": "dataflare-evil 0.1", "capabilities": ASKED}, "not granted", "plugin.not-granted"),
        ({}, {"origin": "store:dataflare 0.1", "capabilities": ASKED}, "not granted", "plugin.not-granted"),
        ({"min_level": "wasm"}, {}, "below the minimum level", "plugin.level-too-low"),
        ({"min_level": "wasm"}, {"isolation": "wasm"}, "asks for nothing", ""),
        ({"min_level": "process"}, {"isolation": "inprocess"}, "asks for nothing", ""),
        ({"min_level": "process", "trust": ("acme",)}, {"isolation": "inprocess"}, "below the minimum level", "plugin.level-too-low"),
        ({"locks": {"acme": {"enabled": False}}}, {}, "disabled", "plugin.disabled"),
        ({"locks": {"acme": {"minimum": "1.0.1"}}}, {}, "older than the lock allows", "plugin.too-old"),
        ({"locks": {"acme": {"minimum": "1"}}}, {}, "asks for nothing", ""),
        ({"locks": {"acme": {"version": "1.0", "manifest": "sha256:x"}}}, {}, "changed", "plugin.changed"),
        ({"locks": {"acme": {"version": "0.9", "manifest": "sha256:x"}}}, {}, "asks for nothing", ""),
        ({"locks": {"acme": {"origin": "store:acme"}}}, {}, "changed", "plugin.changed"),
        ({"locks": {"acme": {"capabilities": {}, "asked": ASKED}}}, {"capabilities": ASKED}, "granted", ""),
        ({"locks": {"acme": {"capabilities": {"secrets": [{"ref": "T"}]}}}}, {"capabilities": ASKED}, "granted", ""),
        ({"locks": {"acme": {"capabilities": {}}}}, {"capabilities": ASKED}, "asks for more", "plugin.asks-more"),
        ({"locks": {"acme": {"asked": ASKED}}}, {"capabilities": ASKED}, "not granted", "plugin.not-granted"),
        ({"locks": {"acme": {"capabilities": {}, "level": "wasm"}}}, {"isolation": "process"}, "asks for more", "plugin.asks-more"),
        ({"locks": {"acme": {"capabilities": {}, "level": "process"}}}, {"isolation": "wasm"}, "asks for nothing", ""),
        (
            {"locks": {"acme": {"capabilities": {}, "level": "wasm"}}, "isolation": {"acme": "process"}},
            {"isolation": "process"}, "asks for nothing", "",
        ),
        ({"locks": {"acme": {"capabilities": {"state": {"max_bytes": "1MiB"}}}}}, {"capabilities": {"state": {"max_bytes": "2MiB"}}},
         "asks for more", "plugin.asks-more"),
        ({"locks": {"acme": {"capabilities": {"state": {"max_bytes": "1MiB"}}}}}, {"capabilities": {"state": {"max_bytes": "1kB"}}},
         "granted", ""),
    ],
)  # fmt: skip
def test_standing(policy: dict[str, Any], manifest: dict[str, Any], standing: str, code: str) -> None:
    made, under = plugin(**manifest), Policy(**policy)
    assert under.standing(made) == standing
    assert (standing in READY) == (not code)
    assert code_of(made, under) == code


@pytest.mark.parametrize(
    ("policy", "manifest", "level"),
    [
        ({}, {}, "process"),
        ({}, {"isolation": "process"}, "process"),
        ({}, {"isolation": "wasm"}, "wasm"),
        ({"trust": ("installed",)}, {}, "process"),
        ({"trust": ("acme",)}, {}, "inprocess"),
        ({"trust": ("acme",)}, {"isolation": "process"}, "process"),
        ({"trust": ("acme.example",)}, {}, "process"),
        ({"trust": ("acme.example",)}, {"signer": "acme.example"}, "inprocess"),
        ({"trust": ("",)}, {}, "process"),
        ({"locks": {"acme": {"level": "inprocess"}}}, {}, "inprocess"),
        ({"locks": {"acme": {"level": "process"}}}, {}, "process"),
        ({"locks": {"other": {"level": "inprocess"}}}, {}, "process"),
        ({"isolation": {"acme": "inprocess"}}, {"isolation": "wasm"}, "inprocess"),
        ({"isolation": {"acme": "wasm"}, "trust": ("acme",)}, {}, "wasm"),
        ({"isolation": {"acme.example": "inprocess"}}, {}, "process"),
        ({"isolation": {"acme.example": "wasm"}}, {"isolation": "process"}, "wasm"),
        ({"isolation": {"acme.example": "inprocess"}}, {"signer": "acme.example"}, "inprocess"),
        ({"isolation": {"acme": "wasm"}}, {"origin": "dataflare 0.1"}, "inprocess"),
    ],
)  # fmt: skip
def test_level(policy: dict[str, Any], manifest: dict[str, Any], level: str) -> None:
    assert Policy(**policy).level(plugin(**{"isolation": "inprocess", **manifest})) == level


names = st.sampled_from(["a", "b", "*", "10.0.0.1"])
flags = st.one_of(st.none(), st.booleans())


@st.composite
def capabilities(draw: st.DrawFn) -> dict[str, Any]:
    def entries(main: str) -> list[dict[str, Any]]:
        found = draw(st.lists(st.tuples(names, st.sampled_from(["x", "y"]), flags), max_size=3))
        return [{main: n, "why": w, **({"private": p} if p is not None and main == "host" else {})} for n, w, p in found]

    made: dict[str, Any] = {kind: entries(main) for kind, main in (("net", "host"), ("secrets", "ref"), ("env", "name"))}
    made["state"] = {"max_bytes": draw(st.sampled_from(["1B", "1kB", "1MiB", "nonsense"]))}
    made["host"] = draw(st.lists(st.sampled_from(["log", "http"]), max_size=2))
    return {kind: made[kind] for kind in draw(st.sets(st.sampled_from(sorted(made))))}


# What somebody could have written into a lock by hand.
grants = st.one_of(
    capabilities(), st.dictionaries(st.sampled_from(["net", "state", "host", "env"]), st.sampled_from([1, "a", [], {}, [1], ["a"]]))
)
policies = st.builds(
    lambda trust, deny, granted: Policy(
        trust=tuple(trust), deny=tuple(deny), locks={} if granted is None else {"acme": {"capabilities": granted}}
    ),
    st.sets(st.sampled_from(["acme", "installed", "acme.example", "other"]), max_size=2),
    st.sets(st.sampled_from(["acme:net", "*:secrets", "acme.example:env", "acme:state", "other:host", "acme:host"]), max_size=2),
    st.one_of(st.none(), grants),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(capabilities(), policies)
def test_nothing_is_effective_that_was_not_asked_for_and_granted(asked: dict[str, Any], policy: Policy) -> None:
    manifest = plugin(capabilities=asked)
    before = copy.deepcopy(asked)
    made = effective(manifest, policy)
    granted = policy.locks.get("acme", {}).get("capabilities", {})
    for kind, allowed in made.allowed.items():
        assert kind in asked
        assert not policy.denies(manifest, kind)
        if kind == "state":
            least = parse_bytes(asked["state"]["max_bytes"])
            if not policy.trusts(manifest):
                least = min(least, parse_bytes(granted["state"].get("max_bytes", "64MiB")))
            assert parse_bytes(allowed["max_bytes"]) <= least
            continue
        for entry in allowed:
            assert named(entry) in [named(e) for e in asked[kind]]
            if not policy.trusts(manifest) and not (kind == "host" and entry == "log"):
                assert named(entry) in [named(e) for e in granted[kind]]
            private = (
                [named(e) for e in granted.get(kind, ()) if isinstance(e, dict) and e.get("private") is True]
                if isinstance(granted.get(kind, ()), list)
                else []
            )
            if isinstance(entry, dict) and (entry.get("private") or "*" in str(entry.get("host"))):
                assert named(entry) in private
    assert asked == before
    assert made.secrets == {e["ref"] for e in made.allowed.get("secrets", ())}
    json.dumps(made.allowed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(capabilities(), capabilities())
def test_everything_granted_is_effective_and_missing_is_what_is_new(asked: dict[str, Any], before: dict[str, Any]) -> None:
    manifest = plugin(capabilities=asked)
    whole = effective(manifest, Policy(locks={"acme": {"capabilities": asked}})).allowed
    for kind in set(asked) - {"state"}:
        wanted = [named(e) for e in asked[kind] if "*" not in str(e.get("host") if isinstance(e, dict) else "") or e.get("private") is True]
        assert {json.dumps(e) for e in wanted} <= {json.dumps(named(e)) for e in whole[kind]}
    new = more(asked, before)
    assert more(asked, asked) == {}
    assert new == {} or not set(new) - set(asked)
    for kind, rest in new.items():
        if isinstance(rest, list):
            assert not [e for e in rest if isinstance(before.get(kind), list) and named(e) in [named(b) for b in before[kind]]]


def test_a_private_grant_is_the_operators_word_only() -> None:
    net = [{"host": "a", "private": True}, {"host": "*"}]
    trusted = effective(plugin(capabilities={"net": net}), Policy(trust=("acme",))).allowed["net"]
    assert trusted == [{"host": "a"}]
    lock = {"acme": {"capabilities": {"net": [{"host": "*", "private": True}]}}}
    assert effective(plugin(capabilities={"net": net}), Policy(locks=lock)).allowed["net"] == [{"host": "*", "private": True}]
    both = effective(plugin(capabilities={"net": net}), Policy(trust=("acme",), locks=lock)).allowed["net"]
    assert both == [{"host": "a"}, {"host": "*", "private": True}]


def test_two_policies(tmp_path: Path) -> None:
    work, config = tmp_path / "work", tmp_path / "config"
    for folder, said in (
        (
            work,
            {
                "trust": ["a"],
                "min_level": "process",
                "isolation": {"a": "inprocess", "b": "wasm"},
                "keys": {"p": ["own"], "q": ["k"]},
                "without": ["landlock"],
            },
        ),
        (config, {"deny": ["a"], "min_level": "inprocess", "isolation": {"a": "process"}, "keys": {"p": ["known"]}, "without": ["broker"]}),
    ):
        folder.mkdir()
        (folder / "policy.yaml").write_text(json.dumps(said))
    made = Policy.load(work, config)
    assert (made.trust, made.deny, made.min_level) == (("a",), ("a",), "process")
    assert made.isolation == {"a": "process", "b": "wasm"}
    assert made.keys == {"p": ("known",), "q": ("k",)}
    assert made.without == ("landlock", "broker")
    assert Policy.load(tmp_path, tmp_path) == Policy(base_dir=str(tmp_path), config_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("a", "b", "earlier"),
    [("1.0", "1.0.0", False), ("1.9", "1.10", True), ("2", "1.10", False), ("0.9rc1", "1", True), ("1", "0", False)],
)
def test_older(a: str, b: str, earlier: bool) -> None:
    assert older(a, b) is earlier


def test_asks_leave_out_what_every_plugin_may() -> None:
    assert asks(plugin(capabilities={"host": ["log", "http"], "net": []}, native=True)) == {"native": True, "host": ["http"]}
    assert LEVELS == ("inprocess", "process", "wasm")


# The files of an installed plugin.


def installed(install: Callable[..., Path], **how: Any) -> Manifest:
    install("acme", "x = 1\n", "capabilities: {secrets: [{ref: T, why: log in}]}\n", **how)
    return next(m for m in discover().manifests if m.name == "acme")


def test_every_file_counts_and_what_an_installation_writes_does_not(install: Callable[..., Path]) -> None:
    manifest = installed(install)
    folder = Path(manifest.folder)
    info = folder.parent / "acme-1.0.0.dist-info"
    (info / "RECORD").write_text(
        "acme/__init__.py,,\nacme/gone.py,,\nacme-1.0.0.dist-info/METADATA,,\nacme-1.0.0.dist-info/RECORD,,\n../../bin/x,,\n"
    )
    first = artifact_hash(manifest)
    assert sorted(files(manifest)) == ["acme-1.0.0.dist-info/METADATA", "acme/__init__.py", "acme/plugin.yaml"]
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("")
    (info / "INSTALLER").write_text("pip")
    assert artifact_hash(manifest) == first
    seen = {first}
    for change in (
        lambda: (folder / "__init__.py").write_text("x = 2\n"),
        lambda: (folder / "gone.py").write_text(""),
        lambda: (folder / "beside.py").write_text(""),
        lambda: (folder / "beside.py").rename(folder / "other.py"),
        lambda: (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0.0\n\n"),
    ):
        change()
        seen.add(artifact_hash(manifest))
    assert len(seen) == 6


def test_the_files_are_compared_at_every_start_and_never_the_index(install: Callable[..., Path], tmp_path: Path) -> None:
    manifest = installed(install)
    entry = {"version": "1.0.0", "manifest": manifest.hash, "artifact": artifact_hash(manifest), "capabilities": asks(manifest)}
    (tmp_path / "dataflare.lock").write_text(json.dumps({"plugins": {"acme": entry}}))
    Runtime(tmp_path).plugins.load(manifest)
    (Path(manifest.folder) / "__init__.py").write_text("x = 2\n")
    with pytest.raises(DataflareError, match="the files of 'acme'") as caught:
        Runtime(tmp_path).plugins.load(manifest)
    assert (caught.value.code, caught.value.exit_code) == ("plugin.changed", 6)
    assert "acme" not in sys.modules


# Who is asked what.

HOOKS = """
from dataflare_sdk import hookimpl
heard = []
@hookimpl
def dataflare_run_event(event): heard.append("run_event")
@hookimpl
def dataflare_resolve_secret(provider, name, base_dir): heard.append("secret"); return "stolen"
@hookimpl
def dataflare_load_plugin(manifest, grants, level): heard.append("load"); return None
@hookimpl
def dataflare_audit(record): heard.append(record["action"])
@hookimpl
def dataflare_consent(manifest, missing, policy): heard.append(sorted(missing)); return {"capabilities": missing, "asked": missing}
"""
LISTED = "hooks: [run_event, resolve_secret, load_plugin, audit, consent]\n"
SANDBOX = """
from dataflare_sdk import hookimpl
class Loader:
    level = "process"
    def __init__(self, package): self.package = package
    def factory(self, entry): return entry
    def hooks(self):
        import importlib
        return importlib.import_module(self.package)
    def close(self): pass
@hookimpl
def dataflare_load_plugin(manifest, grants, level): return Loader(manifest.package) if level == "process" else None
"""


def test_a_stranger_hears_of_runs_and_decides_over_nobody(install: Callable[..., Path], tmp_path: Path) -> None:
    install("sandbox", SANDBOX, "hooks: [load_plugin]\n")
    install("nosy", HOOKS, LISTED, trusted=False)
    install("acme", "", "capabilities: {secrets: [{ref: T, why: log in}]}\nhooks: [run_event]\n", trusted=False)
    runtime = Runtime(tmp_path)
    runtime.host.hook("run_event", event=None)
    assert runtime.host.hook("resolve_secret", provider="vault", name="x", base_dir=tmp_path) is None
    assert runtime.host.hook("load_plugin", manifest=None, grants={}, level="elsewhere") is None
    runtime.host.audit("acme", "something", True)
    assert sys.modules["nosy"].heard == ["run_event"]
    assert "acme" not in sys.modules  # nobody has granted it anything: it does not even hear of runs
    (tmp_path / "policy.yaml").write_text("isolation: {nosy: inprocess}")
    runtime = Runtime(tmp_path)
    assert runtime.host.hook("resolve_secret", provider="vault", name="x", base_dir=tmp_path) == "stolen"


def test_somebody_at_a_terminal_is_asked_once(install: Callable[..., Path], tmp_path: Path) -> None:
    install("sandbox", SANDBOX, "hooks: [load_plugin]\n")
    install("asker", HOOKS, "hooks: [consent, audit]\n")
    (tmp_path / "policy.yaml").write_text("deny: [dataflare-plugin-store]")
    manifest = installed(install, trusted=False)
    runtime = Runtime(tmp_path)
    with pytest.raises(DataflareError, match=r"plugin\.not-granted.*\n.*dataflare plugin grant acme"):
        runtime.plugins.load(manifest)
    runtime.plugins.interactive = True
    assert runtime.plugins.load(manifest).level == "process"
    runtime.plugins.close()
    runtime.plugins.load(manifest)
    heard = [h for h in sys.modules["asker"].heard if h != "load 1.0.0 at the level inprocess"]  # its own, and the loader's
    assert heard == ["load: plugin.not-granted", ["secrets"], "load 1.0.0 at the level process"]
    assert effective(manifest, runtime.plugins.policy).secrets == {"T"}


def test_a_plugin_that_asks_for_nothing_runs_without_a_question(install: Callable[..., Path], tmp_path: Path) -> None:
    install("sandbox", SANDBOX, "hooks: [load_plugin]\n")
    install("plain", "", "provides:\n  - {kind: lookup, name: plain, entry: 'plain:X'}\n", trusted=False)
    assert Runtime(tmp_path).host.factory("lookup", "plain") == "plain:X"
    assert Component("lookup", "plain", "plain:X") in Runtime(tmp_path).host.plugins.registry.find("lookup", "plain").manifest.provides
