"""What a process of our own does that a guest in another must not."""

from __future__ import annotations

import gc
import subprocess
import sys

from dataflare import process


def test_a_guest_s_collector_is_left_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    process.started()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_process_of_our_own_collects_as_usual_once_rows_move() -> None:
    told = (
        "import gc, dataflare.cli, dataflare.process as p\n"
        "def main():\n"
        "    first = gc.get_threshold(); p.started(); print(first[0] > 700, gc.get_threshold(), gc.get_freeze_count() > 1000); raise SystemExit(3)\n"
        "usual = gc.get_threshold(); dataflare.cli.main = main; print(usual)\n"
        "p.entry()"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    usual, then = done.stdout.splitlines()
    assert (done.returncode, then) == (3, f"True {usual} True")
