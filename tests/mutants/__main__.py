"""Prove a broken runtime: every mutant must be caught.

Usage: python -m tests.mutants [NAME …]

Prints one line per mutant, and exits 1 when one survived or the sound runtime did not. A skipped fsync is not among
them: SIGKILL leaves the page cache to the kernel, so no kill can tell; `tests/sdk/test_platform.py` holds that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FULL = """
name: mutant
sources:
  made: {use: generate, with: {rows: 4000, columns: {id: i, k: i % 50, v: "i * 3"}}}
destinations:
  rows: {use: sqlite, from: made, with: {path: rows.db, table: rows}, write: {mode: append}}
  more: {use: sqlite, from: made, with: {path: more.db, table: rows}, write: {mode: append}}
  copy: {use: duckdb, from: made, with: {path: copy.duckdb, table: rows}, write: {mode: append}}
runtime: {lane: streaming}
"""
EXAMPLE = ROOT / "examples" / "postgres-cdc" / "orders_cdc.yaml"
WORKFLOWS = {"confirm_before_commit": "postgres", "unchanged_becomes_null": "postgres"}
KILLS = 80
"""Kills a mutant may survive; a proof ends at the first round that lost or doubled something."""


def workflow(name: str, folder: Path) -> Path:
    """Return the workflow a mutant is tried on."""
    kind = WORKFLOWS.get(name, "full")
    if kind == "postgres":
        return EXAMPLE
    file = folder / "mutant.yaml"
    file.write_text(FULL)
    return file


def prove(name: str) -> dict[str, object]:
    """Prove the workflow of a mutant in this process; its runs are broken, this process is not."""
    os.environ["DATAFLARE_MUTANT"] = name  # the process runs are forked from reads it
    os.environ["PYTHONPATH"] = str(ROOT)

    from dataflare.errors import DataflareError
    from dataflare.lifecycle import Runtime
    from dataflare_plugins.prove.proof import Proof
    from dataflare_plugins.prove.schedule import Schedule

    if name == "no_fence":
        Schedule.ZOMBIES = 0.8
    with tempfile.TemporaryDirectory(prefix="df-mutant-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        begun = root / "begun"
        os.environ["DATAFLARE_MUTANT_BEGUN"] = str(begun)
        file = workflow(name, root)
        script = file.with_suffix(".sql")
        text = script.read_text() if script.exists() else None
        with Runtime(file.parent) as runtime:
            proof = Proof(
                runtime, runtime.parse(file), root / "proof", kills=8 if name == "none" else KILLS, seed=11, script=text,
                # A kill at the right place within an epoch that brought nothing shows nothing: there is a second one.
                each=1 if name == "none" else 2, modules=("tests.mutants.patches",), stop_early=True,
            )  # fmt: skip
            (root / "proof").chmod(0o755)
            try:
                proof.kill(proof.rehearse())
            except DataflareError as error:
                return {"caught": True, "how": f"refused: {error.problems[0].code}"}
            finally:
                proof.close()
            if not begun.exists():
                raise RuntimeError(f"the runs were not broken by '{name}'")
            missed = [n for n, hits in proof.schedule.hits.items() if not hits]
            how = f"{proof.lost} lost, {proof.duplicated} duplicated in {proof.schedule.kills} kills"
            if missed and not proof.lost and not proof.duplicated and len(missed) < len(proof.schedule.hits):
                how += f", never hit: {', '.join(missed)}"
            return {"caught": not proof.proven(), "how": how}


def main() -> int:
    names = sys.argv[1:]
    if names[:1] == ["--one"]:
        print(json.dumps(prove(names[1])))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests.mutants.patches import MUTANTS

    wrong = 0
    for name in names or list(MUTANTS):
        done = subprocess.run([sys.executable, "-m", "tests.mutants", "--one", name], cwd=ROOT, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"caught": None, "how": done.stderr[-2000:]}
        verdict = "caught" if found["caught"] else "survived" if found["caught"] is False else "broke the test"
        print(f"{verdict:<10} {name.replace('_', ' '):<34} {found['how']}", flush=True)
        wrong += found["caught"] is not (name != "none")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
