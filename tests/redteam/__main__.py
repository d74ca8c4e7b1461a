"""`make redteam [CASE=name]`: every attack, at every level, with its control.

Usage: python -m tests.redteam [--case NAME …]

Prints case, level, what was expected, what was seen, and how the control ended. A case whose control does not work counts as
failed: it shows nothing. One whose control or level cannot run here counts as not run. Exits 1 when anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.redteam import attacks, control, isolated

BY_LIMITS = ("denied", "contained")
"""What may come of an attack on a resource: it is told no, or its process is ended."""


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append")
    given = parser.parse_args()
    known = attacks.load()
    names = given.case or list(known)
    unknown = [n for n in names if n not in known]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}")
    failed = not_run = 0
    for name in names:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            seen = isolated.run(known[name], Path(folder))
        shown = control.run(name)
        expected = BY_LIMITS if "limits" in known[name].needs else ("denied",)
        right = seen.outcome in expected
        controlled = {True: "works", False: "DOES NOT WORK", None: "not run"}[shown.worked]
        not_run += shown.worked is None
        failed += not right or shown.worked is False
        verdict = "not run" if shown.worked is None and right else "ok" if right and shown.worked else "FAILED"
        print(
            f"{verdict:8} {name:38} process  expected {'/'.join(expected):16} seen {seen.outcome:10} control {controlled}  ({seen.detail})",
            flush=True,
        )
    print(f"{len(names)} cases: {len(names) - failed - not_run} as expected, {failed} failed, {not_run} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
