"""What API 1.0 is, read off the code: hooks, contracts, the SDK's public rooms. Run as a module it adds what is new to api.json."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "api.json"
ROOMS = (
    "dataflare_sdk", "dataflare_sdk.atomic", "dataflare_sdk.checkpoints", "dataflare_sdk.claim", "dataflare_sdk.commands",
    "dataflare_sdk.expressions", "dataflare_sdk.fence", "dataflare_sdk.fields", "dataflare_sdk.offsets", "dataflare_sdk.plans",
    "dataflare_sdk.platform", "dataflare_sdk.rows", "dataflare_sdk.schema", "dataflare_sdk.state_sql", "dataflare_sdk.state_store",
    "dataflare_sdk.testing",
)  # fmt: skip
"""Modules of the SDK that a plugin from outside may import; the others serve the built-ins and may change."""

Parameter = list[Any]
"""Name, whether it must be given, whether by keyword only."""


def parameters(function: Any) -> list[Parameter]:
    """Return the parameters of a function, without `self`."""
    found = []
    for name, p in inspect.signature(function).parameters.items():
        if name not in ("self", "cls"):
            loose = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            found.append([name, p.default is p.empty and not loose, p.kind is p.KEYWORD_ONLY])
    return found


def described(thing: Any) -> dict[str, Any]:
    """Return what of a thing others rely on."""
    if not inspect.isclass(thing):
        return {"call": parameters(thing)} if inspect.isfunction(thing) else {}
    made: dict[str, Any] = {"attributes": sorted(_attributes(thing)), "methods": {}}
    if dataclasses.is_dataclass(thing):
        must = (dataclasses.MISSING, dataclasses.MISSING)
        made["fields"] = [[f.name, (f.default, f.default_factory) == must, bool(f.kw_only)] for f in dataclasses.fields(thing)]
    elif "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False):
        made["call"] = parameters(thing.__init__)
    for name in dir(thing):
        member = inspect.getattr_static(thing, name)
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("dataflare"):
            made["methods"][name] = parameters(function)
    return made


def _attributes(thing: type) -> set[str]:
    named = {n for c in thing.__mro__ if c.__module__.startswith("dataflare") for n in inspect.get_annotations(c)}
    named |= {n for n in dir(thing) if isinstance(inspect.getattr_static(thing, n), property)}
    return {n for n in named if not n.startswith("_")}


def _room(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [
        n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", None) == name
    ]
    return {n: described(getattr(module, n)) for n in sorted(names)}


def current() -> dict[str, Any]:
    """Return the API as it is now."""
    from dataflare import contracts, hookspecs, manifest

    hooks = {n.removeprefix("dataflare_"): parameters(f) for n, f in vars(hookspecs).items() if n.startswith("dataflare_")}
    return {
        "hooks": hooks,
        "kinds": sorted(manifest.KINDS),
        "manifest": sorted(manifest._KEYS),
        "component": sorted(manifest._COMPONENT_KEYS),
        "capabilities": sorted(manifest.CAPABILITIES),
        "contracts": {n: described(getattr(contracts, n)) for n in sorted(contracts.__all__)},
        "rooms": {name: _room(name) for name in ROOMS},
    }


def breaks(was: Any, now: Any, where: str = "") -> list[str]:
    """Return what somebody who relied on `was` misses in `now`; what is new does not count."""
    if isinstance(was, dict):
        gone = [f"{where}{k} is gone" for k in was if k not in now]
        return gone + [b for k in was if k in now for b in breaks(was[k], now[k], f"{where}{k}.")]
    if (was and isinstance(was[0], list)) or (now and isinstance(now[0], list)):
        return _call_breaks(was, now, where.rstrip("."))
    return [f"{where}{name} is gone" for name in was if name not in now]


def _call_breaks(was: list[Parameter], now: list[Parameter], where: str) -> list[str]:
    found = []
    by_place = [p[0] for p in now if not p[2]]
    for i, name in enumerate(p[0] for p in was if not p[2]):
        if i >= len(by_place) or by_place[i] != name:
            found.append(f"{where}: '{name}' is not number {i + 1} any more")
    known = {p[0]: p for p in was}
    present = {p[0]: p for p in now}
    found += [f"{where}: '{n}' is gone" for n, p in known.items() if p[2] and n not in present]
    for name, must, _ in now:
        if must and not (name in known and known[name][1]):
            found.append(f"{where}: '{name}' must be given now")
    return found


def main() -> int:
    """Add what is new to the record."""
    now = current()
    lost = breaks(json.loads(FILE.read_text(encoding="utf-8")), now) if FILE.exists() else []
    for line in lost:
        print(line, file=sys.stderr)
    if not lost:
        FILE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
