"""Manifests: what a `plugin.yaml` says, checked by own code, with nothing of the plugin touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dataflare.errors import DataflareError, Problem, code
from dataflare.policy import LEVELS, built_in
from dataflare.records import field, record
from dataflare.text import shown

__all__ = ["API_VERSION", "BUILT_IN", "KINDS", "Component", "Manifest", "read"]

API_VERSION = "1.0"
"""Version of the hook specs; a manifest's `api` range must contain it."""

BUILT_IN = "dataflare"
"""The distribution whose plugins are built in: their names win and their manifests are their grants."""

# fmt: off
KINDS = (
    "source", "destination", "processor", "executor", "parser", "validator", "monitor", "error_handler", "recovery",
    "resources", "observers", "actor_system", "state_store", "expression_engine", "lookup", "format", "filesystem", "command",
)
# fmt: on
"""Kinds of component a manifest may provide."""

# What an entry of each capability may say; the first key names what is asked for.
_ENTRIES = {"net": ("host", "port", "private"), "fs": ("path", "mode"), "env": ("name",), "secrets": ("ref", "hosts")}
CAPABILITIES = (*_ENTRIES, "state", "host")

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 32
MAX_TEXT = 2_000
MAX_NAME = 120
"""What a manifest may hold at most: whoever lists plugins reads everybody's."""

BAD_MANIFEST = code(
    "plugin.bad-manifest",
    3,
    "A plugin's `plugin.yaml` is not a manifest.",
    "Mend it, or ask the plugin's publisher to.",
)

# Keys of each part of a manifest, with the type their value must have; a star marks what is required.
_KEYS: dict[str, tuple[type, bool]] = {
    "manifest": (int, True),
    "name": (str, True),
    "version": (str, True),
    "api": (str, True),
    "publisher": (str, True),
    "isolation": (str, False),
    "native": (bool, False),
    "provides": (list, False),
    "hooks": (list, False),
    "capabilities": (dict, False),
    "limits": (dict, False),
}
_COMPONENT_KEYS: dict[str, tuple[type, bool]] = {
    "kind": (str, True),
    "name": (str, True),
    "entry": (str, True),
    "summary": (str, False),
    "features": (list, False),
    "config": (str, False),
}
_TYPE_NAMES = {int: "a whole number", str: "text", list: "a list", dict: "a mapping", bool: "true or false"}


@record
class Component:
    """One entry of `provides`.

    Attributes:
        kind: one of `KINDS`.
        name: what a workflow says in `use:`.
        entry: `module:attribute` of its factory (a file name for WASM).
        summary: one line for people.
        features: what it can do, see the contract of its kind.
        config: file with the JSON Schema of its configuration, beside the manifest.
    """

    kind: str
    name: str
    entry: str
    summary: str = ""
    features: tuple[str, ...] = ()
    config: str | None = None


@record
class Manifest:
    """A plugin as its manifest describes it.

    Attributes:
        name: the plugin's name, like a distribution's.
        version: its version.
        api: range of hook spec versions it works with.
        publisher: who made it, by their own word.
        isolation: level it asks for: `inprocess`, `process` or `wasm`.
        provides: its components.
        hooks: event hooks it implements, without their `dataflare_` prefix.
        capabilities: what it asks for, by kind (`secrets`, `state`, `net` …).
        limits: resource limits it asks for.
        native: brings native code.
        hash: hash of the manifest's bytes.
        package: the package its entry point names.
        folder: where the manifest lies.
        origin: the distribution it came in, name and version; `store:NAME VERSION` for the plugin store.
        site: folder of the store with the plugin's packages and its dependencies; empty: they are where Python looks.
        signer: publisher whose signature was verified when it came into the store.
    """

    name: str
    version: str
    api: str
    publisher: str
    isolation: str = "inprocess"
    provides: tuple[Component, ...] = ()
    hooks: tuple[str, ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    native: bool = False
    hash: str = ""
    package: str = ""
    folder: str = ""
    origin: str = ""
    site: str = ""
    signer: str = ""

    @property
    def built_in(self) -> bool:
        """Whether it came with DataFlare itself; told by its distribution, never by its own word."""
        return built_in(self)

    def known_as(self, name: str) -> bool:
        """Return whether an operator may mean this plugin by `name`: plugin, publisher, or its first label."""
        return name in (self.name, self.publisher, self.publisher.partition(".")[0])

    def to_json(self) -> dict[str, Any]:
        """Return the plain values that `from_json` reads back; the form kept in the cached index."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["provides"] = [[getattr(c, f.name) for f in fields(c)] for c in self.provides]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """Return the manifest that `to_json` wrote."""
        provides = tuple(Component(k, n, e, s, tuple(f), c) for k, n, e, s, f, c in plain["provides"])
        return cls(**{**plain, "provides": provides, "hooks": tuple(plain["hooks"])})


def read(path: Path, *, package: str = "", origin: str = "", site: str = "", signer: str = "") -> Manifest:
    """Read and check a `plugin.yaml`.

    Args:
        path: the file.
        package: the package it describes.
        origin: the distribution it came in, name and version.
        site: folder of the store it lies in.
        signer: publisher whose signature was verified.

    Raises:
        DataflareError: `plugin.bad-manifest`, with every problem that was found.
        OSError: the file cannot be read.
    """
    import hashlib

    import yaml

    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BAD_MANIFEST.error(f"the manifest is larger than {MAX_BYTES} bytes", file=str(path))
    try:
        raw = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = {"line": mark.line + 1, "column": mark.column + 1} if mark else {}
        reason = getattr(error, "problem", None) or "it is no YAML"
        raise BAD_MANIFEST.error(f"the manifest cannot be read: {reason}", file=str(path), **place) from None
    except (ValueError, OverflowError, RecursionError) as error:  # a date that is none, a number without end, nested too deep
        raise BAD_MANIFEST.error(f"the manifest cannot be read: {type(error).__name__}", file=str(path)) from None
    problems = _Checker(str(path)).check(raw)
    if problems:
        raise DataflareError(*problems)
    known = {"package": package, "folder": str(path.parent), "site": site, "signer": signer}
    manifest = _build(raw, hash="sha256:" + hashlib.sha256(data).hexdigest(), **known)
    return _judge(manifest, origin, str(path))


def _build(raw: Mapping[str, Any], **known: Any) -> Manifest:
    provides = tuple(Component(**{**c, "features": tuple(c.get("features", ()))}) for c in raw.get("provides", ()))
    rest = {k: v for k, v in raw.items() if k not in ("manifest", "provides", "hooks")}
    hooks = tuple(str(h).removeprefix("dataflare_") for h in raw.get("hooks", ()))
    return Manifest(provides=provides, hooks=hooks, **rest, **known)


def _judge(manifest: Manifest, origin: str, file: str) -> Manifest:
    """Return the manifest with its origin, unless it is for another API or poses as somebody else."""
    from dataclasses import replace

    from dataflare.versions import in_range

    made = replace(manifest, origin=origin)
    if not in_range(API_VERSION, made.api):
        raise BAD_MANIFEST.error(f"it is made for API {made.api}, this is {API_VERSION}", file=file, path="api")
    if made.built_in or not origin:
        return made
    if made.publisher.partition(".")[0] == BUILT_IN:
        raise BAD_MANIFEST.error(f"it names {BUILT_IN!r} as publisher, but came in {origin!r}", file=file, path="publisher")
    name, came = _canonical(made.name), _canonical(origin.partition(" ")[0].removeprefix("store:"))
    if name != came and not name.startswith(came + "-"):
        raise BAD_MANIFEST.error(f"it names itself {made.name!r}, but came in {origin!r}", file=file, path="name")
    return made


def _canonical(name: str) -> str:
    """Return the name of a distribution in the one form that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _Checker:
    """Collects every problem of one manifest."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        # Aliases of YAML make much out of little, and values that hold themselves.
        self.left = MAX_VALUES

    def check(self, raw: Any) -> list[Problem]:
        if not isinstance(raw, dict):
            self.say("a manifest is a mapping", None)
            return self.problems
        self.printable(raw)
        if self.left < 0:
            self.problems = [BAD_MANIFEST.problem("it says too much, or refers to itself", file=self.file)]
            return self.problems
        self.keys(raw, _KEYS, "")
        self.choice(raw, "manifest", (1,), "")
        self.choice(raw, "isolation", LEVELS, "")
        self.text(raw.get("name"), r"[A-Za-z0-9][A-Za-z0-9._-]*", "name")
        self.text(raw.get("version"), r"\d+(\.\d+)*([.+-]?[A-Za-z0-9.]+)?", "version")
        self.text(raw.get("api"), r"[\d.,<>=!~ ]+", "api")
        for i, component in enumerate(self.listed(raw, "provides")):
            self.component(component, f"provides[{i}]")
        for i, hook in enumerate(self.listed(raw, "hooks")):
            self.text(hook, r"[a-z_]+", f"hooks[{i}]")
        self.capabilities(raw.get("capabilities"))
        return self.problems

    def printable(self, value: Any, path: str = "", depth: int = 0) -> None:
        """Refuse text that would do something to the terminal it is shown on, and what never ends."""
        self.left = self.left - 1 if depth < MAX_DEPTH and not _endless(value) else -1
        if self.left < 0:
            return
        if isinstance(value, str) and value != shown(value):
            self.say("it holds control characters", path or None)
        elif isinstance(value, str) and ("\n" in value or len(value) > MAX_TEXT):
            # A second line could look like one that is not the plugin's own: of the question whether it may do something.
            self.say(f"expected one line of at most {MAX_TEXT} characters", path or None)
        if isinstance(value, list):
            for i, inner in enumerate(value):
                self.printable(inner, f"{path}[{i}]", depth + 1)
        if isinstance(value, dict):
            for key, inner in value.items():
                if _endless(key):
                    self.left = -1
                    return
                self.printable(str(key), path)
                self.printable(inner, f"{path}.{shown(str(key))}" if path else shown(str(key)), depth + 1)

    def component(self, raw: Any, path: str) -> None:
        if not isinstance(raw, dict):
            self.say("expected a mapping with kind, name and entry", path)
            return
        self.keys(raw, _COMPONENT_KEYS, path + ".")
        self.choice(raw, "kind", KINDS, path + ".")
        self.text(raw.get("name"), r"[A-Za-z][A-Za-z0-9_-]*", path + ".name")
        for i, feature in enumerate(self.listed(raw, "features")):
            self.text(feature, r"[a-z][a-z0-9_:]*", f"{path}.features[{i}]")

    def capabilities(self, raw: Any) -> None:
        if not isinstance(raw, dict):
            return
        for name, asked in raw.items():
            wanted = dict if name == "state" else list
            if name not in CAPABILITIES:
                self.say(f"{name!r} is no capability{_nearest(str(name), CAPABILITIES)}", f"capabilities.{name}")
            elif not isinstance(asked, wanted):
                self.say(f"expected {_TYPE_NAMES[wanted]}", f"capabilities.{name}")
            elif name in _ENTRIES and isinstance(asked, list):
                self.entries(name, asked)
            elif name == "host" and not all(isinstance(entry, str) for entry in asked):
                self.say("expected names of host functions", "capabilities.host")
            elif name == "state" and set(asked) - {"max_bytes", "why"}:
                self.say("state has the key `max_bytes`", "capabilities.state")

    def entries(self, name: str, asked: list[Any]) -> None:
        keys = _ENTRIES[name]
        for i, entry in enumerate(asked):
            path = f"capabilities.{name}[{i}]"
            if not isinstance(entry, dict) or not isinstance(entry.get(keys[0]), str):
                self.say(f"expected a mapping with `{keys[0]}`", path)
                continue
            for key in set(entry) - {*keys, "why"}:
                self.say(f"{key!r} is no key of {name}{_nearest(str(key), keys)}", f"{path}.{key}")
            if entry.get("mode") not in (None, "ro", "rw"):
                self.say("expected ro or rw", f"{path}.mode")

    def keys(self, raw: dict[Any, Any], known: dict[str, tuple[type, bool]], under: str) -> None:
        for key in raw:
            if key not in known:
                self.say(f"{key!r} is no key of a manifest{_nearest(str(key), known)}", f"{under}{key}")
        for key, (wanted, required) in known.items():
            if key not in raw:
                if required:
                    self.say(f"{key!r} is missing", under + key)
            elif not isinstance(raw[key], wanted) or (wanted is int and isinstance(raw[key], bool)):
                quoted = "; put it in quotes" if wanted is str else ""
                self.say(f"expected {_TYPE_NAMES[wanted]}{quoted}", under + key)

    def choice(self, raw: dict[str, Any], key: str, allowed: Any, under: str) -> None:
        if key in raw and isinstance(raw[key], _TYPE_SCALARS) and raw[key] not in allowed:
            self.say(f"expected one of {', '.join(map(str, allowed))}, found {raw[key]!r}", under + key)

    def text(self, value: Any, pattern: str, path: str) -> None:
        if isinstance(value, str) and len(value) > MAX_NAME:  # the longer it is, the longer the pattern takes
            self.say(f"expected at most {MAX_NAME} characters", path)
        elif isinstance(value, str) and not re.fullmatch(pattern, value):
            self.say(f"{value!r} is not of the form {pattern}", path)
        elif value is not None and not isinstance(value, str) and "[" in path:
            self.say("expected text", path)

    def listed(self, raw: dict[str, Any], key: str) -> list[Any]:
        value = raw.get(key)
        return value if isinstance(value, list) else []

    def say(self, message: str, path: str | None) -> None:
        self.problems.append(BAD_MANIFEST.problem(message, file=self.file, path=path))


def _endless(value: Any) -> bool:
    """Return whether a number is larger than anything a manifest counts; Python refuses to write the largest down."""
    return isinstance(value, int) and value.bit_length() > 64


_TYPE_SCALARS = (str, int)


def _nearest(name: str, known: Any) -> str:
    import difflib

    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""
