"""The same hooks of a plugin that the operator lets into the process."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

from . import OVER, control, never_ends

ARGUMENTS: dict[str, dict[str, Any]] = {
    "authorize": {"principal": {}, "action": "run", "resource": "w"}, "authenticate": {"credentials": {}},
    "resolve_secret": {"provider": "vault", "name": "x", "base_dir": Path()}, "verify_artifact": {"path": Path("x"), "manifest": None},
    "load_plugin": {"manifest": None, "grants": {}, "level": "process"}, "redact": {"text": "owned"}, "sql_functions": {},
    "parse_workflow": {"path": Path("w.yaml"), "text": ""}, "component": {"kind": "processor", "name": "x"}, "audit": {"record": {}},
    "run_event": {"event": None}, "check_workflow": {"workflow": None, "plan": None},
}  # fmt: skip


@control
def ask_a_trusted_plugin(target: Any, given: dict[str, Any]) -> str:
    """Install it, let it in by the policy, and ask it as the host does."""
    site, settings = Path("/tmp/world/out/site"), Path("/tmp/world/out/config/dataflare")
    (site / "redteam").mkdir(parents=True)
    settings.mkdir(parents=True)
    (site / "redteam" / "plugin.yaml").write_text(given["manifest"])
    (site / "redteam" / "__init__.py").write_text(given["code"])
    info = site / "redteam-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: redteam\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[dataflare.plugins]\nredteam = redteam\n")
    (settings / "policy.yaml").write_text("isolation: {redteam: inprocess}\n")
    os.environ.update({f"XDG_{v}_HOME": f"/tmp/world/out/{v.lower()}" for v in ("CONFIG", "CACHE", "DATA")})
    sys.path.append(str(site))
    from dataflare.contracts import Decision
    from dataflare.discovery import discover
    from dataflare.hookspecs import hookimpl
    from dataflare.plugins import PluginManager
    from dataflare.policy import Policy
    from dataflare.registry import Registry

    # All of the SDK that the plugin uses, without Arrow.
    sdk = types.ModuleType("dataflare_sdk")
    sdk.Decision, sdk.hookimpl = Decision, hookimpl  # type: ignore[attr-defined]
    sys.modules["dataflare_sdk"] = sdk
    plugins = PluginManager(Registry(discover().manifests), Policy.load("/tmp/world/out", settings))
    name = given["hook"]
    only = ["redteam"] if name in ("authorize", "authenticate", "resolve_secret") else None
    if name in ("audit", "run_event", "check_workflow"):
        return never_ends(lambda: plugins.hook(name, only=only, **ARGUMENTS[name]))
    try:
        answer = plugins.hook(name, only=only, **ARGUMENTS[name])
    except SystemExit as end:
        return OVER if end.code == "owned" else ""
    return OVER if answer or answer is True else ""
