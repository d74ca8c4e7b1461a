"""A Python with many plugins installed: what `dataflare plugin list` costs there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.measure import instructions, python

DISTRIBUTIONS = 300
STANDINGS = {
    "nothing decided": {"not granted": DISTRIBUTIONS},
    "all in the lock": {"granted": DISTRIBUTIONS},
    "and a policy": {"granted": DISTRIBUTIONS - 1, "trusted": 1},
}
"""How the plugins must be told to stand, by what was decided."""
MANIFEST = """\
manifest: 1
name: crowd-{n}
version: 1.0.0
api: ">=1,<2"
publisher: crowd.example
isolation: process
provides:
  - {{kind: source, name: crowd{n}, entry: "crowd_{n}:Source", summary: "Rows from somewhere", features: [full]}}
capabilities:
  net: [{{host: "${{config.host}}", port: "${{config.port}}", why: "reach it"}}]
  secrets: [{{ref: token_{n}, why: "log in"}}]
"""


def listing(folder: Path) -> dict[str, float]:
    """Return the instructions of `plugin list` from the cached index, as multiples of `python -c pass`.

    Once as it is after 300 times `pip install`, once with every plugin granted in the lock, once with a policy.
    """
    with _crowd(folder / "crowd") as work:
        bare = instructions(python("pass"), folder)
        command = [sys.executable, str(Path(sys.executable).parent / "dataflare"), "plugin", "list"]
        made = {}
        for name, files in _decisions().items():
            for file, text in files.items():
                (work / file).write_text(text)
            instructions(command, work)  # the first one fills the index
            told = subprocess.run([*command, "--json"], cwd=work, capture_output=True, check=True).stdout
            seen = Counter(p["standing"] for p in json.loads(told)["plugins"] if p["name"].startswith("crowd-"))
            assert seen == STANDINGS[name], seen
            made[name] = instructions(command, work) / bare
    return made


@contextmanager
def _crowd(folder: Path) -> Iterator[Path]:
    site, work = folder / "site", folder / "work"
    for n in range(DISTRIBUTIONS):
        package, info = site / f"crowd_{n}", site / f"crowd_{n}-1.0.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (package / "plugin.yaml").write_text(MANIFEST.format(n=n))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: crowd-{n}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\ncrowd_{n} = crowd_{n}\n")
    work.mkdir()
    homes = {f"XDG_{v}_HOME": str(folder / v.lower()) for v in ("CACHE", "CONFIG", "DATA")}
    try:
        with patch.dict(os.environ, {**homes, "PYTHONPATH": str(site)}):
            yield work
    finally:
        shutil.rmtree(folder)


def _decisions() -> Mapping[str, Mapping[str, str]]:
    entry = {"version": "1.0.0", "minimum": "1.0.0", "level": "process", "artifact": "sha256:" + "0" * 64}
    plugins = {}
    for n in range(DISTRIBUTIONS):
        asked = {
            "net": [{"host": "${config.host}", "port": "${config.port}", "why": "reach it"}],
            "secrets": [{"ref": f"token_{n}", "why": "log in"}],
        }
        plugins[f"crowd-{n}"] = {**entry, "origin": f"crowd-{n}", "asked": asked, "capabilities": asked}
    return {
        "nothing decided": {},
        "all in the lock": {"dataflare.lock": json.dumps({"lock": 1, "plugins": plugins}, indent=2)},
        "and a policy": {"policy.yaml": "trust: [crowd-1]\ndeny: ['*:env']\nmin_level: process\n"},
    }
