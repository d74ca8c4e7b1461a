"""Controls: every attack is shown to work where nothing but private namespaces holds it.

A control that cannot be run (no user namespaces) is told apart from one that ran and failed; both are counted.
"""

from __future__ import annotations

import atexit
import base64
import functools
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.redteam.confined import KINDS, REFUSED

from dataflare_sdk.servers import as_user

HERE = Path(__file__).parent


class Outcome(NamedTuple):
    """How a control ended.

    Attributes:
        worked: the attack got what it wanted; None: it was not run.
        detail: what it said, or why it was not run.
    """

    worked: bool | None
    detail: str


def namespaces() -> dict[str, str]:
    """Return the namespaces of this process, which a control must not share."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def run(name: str, *, outside: dict[str, str] | None = None) -> Outcome:
    """Run the control of one attack.

    Args:
        name: the attack.
        outside: the caller's namespaces; for tests of the refusal only.
    """
    return _run({"name": name}, outside, ())


def run_with(name: str, given: Mapping[str, Any], packages: Sequence[str] = (), memory: int = 2 << 30) -> Outcome:
    """Run one of `controls` on what an attack consists of: a module, a wheel, a text.

    Args:
        name: the control.
        given: what it is told; bytes are handed over in base64.
        packages: installed packages that it imports.
        memory: address space it may take.
    """
    plain = {k: {"base64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in given.items()}
    return _run({"name": name, "given": plain, "memory": memory}, None, tuple(packages))


def _run(wanted: Mapping[str, Any], outside: dict[str, str] | None, packages: tuple[str, ...]) -> Outcome:
    order = {
        **wanted, "secret": "secret-" + secrets.token_hex(8), "mark": "mark-" + secrets.token_hex(8),
        "outside": namespaces() if outside is None else outside, "attacks": "/proc/self/cwd",
    }  # fmt: skip
    done = subprocess.run(
        [_interpreter(), "-I", "-B", "confined.py"], cwd=_copied(packages), input=json.dumps(order), capture_output=True, text=True, timeout=60,
        check=False, env={"PATH": "/usr/bin:/bin"}, start_new_session=True, **as_user(),
    )  # fmt: skip
    if done.returncode == REFUSED or not done.stdout:
        return Outcome(None, (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    told = json.loads(done.stdout)
    said = [told["said"], *told["noticed"], *([] if told["worked"] else done.stderr.splitlines()[-1:])]
    return Outcome(bool(told["worked"]), "; ".join(said).strip("; ")[:200])


@functools.cache
def _copied(packages: tuple[str, ...]) -> Path:
    """Return a folder with a copy of the code, and of packages: the attacker's user may not read our own folders."""
    folder = Path(tempfile.mkdtemp(prefix="df-control-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "confined.py").write_text((HERE / "confined.py").read_text())
    for part in ("attacks", "controls"):
        (folder / part).mkdir()
        for source in (HERE / part).glob("*.py"):
            (folder / part / source.name).write_text(source.read_text())
    (folder / "packages").mkdir()
    for name in packages:
        found = importlib.util.find_spec(name)
        assert found is not None, name
        if found.submodule_search_locations:
            left_out = shutil.ignore_patterns("tests", "include", "__pycache__", "*.pyx", "*.pxd", "*.pxi")
            shutil.copytree(next(iter(found.submodule_search_locations)), folder / "packages" / name, ignore=left_out)
        else:
            shutil.copy(str(found.origin), folder / "packages")
    folder.chmod(0o755)
    return folder


@functools.cache
def _interpreter() -> str:
    """Return a Python that the attacker's user may start: ours may lie in a folder that is closed to it."""
    for path in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([path, "-I", "-S", "-c", ""], check=True, capture_output=True, **as_user())
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    return sys.executable
