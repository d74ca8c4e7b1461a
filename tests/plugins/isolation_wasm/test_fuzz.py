"""Mutated replies of a guest: valid rows or a refusal, never a crash of the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def mutated(count: int, seed: int) -> tuple[int, int]:
    """Return how many mutated replies gave valid rows, and how many were refused."""
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "tests.plugins.isolation_wasm.fuzzing",
        "--count",
        str(count),
        "--seed",
        str(seed),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-4000:]}"
    rows, refused = done.stdout.split()
    return int(rows), int(refused)


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_replies(seed: int) -> None:
    rows, refused = mutated(5_000, seed)
    assert rows + refused == 5_000
    assert min(rows, refused) > 500, "both happen"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_a_million_replies(seed: int) -> None:
    assert sum(mutated(100_000, 100 + seed)) == 100_000
