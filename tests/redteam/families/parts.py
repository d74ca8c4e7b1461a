"""What families of attacks are made of: the head of a manifest, and a plugin whose one step attacks at the level `process`."""

from __future__ import annotations

from tests.redteam.bench import Bench, Done, Seen

HEAD = "manifest: 1\nname: redteam\nversion: 1.0.0\napi: '>=1,<2'\npublisher: redteam.example\n"
_STEP = """\
isolation: process
provides:
  - {{kind: processor, name: attacker, entry: "redteam:Attacker", summary: "Attacks", features: [{features}]}}
"""
_ORDER = '''
import pyarrow as pa

from dataflare_sdk import DataflareError, Problem, Processor, config, option


@config
class Order:
    """What to do."""

    how: str = option("By what.")
    token: str = option("A secret.", default="")
'''


def step(bench: Bench, code: str, features: str = "rowwise, one_to_one", more: str = "") -> None:
    """Install a plugin whose class `Attacker` is a step, configured by an `Order`.

    Args:
        bench: where.
        code: the class, and what it needs.
        features: of the step.
        more: lines of the manifest.
    """
    bench.install("redteam", HEAD + _STEP.format(features=features) + more, {"__init__.py": _ORDER + code})


def may_fail(seen: Seen, done: Done) -> Seen:
    """Tell what came of a run that may fail, where what it leaves behind is what is looked at."""
    return Seen("denied", f"exit {done.code}") if seen.outcome == "broken" and done.code in (1, 3, 4) else seen
