"""What a plugin's classes declare, brought into its manifest: features and the schema of their configuration.

The author's code is imported for it, in this process: these verbs are for authors, on their own plugins. Modules of WebAssembly have
no classes: they are held to their manifest, which their author writes.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflare_sdk import NoConfig, code
from dataflare_sdk.fields import json_schema
from dataflare_sdk.plugins import read_manifest

NO_MANIFEST = code("scaffold.no-manifest", 4, "There is no plugin.yaml, or there are several.", "Name the folder of one plugin.")
NOT_LOADED = code("scaffold.not-loaded", 1, "A plugin's code cannot be imported.", "Mend it, or correct `entry` in plugin.yaml.")
_BLOCK = re.compile(r"^provides:.*\n(?:(?:[ \t-].*|[ \t]*)\n)*", re.MULTILINE)
_ORDER = ("kind", "name", "entry", "summary", "features", "config")


def find(folder: Path) -> Path:
    """Return the manifest of the plugin in a project's folder.

    Raises:
        DataflareError: `scaffold.no-manifest`.
    """
    found = [p for p in (folder / "plugin.yaml", *folder.glob("*/plugin.yaml"), *folder.glob("src/*/plugin.yaml")) if p.exists()]
    if len(found) != 1:
        names = ", ".join(str(p) for p in found)
        raise NO_MANIFEST.error(f"'{folder}' holds {f'several manifests: {names}' if found else 'no plugin.yaml'}", file=str(folder))
    return found[0]


def is_wasm(folder: Path) -> bool:
    """Return whether the plugin in a project's folder asks for the level `wasm`.

    Raises:
        DataflareError: `scaffold.no-manifest`.
    """
    import yaml

    try:
        raw = yaml.safe_load(find(folder).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return False
    return isinstance(raw, dict) and raw.get("isolation") == "wasm"


def verify_modules(folder: Path, load: Callable[..., Any]) -> None:
    """Hold each module of a WebAssembly plugin to its manifest, without running anything of it.

    It has to be there, export what its kind needs, and import nothing that the manifest does not ask for; a schema that is named
    has to be one. What a module describes when it runs depends on its configuration, so `plugin certify` looks at that.

    Args:
        folder: of the project.
        load: the hook `load_plugin`.

    Raises:
        DataflareError: `plugin.bad-manifest`, `wasm.*`, `scaffold.not-loaded`.
    """
    manifest = read_manifest(find(folder))
    loader = load(manifest=manifest, grants=manifest.capabilities, level="wasm")
    if loader is None:
        raise NOT_LOADED.error("nothing that is installed here loads WebAssembly")
    try:
        for component in manifest.provides:
            loader.factory(component.entry)
    finally:
        loader.close()


def wanted(folder: Path) -> dict[Path, str]:
    """Return what should stand in the manifest and in the files beside it, by path.

    Raises:
        DataflareError: `scaffold.*`.
    """
    import yaml

    path = find(folder)
    text = path.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
        listed = list(raw.get("provides") or ())
        names = [(c["kind"], c["name"], c["entry"]) for c in listed]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise NO_MANIFEST.error(f"'{path}' cannot be read: {error!r}", file=str(path)) from error
    made: dict[Path, str] = {}
    lines = ["provides:" if listed else "provides: []"]
    with _importable(path.parent):
        for component, (kind, name, entry) in zip(listed, names, strict=True):
            factory = _loaded(entry)
            several = [n for _, n, _ in names].count(name) > 1
            file = f"{name}.{kind}.schema.json" if several else f"{name}.schema.json"
            schema = _schema(factory)
            if schema is not None:
                made[path.parent / file] = schema
            lines.append(f"  - {_flow(_entry(component, factory, file if schema is not None else None))}")
    block = "\n".join(lines) + "\n"
    made[path] = _BLOCK.sub(lambda _: block, text, count=1) if _BLOCK.search(text) else text + block
    return made


def stale(folder: Path) -> list[Path]:
    """Return the files that do not say what the code says."""
    return [p for p, text in wanted(folder).items() if not p.exists() or p.read_text(encoding="utf-8") != text]


def refresh(folder: Path) -> list[Path]:
    """Write the manifest and the files beside it anew where they are stale; return those that were written."""
    texts = wanted(folder)
    changed = [p for p, text in texts.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(texts[path], encoding="utf-8")
    return changed


def _entry(component: Mapping[str, Any], factory: Any, config: str | None) -> dict[str, Any]:
    doc = (factory.__doc__ or "").strip().splitlines()
    made = {**component, "summary": component.get("summary") or (doc[0].rstrip(".") if doc else "")}
    if hasattr(factory, "features"):
        made["features"] = sorted(factory.features)
    if hasattr(factory, "Config"):
        made.pop("config", None)
        if config is not None:
            made["config"] = config
    return {k: made[k] for k in (*_ORDER, *sorted(made.keys() - set(_ORDER))) if k in made}


def _schema(factory: Any) -> str | None:
    config = getattr(factory, "Config", NoConfig)
    return None if config is NoConfig else json.dumps(json_schema(config), indent=2, sort_keys=True) + "\n"


def _flow(entry: Mapping[str, Any]) -> str:
    """Write one component on one line, as manifests do."""
    return "{" + ", ".join(f"{k}: {_scalar(v)}" for k, v in entry.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    text = str(value)
    if re.fullmatch(r"[a-z][a-z0-9_]*|[a-z][a-z0-9_.-]*\.schema\.json", text) and text not in _WORDS:
        return text
    return _BREAKS.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))


_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that YAML takes for breaks, or refuses, inside quotes too."""
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))


def _loaded(entry: str) -> Any:
    module, _, attribute = entry.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:
        raise NOT_LOADED.error(f"'{entry}': {type(error).__name__}: {error}") from error
    return found


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Let the package of a manifest be imported from where it lies, and forget it afterwards."""
    top = package
    while (top.parent / "__init__.py").exists():
        top = top.parent
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == top.name}
    for name in known:
        del sys.modules[name]
    sys.path.insert(0, str(top.parent.resolve()))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # looking at somebody's folder leaves nothing in it
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.pop(0)
        sys.dont_write_bytecode = writes
        for name in [n for n in sys.modules if n.partition(".")[0] == top.name]:
            del sys.modules[name]
        sys.modules.update(known)
