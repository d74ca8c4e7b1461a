"""`make redteam [CASE=name]`: every attack, at every level, with its control.

Usage: python -m tests.redteam [--case NAME …]

Prints case, level, what was expected, what was seen, and how the control ended. A case whose control does not work counts as
failed: it shows nothing. One whose control or level cannot run here counts as not run. Exits 1 when anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.redteam import cases


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append")
    given = parser.parse_args()
    known = cases.load()
    names = given.case or list(known)
    unknown = [n for n in names if n not in known]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}")
    ended, levels = Counter[str](), Counter[str]()
    for name in names:
        case = known[name]
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            seen = case.attack(Path(folder))
        shown = case.control()
        right = seen.outcome in case.expected
        controlled = {True: "works", False: "DOES NOT WORK", None: "not run"}[shown.worked]
        verdict = "FAILED" if not right or shown.worked is False else "not run" if shown.worked is None else "ok"
        ended[verdict] += 1
        levels[f"{case.level}: {verdict}"] += 1
        told = " ".join((seen.detail if shown.worked else f"{seen.detail}; control: {shown.detail}").split())
        print(
            f"{verdict:8} {name:44} {case.level:9} expected {'/'.join(case.expected):16} seen {seen.outcome:10} control {controlled}  ({told})",
            flush=True,
        )
    print(", ".join(f"{n} {level}" for level, n in sorted(levels.items())))
    print(f"{len(names)} cases: {ended['ok']} as expected, {ended['FAILED']} failed, {ended['not run']} not run")
    return 1 if ended["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
