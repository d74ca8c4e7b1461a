"""`dataflare doctor`: what is installed, what is missing, and how to mend it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from dataflare_sdk.commands import Invocation, Runtime, verb

Check = dict[str, Any]


@click.command("doctor")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@verb
def doctor(call: Invocation, file: Path | None) -> int:
    """Check the installation, and with FILE whether its sources and destinations can be reached."""
    with call.runtime(file.parent if file else ".") as runtime:
        checks = [_python(), *_libraries(), *_plugins(runtime), _folder(Path(file.parent if file else "."))]
        if file is not None:
            checks += _nodes(runtime, file)
    healthy = all(c["ok"] for c in checks)
    call.emit({"dataflare": 1, "command": "doctor", "healthy": healthy, "checks": checks})
    if not call.json:
        for c in checks:
            call.say(f"{'ok ' if c['ok'] else 'BAD'} {c['name']}: {c['detail']}" + (f"\n      fix: {c['fix']}" if c["fix"] else ""))
    return 0 if healthy else 4


def _check(name: str, ok: bool, detail: str, fix: str | None = None) -> Check:
    return {"name": name, "ok": ok, "detail": detail, "fix": None if ok else fix}


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return _check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _libraries() -> list[Check]:
    from importlib.metadata import PackageNotFoundError, version

    made = []
    for name in ("dataflare", "duckdb", "pyarrow"):
        try:
            made.append(_check(name, True, version(name)))
        except PackageNotFoundError:
            made.append(_check(name, False, "is not installed", f"pip install {name}"))
    return made


def _plugins(runtime: Runtime) -> list[Check]:
    from dataflare_sdk import DataflareError

    made = []
    for entry, origin, reason in (b[:3] for b in runtime.found.broken):
        made.append(_check(f"plugin {entry}", False, f"{reason} ({origin})", "install it again"))
    for provided in runtime.host.provided():
        if provided.kind in ("source", "destination", "processor"):
            try:
                runtime.host.factory(provided.kind, provided.name)
            except DataflareError as error:
                made.append(_check(f"{provided.kind} {provided.name}", False, error.problems[0].message, error.problems[0].fix))
    return made or [_check("plugins", True, f"{len({p.plugin for p in runtime.host.provided()})} plugins, all complete")]


def _folder(folder: Path) -> Check:
    import os

    free = shutil.disk_usage(folder).free
    ok = os.access(folder, os.W_OK) and free > 100 << 20
    return _check(
        "folder",
        ok,
        f"{free >> 20:,} MiB free, {'writable' if os.access(folder, os.W_OK) else 'not writable'}",
        "free space, or run elsewhere",
    )


def _nodes(runtime: Runtime, file: Path) -> list[Check]:
    """Reach every source and destination of a workflow."""
    from dataflare_sdk import DataflareError, Surroundings

    workflow = runtime.parse(file)
    base = Path(workflow.base_dir)
    made = []
    for node in workflow.nodes:
        if node.kind == "processor":
            continue
        around = Surroundings(node=node.id, base_dir=base, staging_dir=base / ".dataflare" / "staging" / node.id, path=(*node.path, "with"))
        name = f"{node.kind} {node.id}"
        try:
            built = runtime.host.build(node.kind, node.use, node.config, around)
            try:
                built.check()
            finally:
                built.close()
            made.append(_check(name, True, f"{node.use} can be reached"))
        except DataflareError as error:
            made.append(_check(name, False, error.problems[0].message, error.problems[0].fix))
    return made
