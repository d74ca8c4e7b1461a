"""What a worker sees of the file system: the interpreter, what the SDK needs, the plugin, and what was granted."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dataflare_sdk.fields import parse_duration, parse_size

__all__ = ["Around", "confined_policy", "import_paths", "plugin_code"]

_SHARED = ("dataflare", "dataflare_sdk", "pyarrow", "numpy", "duckdb", "_duckdb", "pluggy", "yaml", "_yaml")
"""What every worker has of the host's packages, read-only: the SDK and what it stands on."""
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache")
_WITH_NETWORK = ("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/usr/share/ca-certificates", "/etc/pki/tls/certs", "/etc/pki/ca-trust")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_HIDDEN = ("/usr/lib/python3/dist-packages",)
_CANARIES = ("/etc/group", "/etc/os-release", "/etc/hostname")
_FAKE = "198.18."
"""Addresses that granted names have in a worker: of the range for benchmarks, which no real host has."""
_SCRATCH = "/scratch"
_MOST_NAMES = 60_000

_DEFAULTS = {"memory": "512MiB", "deadline": "30s", "open_files": 128, "threads": 16, "scratch": "64MiB", "file": "4GiB"}
# A manifest is the plugin's own word: it may ask for less than this, not for more.
_MOST_MEMORY, _MOST_SCRATCH, _MOST_FILE, _MOST_DEADLINE, _MOST_FILES, _MOST_THREADS = 64 << 30, 1 << 30, 1 << 40, 3600.0, 4096, 256


class Around:
    """Limits and grants of one worker in the terms of the kernel.

    Args:
        limits: the manifest's.
        grants: what the operator granted, made concrete by the node's configuration.
        base_dir: where relative paths start.

    Raises:
        ValueError: a limit is none.
    """

    def __init__(self, limits: Mapping[str, Any], grants: Mapping[str, Any], base_dir: Path) -> None:
        told = {**_DEFAULTS, **{k: v for k, v in limits.items() if v is not None}}
        self.memory = min(_size(told["memory"]), _MOST_MEMORY)
        self.scratch = min(_size(told["scratch"]), _MOST_SCRATCH)
        self.file = min(_size(told["file"]), _MOST_FILE)
        self.deadline = min(_seconds(told["deadline"]), _MOST_DEADLINE)
        self.open_files = min(max(32, int(told["open_files"])), _MOST_FILES)
        self.threads = min(max(1, int(told["threads"])), _MOST_THREADS)
        # Of a worker's whole life, in whole seconds; without it only the deadline of each call holds.
        self.cpu = None if told.get("cpu") is None else max(1, round(_seconds(told["cpu"])))
        # Of one call, in all threads.
        self.cpu_per_batch = None if told.get("cpu_per_batch") is None else _seconds(told["cpu_per_batch"])
        self.net: list[Mapping[str, Any]] = [g for g in grants.get("net", ()) if isinstance(g, Mapping) and "host" in g]
        self.env = {
            e["name"]: os.environ[e["name"]] for e in grants.get("env", ()) if isinstance(e, Mapping) and e.get("name") in os.environ
        }
        paths = [
            (os.path.abspath(base_dir / str(f["path"])), "rw" if f.get("mode") == "rw" else "ro")  # noqa: PTH100 - links stay as given
            for f in grants.get("fs", ())
            if isinstance(f, Mapping) and f.get("path")
        ]
        # A folder before what lies in it, or it would cover that.
        self.paths: list[tuple[str, str]] = sorted(paths, key=lambda p: p[0].count("/"))

    def names(self) -> dict[str, str]:
        """Return the address that each granted name has inside, name to address."""
        hosts = dict.fromkeys(str(g["host"]).lower() for g in self.net if _is_name(str(g["host"])))
        return {name: f"{_FAKE}{i // 250}.{i % 250 + 1}" for i, name in enumerate(list(hosts)[:_MOST_NAMES])}

    def limits(self) -> dict[str, Any]:
        """Return the resource limits of the process."""
        return {"memory": self.memory, "cpu": self.cpu, "open_files": self.open_files, "threads": self.threads, "file": self.file}


def confined_policy(around: Around, plugin: Iterable[str], paths: Iterable[str], scratch: Path | None) -> dict[str, Any]:
    """Return the policy a worker confines itself by.

    Args:
        around: limits and grants.
        plugin: folders and files of the plugin's code.
        paths: folders it is imported from.
        scratch: the node's staging folder, or None.
    """
    binds = [*_interpreter(), *_read_only([*_packages(), *plugin], owned=True)]
    # A folder of imports is listed whole; of what lies in it in the host only what was bound is there.
    read = [*(b["to"] for b in binds if b["mode"] != "hide"), "/etc", *import_paths(), *paths]
    write = ["/dev/null"]
    if around.net:
        certificates = _read_only(p for p in _WITH_NETWORK if Path(p).exists())
        binds += certificates
    binds += [{"from": d, "to": d, "mode": "dev"} for d in _DEVICES if Path(d).exists()]
    read += list(_DEVICES)
    for path, mode in around.paths:
        if mode == "rw" and not Path(path).exists():
            Path(path).mkdir(parents=True)
        if Path(path).exists():
            binds.append({"from": path, "to": path, "mode": mode, "owned": True})
            (write if mode == "rw" else read).append(path)
    if scratch is not None:
        # The folder of all claims is there, or a claim that another run renames would still be found; only one is open.
        claims = scratch.parent.parent
        binds.append({"from": str(claims), "to": str(claims), "mode": "rw", "owned": True})
        write += [str(scratch)] if scratch.exists() else []
    # What may be written below a folder may be written in all that is put there: scratch lies beside, never above.
    own = _SCRATCH if any(b["to"].startswith("/tmp/") for b in binds) else "/tmp"  # noqa: S108
    write.append(own)
    names = around.names()
    hosts = "".join(f"{address} {name}\n" for name, address in names.items())
    return {
        "binds": binds,
        "files": {
            "/etc/hosts": f"{hosts}127.0.0.1 localhost\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
            "/etc/resolv.conf": "",
            "/etc/passwd": "plugin:x:65534:65534::/:/\n",
        },
        "read": [p for p in dict.fromkeys(read) if p in write or p == "/etc" or Path(p).exists()],
        "write": write,
        "scratch": own,
        "size": around.scratch,
        "limits": around.limits(),
        "canary": next((c for c in _CANARIES if Path(c).exists()), _CANARIES[0]),
    }


def import_paths() -> list[str]:
    """Return the folders a worker imports the SDK and this plugin from."""
    homes = [str(Path(p).parent) for p in _packages()]
    own = Path(__file__).parents[3]
    return list(dict.fromkeys([*homes, str(own)]))


def plugin_code(package: str, folder: str, origin: str) -> tuple[list[str], list[str]]:
    """Return where a plugin's code lies, and the folders to import it from.

    A plugin in a store of its own sees the whole store. One that was installed beside the host's packages sees itself
    and what its distribution requires.

    Args:
        package: the package its entry point names.
        folder: where its manifest lies.
        origin: its distribution and version.
    """
    root = Path(folder).parents[package.count(".")]
    if str(root) not in sys.path and not (root / "pyarrow").exists():
        return [str(root)], [str(root)]
    found = [str(root / package.partition(".")[0])]
    for home, top in _required(origin.partition(" ")[0]):
        found += [str(home / top)] if (home / top).exists() else []
    return list(dict.fromkeys(found)), list(dict.fromkeys([str(root), *(str(Path(f).parent) for f in found)]))


def _required(distribution: str) -> Iterator[tuple[Path, str]]:
    """Yield folder and top-level name of everything a distribution consists of and requires."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import distribution as find

    waiting, seen = [distribution], {"dataflare", "pyarrow", ""}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = find(name)
        except PackageNotFoundError:
            continue
        home = Path(str(found.locate_file("")))
        tops = {Path(str(f)).parts[0] for f in found.files or () if Path(str(f)).parts}
        yield from (
            (home, top) for top in sorted(tops) if not top.startswith(("..", "__pycache__")) and not top.endswith((".pth", "dist-info"))
        )
        waiting += [re.split(r"[\s;\[<>=!~(@]", r, maxsplit=1)[0] for r in found.requires or () if "extra ==" not in r]


@lru_cache(maxsize=1)
def _packages() -> Sequence[str]:
    found = []
    for name in _SHARED:
        spec = find_spec(name)
        if spec is None:
            continue
        places = [str(p) for p in spec.submodule_search_locations or ()] or [str(spec.origin)]
        found += [p for p in places if Path(p).exists()]
        found += [str(libs) for p in places for libs in [Path(p).parent / f"{name}.libs"] if libs.exists()]
    return [*found, *_told_of(_SHARED), str(Path(__file__).parents[1])]


def _told_of(names: Iterable[str]) -> Iterator[str]:
    """Yield the folders in which distributions tell of themselves: some ask for their own version when they are imported."""
    from importlib.metadata import PackageNotFoundError, distribution

    for name in names:
        with suppress(PackageNotFoundError):
            files = distribution(name).files or ()
            folders = {str(Path(str(f.locate())).parent) for f in files if str(f).endswith(".dist-info/METADATA")}
            yield from sorted(folders)


@lru_cache(maxsize=1)
def _interpreter() -> Sequence[dict[str, Any]]:
    """Return the interpreter's own library, with what is installed in it hidden."""
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    home = Path(sys.base_prefix) / "lib"
    shared = [str(p) for p in home.glob("libpython*.so*")] if home != Path("/usr/lib") else []
    system = [p for p in _SYSTEM if Path(p).exists()]
    hidden = [*(str(Path(p) / "site-packages") for p in sorted(library)), *_HIDDEN]
    covered = [p for p in [*sorted(library), *shared] if not any(p.startswith(s + "/") for s in system)]
    hides: list[dict[str, Any]] = [{"to": p, "mode": "hide"} for p in hidden if Path(p).is_dir()]
    return [*_read_only(system), *_read_only(covered, owned=True), *hides]


def _read_only(paths: Iterable[str], *, owned: bool = False) -> list[dict[str, Any]]:
    """Return binds; only what is ours may be read as its owner: in the system's folders lie secrets of root."""
    return [{"from": p, "to": p, "mode": "ro", "owned": owned} for p in dict.fromkeys(paths)]


def _is_name(host: str) -> bool:
    return bool(re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host)) and ":" not in host


def _size(value: Any) -> int:
    return parse_size(value) if isinstance(value, str) else int(value)


def _seconds(value: Any) -> float:
    return parse_duration(value) if isinstance(value, str) else float(value)
