"""Fetching wheels: pip resolves and downloads, into a folder of its own, wheels only; nothing of them is run.

Wheels only is not enough to ask of pip: what a requirement names by its address (`evil @ https://…/evil.tar.gz`) it builds all the same.
So pip is run where no program can be started, which every build needs.

What a plugin sees through the host (`dataflare`, `pyarrow`) is not fetched: pip is shown empty wheels of the host's versions
instead, so that what the plugin requires of them is still checked.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dataflare_plugins.plugin_store.codes import NO_PIP, NOT_A_WHEEL, NOT_FOUND
from dataflare_plugins.plugin_store.wheels import Wheel, canonical
from dataflare_sdk.plugins import in_range, shown

FROM_HOST = ("dataflare", "pyarrow")
_REQUIREMENT = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?(\[[\w, -]+\])?\s*((==|>=|<=|~=|!=|<|>)\s*[\w.*+!-]+\s*,?\s*)*", re.ASCII)
_STUB = "+host"
_PLAIN = re.compile(
    r"(?P<name>[\w.-]+)(\[[^]]*\])?\s*\(?(?P<range>[\d.,<>=!~ *]*)\)?\s*(;(?P<optional>.*\bextra\s*==.*)|(?P<marker>;.*))?", re.ASCII
)

_WITHOUT_PROGRAMS = """
import os, runpy, sys

def hook(event, arguments):
    starts = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
    name = os.path.basename(str(arguments[0])) if event == "subprocess.Popen" else ""
    # pip asks one program for the password of an index, and the loader of musl for its version.
    if starts and name != "keyring" and not name.startswith("ld-musl"):
        raise PermissionError("only wheels are taken: nothing is built")

sys.addaudithook(hook)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""pip, in a process that starts no other program."""


def fetch(what: str | Path, folder: Path, find_links: Sequence[Path] = ()) -> list[Path]:
    """Download a plugin and what it depends on.

    Args:
        what: a wheel, or a requirement: `acme-connector`, `acme-connector==1.4.0`.
        folder: an empty folder, for the wheels.
        find_links: folders with wheels to take beside the index.

    Returns:
        The wheels.

    Raises:
        DataflareError: `plugin.not-a-wheel`, `plugin.not-found`, `plugin.no-pip`.
    """
    if isinstance(what, str) and not _REQUIREMENT.fullmatch(what):
        raise NOT_A_WHEEL.error(f"{shown(what)!r} is neither a file nor the name of a package with a range of versions")
    with tempfile.TemporaryDirectory(prefix="dataflare-") as temporary:
        stubs = Path(temporary)
        pins = [f"{name}=={_stub(name, stubs)}" for name in FROM_HOST]
        constraints = stubs / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
        links = [f"--find-links={p}" for p in (stubs, *find_links)]
        _pip(str(what), ["--dest", str(folder), "--constraint", str(constraints), *links, str(what)])
    return [p for p in sorted(folder.iterdir()) if not p.name.partition("-")[2].partition("-")[0].endswith(_STUB)]


def complete(wheel: Wheel) -> bool:
    """Return whether a wheel runs here with what the host has, so that nothing has to be resolved."""
    host = {name: _host_version(name) for name in FROM_HOST}
    for requirement in wheel.requires:
        parts = _PLAIN.fullmatch(requirement)
        if parts is None or not parts["optional"]:
            version = host.get(canonical(parts["name"])) if parts else None
            if parts is None or version is None or parts["marker"] or not in_range(version, parts["range"] or ""):
                return False
    python = ".".join(map(str, sys.version_info[:3]))
    return wheel.path.name.endswith("-py3-none-any.whl") and in_range(python, wheel.python)


def fetch_exactly(name: str, files: Iterable[Mapping[str, str]], folder: Path, find_links: Sequence[Path] = ()) -> list[Path]:
    """Download the very wheels that a lock names, each checked against its hash.

    Raises:
        DataflareError: `plugin.not-found`: one is not there, or is another; `plugin.no-pip`.
    """
    wheels = [f for f in files if f["name"].endswith(".whl")]
    lines = []
    for file in wheels:
        distribution, version, *_ = file["name"].split("-")
        lines.append(f"{distribution}=={version} --hash=sha256:{file['sha256']}")
    with tempfile.TemporaryDirectory(prefix="dataflare-") as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
        links = [f"--find-links={p}" for p in find_links]
        _pip(name, ["--dest", str(folder), "--no-deps", "--require-hashes", *links, "-r", str(requirements)])
    return sorted(folder.iterdir())


def _pip(what: str, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-I", "-c", _WITHOUT_PROGRAMS, "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    done = subprocess.run([*command, "--only-binary", ":all:", *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise NO_PIP.error("pip is not installed in this Python")
    told = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    raise NOT_FOUND.error(f"pip cannot fetch {what!r}: {'; '.join(told) or done.stderr.strip()[-500:]}")


def _host_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stub(name: str, folder: Path) -> str:
    """Write an empty wheel that stands for a package of the host, and return its version."""
    version = (_host_version(name) or "0").partition("+")[0] + _STUB
    info = f"{name}-{version}.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: dataflare\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for member, text in texts.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{member},sha256={digest},{len(text)}\n"
            archive.writestr(member, text)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return version
