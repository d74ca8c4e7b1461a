"""The controls: each attack works in private namespaces, and the harness refuses to run one anywhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.redteam import attacks, control
from tests.redteam.confined import KINDS, REFUSED

ORDER = {"name": "read-own-environment", "secret": "secret-0123456789abcdef", "mark": "mark-1", "attacks": str(control.HERE)}


def test_there_are_enough() -> None:
    assert len(attacks.load()) >= 60
    assert all(a.what for a in attacks.load().values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused for being root")
def test_as_root_nothing_is_done() -> None:
    order = json.dumps({**ORDER, "outside": control.namespaces()})
    done = subprocess.run([sys.executable, "-I", "confined.py"], cwd=control.HERE, input=order, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert "never run as root" in done.stderr


@pytest.mark.parametrize("left_out", [*KINDS, None])
def test_without_namespaces_of_its_own_nothing_is_done(left_out: str | None, confines: None) -> None:
    """What the caller says of its namespaces is missing, or is not the whole of them."""
    told = {} if left_out is None else {k: v for k, v in control.namespaces().items() if k != left_out}
    seen = control.run("read-own-environment", outside=told)
    assert seen.worked is None
    assert "refused" in seen.detail or "unshare" in seen.detail


@pytest.mark.parametrize("name", attacks.load())
def test_an_attack_works_where_nothing_stops_it(name: str, confines: None) -> None:
    seen = control.run(name)
    assert seen.worked, seen.detail
