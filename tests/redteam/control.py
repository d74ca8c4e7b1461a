"""Controls: every attack is shown to work where nothing but private namespaces holds it.

A control that cannot be run (no user namespaces) is told apart from one that ran and failed; both are counted.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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
    order = {
        "name": name, "secret": "secret-" + secrets.token_hex(8), "mark": "mark-" + secrets.token_hex(8),
        "outside": namespaces() if outside is None else outside, "attacks": "/proc/self/cwd",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # The attacker's user may not read our own folders: it gets a copy of the code.
        copy = Path(folder) / "code"
        (copy / "attacks").mkdir(parents=True)
        for source in [HERE / "confined.py", *(HERE / "attacks").glob("*.py")]:
            (copy / source.relative_to(HERE)).write_text(source.read_text())
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [_interpreter(), "-I", "-B", "confined.py"], cwd=copy, input=json.dumps(order), capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": "/usr/bin:/bin"}, start_new_session=True, **as_user(),
        )  # fmt: skip
    if done.returncode == REFUSED or not done.stdout:
        return Outcome(None, (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    told = json.loads(done.stdout)
    return Outcome(bool(told["worked"]), "; ".join([told["said"], *told["noticed"]]).strip("; ")[:200])


def _interpreter() -> str:
    """Return a Python that the attacker's user may start: ours may lie in a folder that is closed to it."""
    for path in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([path, "-I", "-S", "-c", ""], check=True, capture_output=True, **as_user())
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    return sys.executable
