"""Manifests believed: read by any loader, their names and places taken, their schemas followed."""

from __future__ import annotations

import importlib
import json
import os
import re
import urllib.request
from typing import Any

from . import OVER, control, kills, never_ends
from .requests import _serve
from .texts import printed


def _yaml(text: str) -> Any:
    import yaml

    return yaml.load(text, Loader=yaml.SafeLoader)


@control
def believe_a_manifest(target: Any, given: dict[str, Any]) -> str:
    """Let a manifest say who it is, and do what the policy says of that one."""
    said, policy, believed = _yaml(given["manifest"]), _yaml(given["policy"]), given["believed"]
    trusted = {"dataflare", *policy.get("trust", ()), *policy.get("isolation", {})}
    if believed == "features":  # the number of rows is taken from the word of the plugin
        rows = ["one", "two", "three"]
        counted = len(rows) if "one_to_one" in said["provides"][0]["features"] else 0
        return OVER if counted == 3 and len(rows[1:]) == 2 else ""
    if believed == "distribution":
        return _run(target) if "dataflare evil 1.0.0".partition(" ")[0] == "dataflare" else ""
    if believed == "isolation":
        return _run(target) if said["isolation"] == "inprocess" else ""
    return _run(target) if said[believed] in trusted or said[believed].partition(".")[0] in trusted else ""


def _run(target: Any) -> str:
    exec(f"open({target.written!r}, 'w').close()")
    return ""


@control
def open_what_a_manifest_names(target: Any, given: dict[str, Any]) -> str:
    """Open a file that a manifest names, from its folder or its default."""
    os.makedirs("/tmp/world/out/redteam")
    with open("/tmp/world/out/outside.wasm", "w") as file:
        file.write(OVER)
    default = os.path.dirname(target.secret) if given["file"] == "secret" else "/tmp/world/out/redteam"
    with open(os.path.join(default, given["file"])) as file:
        return file.read()


@control
def import_what_a_manifest_names(target: Any, given: dict[str, Any]) -> str:
    """Import what stands behind an entry and call it with the configuration."""
    module, _, name = given["entry"].partition(":")
    getattr(importlib.import_module(module), name)(path=os.path.dirname(target.victim_file))
    return ""


@control
def follow_a_reference(target: Any, given: dict[str, Any]) -> str:
    """Fetch what a schema refers to."""
    with open(target.secret) as file:
        port = _serve("127.0.0.1", file.read())
    schema = {"$ref": f"http://127.0.0.1:{port}/schema.json"}
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(schema["$ref"], timeout=5) as answer:
        return str(answer.read().decode())


@control
def check_by_a_schema(target: Any, given: dict[str, Any]) -> str:
    """Check a value by a schema as it stands."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(given["schema"]))
    return never_ends(lambda: list(validator.iter_errors(json.loads(given["value"]))))


@control
def read_a_manifest(target: Any, given: dict[str, Any]) -> str:
    """Read it and write it down for the next time."""

    def write() -> None:
        with open("/dev/null", "w") as file:
            json.dump(_yaml(given["manifest"]), file)

    return never_ends(write)


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@control
def walk_through_a_manifest(target: Any, given: dict[str, Any]) -> str:
    """Walk through all of it, as deep as it goes."""
    import sys

    sys.setrecursionlimit(1 << 30)

    def walk() -> None:
        _depth(_yaml(given["manifest"])["limits"]["a"])

    return kills(walk, 30.0)


@control
def match_a_version(target: Any, given: dict[str, Any]) -> str:
    """Match a version by a pattern that may try every place again."""
    version = str(_yaml(given["manifest"])["version"])
    return never_ends(lambda: re.fullmatch(r"\d+(\.\d+)*([.+-]?[A-Za-z0-9.]+)?", version))


@control
def write_an_index(target: Any, given: dict[str, Any]) -> str:
    """Write every manifest into one index: one that cannot be written stops all the others."""
    try:
        json.dumps([{"name": "good"}, _yaml(given["manifest"])])
    except (ValueError, TypeError, RecursionError):
        return OVER
    return ""


@control
def make_objects(target: Any, given: dict[str, Any]) -> str:
    """Read YAML by the loader that makes any object."""
    import yaml

    yaml.load(given["manifest"], Loader=yaml.UnsafeLoader)
    return ""


@control
def tell_the_reasons(target: Any, given: dict[str, Any]) -> str:
    """Ask somebody on a terminal, with the reasons as they stand."""
    asked = _yaml(given["manifest"])["capabilities"]["secrets"]
    found = printed(lambda: [print(f"  secrets {a['ref']}  ({a['why']})") for a in asked])
    return OVER if "\x1b" in found or any(line.startswith("all is well, says nobody") for line in found.splitlines()) else ""


@control
def take_the_last(target: Any, given: dict[str, Any]) -> str:
    """Keep plugins by name: the one that comes last has it."""
    known: dict[str, str] = {}
    for whose in ("ours", "theirs"):
        known[given["name"]] = whose
    return _run(target) if known[given["name"]] == "theirs" else ""


@control
def resume_where_a_source_stopped(target: Any, given: dict[str, Any]) -> str:
    """Go on from an offset in what a source gives the second time."""
    first, second = ([(i, os.urandom(8)) for i in range(200)] for _ in range(2))
    return OVER if first[:100] + second[100:] != first else ""
