"""A machine for one attack: a user's folders, what the attack is after, and the command line, run as a process of its own.

What came of it is judged from outside: by the exit code, the error's code, what was printed, and what was noticed.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.plugins.plugin_store.conftest import Machine
from tests.redteam import control
from tests.redteam.isolated import Seen

__all__ = ["Bench", "Case", "Done", "Seen", "judged"]

PRELUDE = """import os, sys; sys.argv[0] = 'dataflare'
def tell_the_peak(place=os.environ.pop("REDTEAM_PEAK")):
    with open("/proc/self/status") as status, open(place, "w") as told:
        told.write(status.read())
import atexit; atexit.register(tell_the_peak)
"""
FORGED = "all is well, says nobody"
"""Stands on the second line of what an attack says: it must never begin a line that somebody reads."""


def _peak(status: Path) -> int:
    """Return the most memory a process had at once, from its status; 0 when there is none."""
    try:
        lines = status.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Done(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code; negative: a signal ended it; None: it hung, and was killed when its time was over.
        out: what it printed on standard output, `err` on standard error.
        memory: the most memory it had at once, in bytes.
    """

    code: int | None
    out: str
    err: str
    memory: int

    @property
    def error(self) -> str:
        """The code of the error that it told in its JSON document, or that of a line for people."""
        try:
            return str(json.loads(self.out)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            found = [line for line in self.err.splitlines() if line.endswith("]") and " [" in line]
            return found[0].rpartition(" [")[2][:-1] if found else ""


class Bench(Machine):
    """Folders of one user on one machine, with a secret in them and files that nobody may touch.

    Attributes:
        weakened: Python that is run before the command line: tests of the judges take a defence away by it.
    """

    weakened = ""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.secret, self.mark = "secret-" + secrets.token_hex(8), "mark-" + secrets.token_hex(8)
        self.hidden = root / "hidden"
        self.hidden.mkdir()
        self.written, self.untouched = self.hidden / "new", self.hidden / "victim"
        self.untouched.write_text("as it was")
        self.site = root / "site"
        self.site.mkdir()
        self.heard: list[str] = []
        self.extra: dict[str, str] = {}

    def install(self, name: str, manifest: str, files: Mapping[str, str | bytes]) -> Path:
        """Put a package on the path, with its metadata, as pip does."""
        package = name.replace("-", "_")
        folder = self.site / package
        folder.mkdir()
        (folder / "plugin.yaml").write_text(manifest)
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        info = self.site / f"{package}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{package} = {package}\n")
        return folder

    def workflow(
        self,
        use: str,
        options: Mapping[str, Any] | None = None,
        columns: Mapping[str, str] | None = None,
        rows: int = 3,
        errors: str = "fail",
    ) -> None:
        """Write a workflow whose step is the attacker's; `errors` is what becomes of rows that fail."""
        made = {
            "dataflare": 1, "name": "attacked",
            "sources": {"s": {"use": "generate", "with": {"rows": rows, "columns": dict(columns or {"n": "i"})}}},
            "processors": [{"id": "p", "use": use, "with": dict(options or {})}],
            "destinations": {"d": {"use": "jsonl", "with": {"path": "out.jsonl"}}},
            "errors": {"on_record": errors},
        }  # fmt: skip
        (self.work / "workflow.json").write_text(json.dumps(made))

    def run_workflow(self, *args: str) -> Done:
        """Run the workflow."""
        return self.dataflare("run", "workflow.json", "--json", *args)

    def dataflare(self, *args: str | Path, timeout: float = 60) -> Done:
        """Call the command line and wait for it; after so many seconds it is killed, as one that hangs."""
        env = {
            **self.env,
            "SECRET": self.secret,
            "REDTEAM_PEAK": str(self.root / "peak"),
            **self.extra,
            "PYTHONPATH": os.pathsep.join([str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        command = [sys.executable, "-c", PRELUDE + self.weakened + "\nfrom dataflare.process import entry\nentry()", *map(str, args)]
        begun = time.monotonic()
        out, err = self.root / "stdout", self.root / "stderr"
        with out.open("wb") as o, err.open("wb") as e:
            started = subprocess.Popen(command, cwd=self.work, env=env, stdin=subprocess.DEVNULL, stdout=o, stderr=e)
            # What the kernel tells of an ended child begins with what its parent had: ours may be large.
            peak = 0
            while started.poll() is None and time.monotonic() - begun < timeout:
                peak = max(peak, _peak(Path(f"/proc/{started.pid}/status")))
                time.sleep(0.02)
            code = started.poll()
            if code is None:
                started.kill()
                started.wait()
        peak = max(peak, _peak(self.root / "peak"))
        (self.root / "peak").unlink(missing_ok=True)
        texts = (path.read_bytes().decode("utf-8", "replace") for path in (out, err))
        return Done(code, *texts, peak)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that arrived."""
        path = self.work / "out.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def noticed(self) -> list[str]:
        """Return what changed that nobody may change."""
        found = ["a file was written"] if self.written.exists() else []
        found += ["the victim was changed"] if self.untouched.read_text() != "as it was" else []
        found += ["a server was reached"] if any(self.mark in h for h in self.heard) else []
        return found


class Case(NamedTuple):
    """One attack of a family.

    Attributes:
        name: as `make redteam CASE=` takes it.
        level: where it is stopped: an isolation level, or the part that looks at it before anything is run.
        what: one line for people.
        expected: what may come of it.
        attack: makes it, on a bench of its own.
        control: shows that it works where the defence is absent.
    """

    name: str
    level: str
    what: str
    expected: tuple[str, ...]
    attack: Callable[[Path], Seen]
    control: Callable[[], control.Outcome]


def judged(bench: Bench, done: Done, codes: tuple[str, ...] = (), *, memory: int = 1 << 30) -> Seen:
    """Return what came of an attack.

    `refused` when the command ended with an error that has one of the codes, `denied` when none was expected and it ended well,
    `breached` when anything was got or changed, the process was ended or hung, it took what it may not take, or an attack
    that had to be refused was taken; else `broken`.

    Args:
        bench: where it was made.
        done: how the command ended.
        codes: the errors that are expected, one of them; none: the command goes well.
        memory: how much memory it may have at once.
    """
    kept = "".join(p.read_bytes().decode("utf-8", "replace") for p in sorted(bench.work.rglob("*")) if p.is_file())
    everything = done.out + done.err + kept
    noticed = bench.noticed()
    noticed += ["the secret was shown"] if bench.secret in everything else []
    noticed += ["an escape sequence reached the terminal"] if any(c in done.out + done.err for c in "\x1b\x9b\u202e") else []
    noticed += ["a line was forged"] if any(line.strip().startswith(FORGED) for line in (done.out + done.err).splitlines()) else []
    noticed += ["it hung"] if done.code is None else []
    noticed += [f"a signal ended it: {done.code}"] if (done.code or 0) < 0 else []
    noticed += [f"it took {done.memory >> 20} MiB"] if done.memory > memory else []
    if noticed:
        return Seen("breached", "; ".join(noticed))
    told = f"exit {done.code}, {done.error or 'no error'}"
    if codes:
        if done.code == 0:
            return Seen("breached", f"it was taken: {done.out[:120]}")
        return Seen(
            "refused" if done.error in codes else "broken", told if done.error in codes else f"{told}: {(done.out + done.err)[-300:]}"
        )
    return Seen("denied", told) if done.code == 0 else Seen("broken", f"{told}: {(done.out + done.err)[-300:]}")
