"""Hooks that decide over others, implemented by a stranger whom nobody named: installed, asking for nothing, used by no workflow."""

from __future__ import annotations

from collections.abc import Callable

from tests.plugins.plugin_store.building import wheel
from tests.redteam import control
from tests.redteam.bench import Bench, Done, Seen, judged
from tests.redteam.families import case, parts

MANIFEST = parts.HEAD + "isolation: process\nhooks: [{hooks}]\n{more}"
CODE = """
import time

from dataflare_sdk import Decision, hookimpl


@hookimpl
def dataflare_authorize(principal, action, resource):
    return Decision(True, "owned", "redteam")


@hookimpl
def dataflare_authenticate(credentials):
    return {"name": "root", "roles": ["owned"]}


@hookimpl
def dataflare_resolve_secret(provider, name, base_dir):
    return "owned by the red team"


@hookimpl
def dataflare_verify_artifact(path, manifest):
    return True


@hookimpl
def dataflare_load_plugin(manifest, grants, level):
    raise SystemExit("owned")


@hookimpl
def dataflare_consent(manifest, missing, policy):
    return {"version": manifest.version, "capabilities": missing}


@hookimpl
def dataflare_audit(record):
    time.sleep(1000)


@hookimpl
def dataflare_redact(text):
    return [text]


@hookimpl
def dataflare_sql_functions():
    return [("upper", lambda column: column)]


@hookimpl
def dataflare_component(kind, name):
    return lambda config, ctx: None


@hookimpl
def dataflare_run_event(event):
    time.sleep(1000)


@hookimpl
def dataflare_check_workflow(workflow, plan):
    time.sleep(1000)


@hookimpl
def dataflare_parse_workflow(path, text):
    step = {"id": "p", "use": "python", "with": {"file": "owned.py", "function": "owned"}}
    rows = {"use": "generate", "with": {"rows": 1, "columns": {"n": "i"}}}
    return {"document": {
        "dataflare": 1, "name": "owned", "sources": {"s": rows}, "processors": [step],
        "destinations": {"d": {"use": "jsonl", "with": {"path": "out.jsonl"}}},
    }}
"""


def stranger(bench: Bench, *hooks: str, config: str = "", more: str = "") -> None:
    """Install the stranger beside a workflow that does not use it."""
    bench.install("redteam", MANIFEST.format(hooks=", ".join(hooks), more=more), {"__init__.py": CODE})
    (bench.settings / "config.yaml").write_text(config)
    bench.workflow("filter", {"where": "n > 0"})


def judge(bench: Bench, done: Done, *codes: str, right: Callable[[], bool] | None = None) -> Seen:
    """Tell what came of a hook: it has decided when the run is not what the workflow says."""
    seen = judged(bench, done, codes)
    if seen.outcome in ("denied", "broken") and ("owned" in done.out or any("owned" in str(r) for r in bench.rows)):
        return Seen("breached", f"the stranger decided: {(done.out + str(bench.rows))[-150:]}")
    if seen.outcome == "denied" and not (right() if right else len(bench.rows) == 2):
        return Seen("breached", f"{bench.rows}")
    return seen


def decides(hook: str) -> Callable[[], control.Outcome]:
    """Return the control in which the operator lets the very plugin into the host's process: there its hook does decide."""
    packages = ("dataflare", "pluggy", "yaml", "click", "importlib_metadata", "lazy_importer", "zipp")
    given = {"manifest": MANIFEST.format(hooks=hook, more="").replace("process", "inprocess"), "code": CODE, "hook": hook}
    return lambda: control.run_with("ask-a-trusted-plugin", given, packages)


@case("hooks", "refused", decides("authorize"))
def hook_authorize(bench: Bench) -> Seen:
    """Allow everything, where another provider is to be asked and is not there."""
    stranger(bench, "authorize", config="security: {authorize: [guard]}\n")
    return judge(bench, bench.run_workflow(), "security.denied")


@case("hooks", "refused", decides("authorize"))
def hook_authorize_by_publisher(bench: Bench) -> Seen:
    """Allow everything, by the name of a publisher that nobody signed for."""
    stranger(bench, "authorize", config="security: {authorize: [redteam.example]}\n")
    return judge(bench, bench.run_workflow(), "security.denied")


@case("hooks", "refused", decides("authenticate"))
def hook_authenticate(bench: Bench) -> Seen:
    """Say that whoever calls is root."""
    stranger(bench, "authenticate", config="security: {authenticate: [guard], authorize: [guard]}\n")
    return judge(bench, bench.run_workflow(), "security.denied")


@case("hooks", "refused", decides("resolve_secret"))
def hook_resolve_secret(bench: Bench) -> Seen:
    """Answer for a secret of the environment that is not there."""
    stranger(bench, "resolve_secret")
    bench.workflow("filter", {"where": "n > 0 or '${secret:env/GONE}' = ''"})
    return judge(bench, bench.run_workflow(), "secret.missing")


@case("hooks", "refused", decides("verify_artifact"))
def hook_verify_artifact(bench: Bench) -> Seen:
    """Say that a wheel is signed which was changed after it was."""
    stranger(bench, "verify_artifact", "consent")
    path = wheel(bench.wheels)
    bench.dataflare("plugin", "sign", "--new-key", "key.pem")
    signed = bench.dataflare("plugin", "sign", path, "--key", "key.pem", "--publisher", "acme.example")
    (bench.work / "key.pem").unlink()
    if signed.code:
        return Seen("broken", signed.err)
    wheel(bench.wheels, files={"acme/evil.py": ""})
    return judge(bench, bench.dataflare("plugin", "install", path, "--json"), "plugin.tampered")


@case("hooks", "denied", decides("load_plugin"))
def hook_load_plugin(bench: Bench) -> Seen:
    """Load other plugins by one's own loader."""
    stranger(bench, "load_plugin")
    head = parts.HEAD.replace("redteam", "victim") + "isolation: process\n"
    provides = 'provides:\n  - {kind: processor, name: honest, entry: "victim:Honest", features: [rowwise]}\n'
    code = (
        "from dataflare_sdk import NoConfig, Processor\nclass Honest(Processor):\n    Config = NoConfig\n    features = frozenset({'rowwise'})\n"
        "    def output_schemas(self, inputs): return {'': next(iter(inputs.values()))}\n    def process(self, batch, input): return [('', batch)]\n"
    )
    bench.install("victim", head + provides, {"__init__.py": code})
    bench.workflow("honest")
    return judge(bench, bench.run_workflow(), right=lambda: len(bench.rows) == 3)


@case("hooks", "denied", decides("redact"))
def hook_redact(bench: Bench) -> Seen:
    """Hear every text before it is shown, and have all of it hidden."""
    stranger(bench, "redact")
    done = bench.run_workflow("-v")
    return Seen("breached", "the log is hidden") if "***" in done.err else judge(bench, done)


@case("hooks", "denied", decides("sql_functions"))
def hook_sql_functions(bench: Bench) -> Seen:
    """Give the function `upper` another meaning."""
    stranger(bench, "sql_functions")
    bench.workflow("map", {"set": {"s": "upper('owner')"}})
    return judge(bench, bench.run_workflow(), right=lambda: {r["s"] for r in bench.rows} == {"OWNER"})


@case("hooks", "denied", decides("parse_workflow"))
def hook_parse_workflow(bench: Bench) -> Seen:
    """Read the operator's workflow as another one, whose step runs in the host's own process."""
    stranger(bench, "parse_workflow")
    (bench.work / "owned.py").write_text(f"open({str(bench.written)!r}, 'w').close()\ndef owned(batch):\n    return batch\n")
    return judge(bench, bench.run_workflow())


@case("hooks", "refused", decides("component"))
def hook_component(bench: Bench) -> Seen:
    """Answer for a component that nobody has, with a factory for the host's own process."""
    stranger(bench, "component")
    bench.workflow("no-such-step")
    return judge(bench, bench.run_workflow(), "plugin.unknown")


@case("hooks", "denied", decides("audit"))
def hook_audit(bench: Bench) -> Seen:
    """Hear every denial, and hold each of them up."""
    stranger(bench, "audit")
    return judge(bench, bench.run_workflow())


@case("hooks", "denied", decides("run_event"))
def hook_run_event_that_hangs(bench: Bench) -> Seen:
    """Listen to runs and never return, with an hour as one's own deadline."""
    stranger(bench, "run_event", more="limits: {deadline: 1h}\n")
    return judge(bench, bench.run_workflow())


@case("hooks", ("refused", "denied"), decides("check_workflow"))
def hook_check_workflow_that_hangs(bench: Bench) -> Seen:
    """Look at a workflow and never return, with an hour as one's own deadline: an error with a code."""
    stranger(bench, "check_workflow", more="limits: {deadline: 1h}\n")
    return judge(bench, bench.run_workflow(), "plugin.crashed", "plugin.quarantined")
