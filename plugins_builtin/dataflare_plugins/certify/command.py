"""`dataflare plugin certify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflare_sdk import CODES, DataflareError, code
from dataflare_sdk.commands import Invocation, Runtime, verb
from dataflare_sdk.plugins import LOCK, Policy

if TYPE_CHECKING:
    from dataflare_plugins.certify.asked import Certificate
    from dataflare_plugins.certify.checking import Result

NOTHING = code("certify.nothing", 4, "Nothing of a plugin could be checked.", "See the reasons; write a certify.yaml.")
BROKEN = code("certify.failed", 1, "A plugin does not keep to its contracts.", "See the checks that failed.")
LEVELS = ("inprocess", "process", "wasm")


@click.command("certify")
@click.argument("name")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="The certify.yaml; by default beside plugin.yaml.")
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Only at this isolation level; may be repeated.")
@click.option("--limit", type=float, default=60.0, help="Seconds a check may take.", show_default=True)
@click.option("--no-crashes", is_flag=True, help="Leave out the workflows: those that are killed, and drift.")
@verb
def certify(call: Invocation, name: str, config: Path | None, levels: tuple[str, ...], limit: float, no_crashes: bool) -> int:
    """Hold the installed plugin NAME to the contracts of its kinds, at the isolation level its manifest asks for.

    The policy in force decides: in-process only what it trusts by name. `--level` asks for others. `certify.yaml` gives each
    component a configuration.
    """
    from dataflare_plugins.certify.asked import read
    from dataflare_plugins.certify.checking import FAILED, PASSED

    with call.runtime() as runtime:
        manifest = next((m for m in runtime.found.manifests if m.name == name), None)
        if manifest is None:
            raise CODES["plugin.unknown"].error(f"no plugin {name!r} is installed", fix="see: dataflare plugin list")
        certificate = read(config if config is not None else Path(manifest.folder) / "certify.yaml")
    seen: dict[str, str] = {}
    results: list[Result] = []
    for level in levels or LEVELS:
        if not levels and level != manifest.isolation:
            seen[level] = f"not run: the manifest asks for {manifest.isolation}"
            continue
        for result in _at(call, manifest, level, certificate, limit, not no_crashes, seen):
            results.append(result)
            if not call.json and (result.status != PASSED or call.verbosity > 0):
                call.say(f"{result.component} {result.level} {result.check}: {result.status}: {result.reason}".rstrip(": "))
    counts = Counter(r.status for r in results)
    document = {
        "dataflare": 1, "command": "plugin certify", "plugin": name, "version": manifest.version, "hash": manifest.hash,
        "levels": seen, "certified": bool(counts[PASSED]) and not counts[FAILED],
        "passed": counts[PASSED], "failed": counts[FAILED], "not_run": counts["not run"],
        "checks": [r.to_json() for r in results],
    }  # fmt: skip
    problem = _problem(name, counts[PASSED], counts[FAILED], seen)
    call.emit({**document, "error": problem and problem.problems[0].to_json()})
    if not call.json:
        call.say("\n".join(f"{level}: {how}" for level, how in seen.items()))
        call.say(f"{name} {manifest.version}: {counts[PASSED]} passed, {counts[FAILED]} failed, {counts['not run']} not run")
        call.report(problem.problems if problem else ())
    return problem.exit_code if problem else 0


def _problem(name: str, passed: int, failed: int, levels: dict[str, str]) -> DataflareError | None:
    if failed:
        return BROKEN.error(f"{name}: {failed} checks failed")
    return None if passed else NOTHING.error(f"{name}: {'; '.join(f'{k}: {v}' for k, v in levels.items())}")


def _at(
    call: Invocation, manifest: Any, level: str, certificate: Certificate, limit: float, crashes: bool, seen: dict[str, str]
) -> Iterator[Result]:  # fmt: skip
    """Check every component of a plugin at one level; say in `seen` how the level went."""
    from dataflare_plugins.certify.checking import KINDS, Checker
    from dataflare_plugins.certify.crashes import crash
    from dataflare_plugins.certify.strain import drift, sandbox

    with call.runtime() as runtime:
        loader = _loaded(runtime, replace(manifest, isolation=level), level, seen)
        if loader is None:
            return
        checker = Checker(runtime, loader.factory, level, certificate, limit)
        allowed = _allowed(runtime.plugins.policy, manifest, level)
        # A workflow runs a plugin at the level the policy gives it, so the kills belong to that one.
        own = runtime.plugins.load(manifest).level == level
        for component in manifest.provides:
            if component.kind in KINDS:
                yield from checker.check(component)
                if crashes and own:
                    yield from crash(component, certificate, level, allowed, checker.read_back)
                    yield from drift(component, certificate, level, allowed, checker.read_back)
        yield from sandbox(manifest.name, level, getattr(loader, "report", None))


def _allowed(policy: Policy, manifest: Any, level: str) -> dict[str, dict[str, Any]]:
    """Return the files that let a plugin do elsewhere what it may do here, and no more."""
    said: dict[str, Any] = {"deny": [*policy.deny], "min_level": policy.min_level}
    if policy.trusts(manifest):
        said |= {"trust": [manifest.name], "isolation": {manifest.name: level}}
    entry = policy.locks.get(manifest.name)
    return {"policy.yaml": said, **({LOCK: {"lock": 1, "plugins": {manifest.name: dict(entry)}}} if entry else {})}


def _loaded(runtime: Runtime, manifest: Any, level: str, seen: dict[str, str]) -> Any:
    """Load a plugin at a level; None where this cannot be had, with the reason in `seen`."""
    if level == "inprocess" and runtime.plugins.policy.level(manifest) != level:
        seen[level] = "not run: the policy does not trust it"
        return None
    try:
        loader = runtime.plugins.load(manifest)
    except DataflareError as error:
        seen[level] = f"not run: {error.problems[0].message}"
        return None
    if loader.level != level:
        seen[level] = "not run: nothing that is installed here gives this level"
        return None
    seen[level] = "run"
    return loader
