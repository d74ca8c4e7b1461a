import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataflare.contracts import RunEvent, Surroundings
from dataflare.discovery import Found, discover
from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime
from dataflare.plugins import FIRST_RESULT

CODE = """
from dataclasses import dataclass
from dataflare.errors import INPUT_MISSING
from dataflare_sdk import config, option, Component, hookimpl

@config
class AcmeConfig:
    url: str = option("Where.")
    fail: str = option("Path of an error.", default="")

class Acme(Component[AcmeConfig]):
    Config = AcmeConfig
    def __init__(self, config, ctx):
        super().__init__(config, ctx)
        if config.fail:
            raise INPUT_MISSING.error("gone", path=None if config.fail == "none" else config.fail)

def plain(config, ctx):
    return (config, ctx)

events = []

@hookimpl
def dataflare_run_event(event):
    events.append(event.event)
    raise ValueError("a bad monitor")

@hookimpl
def dataflare_audit(record):
    events.append((record["action"], record["allowed"]))

@hookimpl
def dataflare_check_workflow(workflow, plan):
    events.append("not listed")
"""
LINES = """
provides:
  - {kind: source, name: acme, entry: 'acme:Acme', features: [full]}
  - {kind: lookup, name: plain, entry: 'acme:plain'}
  - {kind: lookup, name: gone, entry: 'acme:Gone'}
  - {kind: lookup, name: extra, entry: 'acme.extra:X'}
hooks: [run_event, audit]
"""
SANDBOX = """
from dataflare_sdk import hookimpl
closed = []
class Loader:
    level = 'process'
    def factory(self, entry): return ('proxy', entry)
    def hooks(self): return None
    def close(self): closed.append(1)
@hookimpl
def dataflare_load_plugin(manifest, grants, level): return Loader() if level == 'process' else None
"""
ASKS = LINES + "capabilities: {secrets: [{ref: ACME_TOKEN, why: log in}], state: {max_bytes: 100B}}\n"
AT = Surroundings(node="n", path=("sources", "a", "with"))


class Store:
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes | None] = {}

    def get_value(self, scope: str, key: str) -> bytes | None:
        return self.values.get((scope, key))

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        self.values[scope, key] = value


def lock(folder: Path, **plugins: Any) -> None:
    (folder / "dataflare.lock").write_text(json.dumps({"lock": 1, "plugins": plugins}))


def refused(call: Callable[[], Any]) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        call()
    return caught.value


def test_a_component_is_built_with_its_parsed_configuration(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", CODE, LINES)
    runtime = Runtime(tmp_path)
    assert "acme" not in sys.modules
    described = runtime.host.describe("source", "acme")
    assert (described.plugin, described.features, described.origin) == ("acme", ("full",), "acme 1.0.0")
    assert "acme" not in sys.modules
    made = runtime.host.build("source", "acme", {"url": "u"}, AT)
    assert (made.config.url, made.ctx.node) == ("u", "n")
    assert made.ctx.host is runtime.host
    config, ctx = runtime.host.build("lookup", "plain", {"raw": 1}, AT)
    assert config == {"raw": 1}
    assert ctx.component("lookup", "plain", {"x": 2})[0] == {"x": 2}


def test_errors_are_placed_under_the_node(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", CODE, LINES)
    host = Runtime(tmp_path).host
    error = refused(lambda: host.build("source", "acme", {"urll": "u"}, AT))
    assert {p.path for p in error.problems} == {"sources.a.with.urll", "sources.a.with.url"}
    for inner, path in (("url", "sources.a.with.url"), ("[0].x", "sources.a.with[0].x"), ("none", "sources.a.with")):
        assert refused(lambda i=inner: host.build("source", "acme", {"url": "", "fail": i}, AT)).problems[0].path == path


def test_code_that_is_not_there_is_explained(install: Callable[..., Path], tmp_path: Path) -> None:
    folder = install("acme", CODE, LINES)
    host = Runtime(tmp_path).host
    assert refused(lambda: host.factory("lookup", "gone")).code == "plugin.entry-missing"
    assert refused(lambda: host.factory("lookup", "extra")).code == "plugin.entry-missing"
    (folder / "extra.py").write_text("import no_such_package_here")
    error = refused(lambda: host.factory("lookup", "extra"))
    assert (error.code, error.exit_code) == ("plugin.missing-extra", 4)
    assert error.problems[0].fix == "pip install no_such_package_here"


BAD = """
from dataflare_sdk import hookimpl
@hookimpl
def dataflare_run_event(event):
    raise ZeroDivisionError("bad monitor")
@hookimpl
def dataflare_audit(record):
    raise ZeroDivisionError("bad log")
"""
HEARS = """
from dataflare_sdk import hookimpl
heard = []
@hookimpl
def dataflare_run_event(event):
    heard.append(event)
@hookimpl
def dataflare_audit(record):
    heard.append(record["action"])
"""


def test_one_that_fails_does_not_silence_the_others(install: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever the order they are called in: one stands before and one behind."""
    for name, code in (("abel", HEARS), ("bad", BAD), ("zoe", HEARS)):
        install(name, code, "hooks: [run_event, audit]\n")
    runtime = Runtime(tmp_path)
    event = RunEvent(0.0, "r", "execute", "epoch.committed", {})
    runtime.host.emit(event)
    runtime.host.audit("someone", "something", True)
    for name in ("abel", "zoe"):
        heard = sys.modules[name].heard
        assert event in heard, name
        assert "something" in heard, name


def test_only_listed_hooks_are_called_and_a_bad_monitor_harms_nobody(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", CODE, LINES)
    runtime = Runtime(tmp_path)
    runtime.host.emit(RunEvent(0.0, "r", "execute", "phase.started"))
    assert sys.modules["acme"].events == ["phase.started"]
    runtime.host.hook("check_workflow", workflow=None, plan=None)
    assert "not listed" not in sys.modules["acme"].events


def test_first_result_hooks_are_those_of_the_specs() -> None:
    from dataflare import hookspecs

    first = {
        name.removeprefix("dataflare_") for name, spec in vars(hookspecs).items() if getattr(spec, "dataflare_spec", {}).get("firstresult")
    }
    assert first == FIRST_RESULT


def test_a_use_that_was_not_granted_is_denied_and_audited(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme", CODE, ASKS)
    monkeypatch.setenv("ACME_TOKEN", "canary-4711")
    asked = {"secrets": [{"ref": "ACME_TOKEN"}], "state": {"max_bytes": "100B"}}
    lock(tmp_path, acme={"version": "1.0.0", "asked": asked, "capabilities": {}})
    ctx = Runtime(tmp_path).host.build("lookup", "plain", {}, AT)[1]
    for use in (lambda: ctx.secret("ACME_TOKEN"), lambda: ctx.state_get("k"), lambda: ctx.state_put("k", b"")):
        error = refused(use)
        assert (error.code, error.exit_code) == ("capability.denied", 6)
        assert "dataflare plugin grant acme" in str(error)
    assert sys.modules["acme"].events[:2] == [("load 1.0.0 at the level inprocess", True), ("secret ACME_TOKEN", False)]


@pytest.mark.parametrize("trust", ["acme", "installed"])
def test_the_policy_grants_what_the_manifest_names_and_nothing_else(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    install("acme", CODE, ASKS)
    monkeypatch.setenv("ACME_TOKEN", "canary-4711")
    (tmp_path / "policy.yaml").write_text(f"trust: [{trust}]")
    ctx = Runtime(tmp_path).host.build("lookup", "plain", {}, replace(AT, state=Store()))[1]
    assert ctx.secret("ACME_TOKEN") == "canary-4711"
    assert refused(lambda: ctx.secret("PATH")).code == "capability.denied"
    ctx.state_put("a", b"x" * 60)
    ctx.state_put("a", b"x" * 90)
    assert ctx.state_get("a") == b"x" * 90
    assert refused(lambda: ctx.state_put("b", b"x" * 11)).code == "capability.denied"
    assert ctx.state_get("b") is None


def test_a_lock_grants_and_a_denial_wins(install: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    install("acme", CODE, ASKS)
    monkeypatch.setenv("ACME_TOKEN", "canary-4711")
    asked = {"secrets": [{"ref": "ACME_TOKEN"}], "state": {"max_bytes": "100B"}}
    lock(tmp_path, acme={"version": "0.9", "asked": asked, "capabilities": {"secrets": [{"ref": "ACME_TOKEN"}]}})
    ctx = Runtime(tmp_path).host.build("lookup", "plain", {}, AT)[1]
    assert ctx.secret("ACME_TOKEN") == "canary-4711"
    assert refused(lambda: ctx.state_get("k")).code == "capability.denied"
    (tmp_path / "policy.yaml").write_text("deny: ['acme:secrets']")
    ctx = Runtime(tmp_path).host.build("lookup", "plain", {}, AT)[1]
    assert refused(lambda: ctx.secret("ACME_TOKEN")).code == "capability.denied"
    (tmp_path / "policy.yaml").write_text("{deny: [acme], trust: [acme]}")
    assert refused(lambda: Runtime(tmp_path).host.build("lookup", "plain", {}, AT)).exit_code == 6
    (tmp_path / "policy.yaml").write_text("{}")
    lock(tmp_path, acme={"version": "1.0.0", "manifest": "sha256:other"})
    assert refused(lambda: Runtime(tmp_path).host.factory("lookup", "plain")).code == "plugin.changed"


@pytest.mark.parametrize(
    "text",
    [
        "trust: acme",
        "trusted: []",
        "- a",
        "a: [",
        "min_level: x",
        "isolation: {a: b}",
        "isolation: [a]",
        "keys: {a: b}",
        "deny: [1]",
        "without: landlock",
    ],
)
def test_a_policy_that_cannot_be_read_is_no_empty_policy(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    assert refused(lambda: Runtime(tmp_path)).code == "policy.invalid"


@pytest.mark.parametrize(
    "text",
    [
        '{"plugins": []}',
        '{"plugins": {"a": 1}}',
        '{"plugins": {"a": {"capabilities": []}}}',
        "[]",
        "plugins: {}",
        '{"plugins": {"a": {"enabled": 1}}}',
    ],
)
def test_a_lock_of_the_wrong_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataflare.lock").write_text(text)
    assert refused(lambda: Runtime(tmp_path)).code == "policy.invalid"


@pytest.mark.parametrize("level", ["process", "wasm"])
def test_an_isolation_nobody_gives_is_refused(install: Callable[..., Path], tmp_path: Path, level: str) -> None:
    install("acme", CODE, LINES + f"isolation: {level}\n", trusted=False)
    nobody = Found(tuple(m for m in discover().manifests if "load_plugin" not in m.hooks))
    for trust in ("", "trust: [acme, installed]"):
        (tmp_path / "policy.yaml").write_text(trust)
        error = refused(lambda: Runtime(tmp_path, found=nobody).host.factory("source", "acme"))
        assert (error.code, error.exit_code) == ("plugin.isolation-unavailable", 6)
        assert "acme" not in sys.modules
    (tmp_path / "policy.yaml").write_text("isolation: {acme: inprocess}")
    assert Runtime(tmp_path, found=nobody).host.factory("source", "acme").__name__ == "Acme"


def test_a_loader_plugin_gives_the_isolation(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", CODE, LINES, trusted=False)
    install("sandbox", SANDBOX, "hooks: [load_plugin]\n")
    (tmp_path / "policy.yaml").write_text("deny: [dataflare-isolation-process]")
    assert Runtime(tmp_path).host.factory("source", "acme") == ("proxy", "acme:Acme")
    (tmp_path / "policy.yaml").write_text("min_level: process\ndeny: [dataflare-isolation-process]")
    # The loader itself is a stranger below the minimum now, so nobody gives the level.
    assert refused(lambda: Runtime(tmp_path).host.factory("source", "acme")).code == "plugin.isolation-unavailable"


def test_the_level_that_a_loader_gives_is_what_counts(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", CODE, LINES + "isolation: wasm\n", trusted=False)
    install("sandbox", SANDBOX.replace("== 'process'", "== 'wasm'"), "hooks: [load_plugin]\n")
    runtime = Runtime(tmp_path)
    assert runtime.host.factory("source", "acme") == ("proxy", "acme:Acme")
    runtime.plugins.close()
    runtime.plugins.policy = runtime.plugins.policy._replace(min_level="wasm", isolation={})
    runtime.plugins.hook = lambda *_, **__: sys.modules["sandbox"].Loader()  # type: ignore[method-assign]
    assert refused(lambda: runtime.host.factory("source", "acme")).code == "plugin.level-too-low"
    assert sys.modules["sandbox"].closed == [1, 1]


def test_security_providers_fail_closed(install: Callable[..., Path], tmp_path: Path) -> None:
    install(
        "guard",
        "from dataflare_sdk import hookimpl, Decision\n"
        "@hookimpl\n"
        "def dataflare_authorize(principal, action, resource):\n"
        "    if resource == 'boom': raise ValueError('x')\n"
        "    return None if resource == 'unknown' else Decision(action == 'run', 'only runs', 'guard')\n",
        "hooks: [authorize]\n",
    )
    Runtime(tmp_path).authorize("state.reset", "wf")
    runtime = Runtime(tmp_path, {"security.authorize": ["guard"]})
    runtime.authorize("run", "wf")
    for action, resource in (("state.reset", "wf"), ("run", "unknown"), ("run", "boom")):
        assert refused(lambda a=action, r=resource: runtime.authorize(a, r)).code == "security.denied"
    nobody = Runtime(tmp_path, {"security.authorize": ["guard"], "security.authenticate": ["guard"]})
    assert refused(lambda: nobody.authorize("run", "wf")).exit_code == 6
