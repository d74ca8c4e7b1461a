"""Error codes of this level that several of its modules raise."""

from __future__ import annotations

from dataflare_sdk import code

__all__ = ["BAD_MANIFEST", "CRASHED", "NOT_CONFINED", "NOT_HERE", "QUARANTINED"]

BAD_MANIFEST = code(
    "plugin.bad-manifest",
    3,
    "A plugin's `plugin.yaml` is not a manifest.",
    "Mend it, or ask the plugin's publisher to.",
)
CRASHED = code(
    "plugin.crashed",
    4,
    "An isolated plugin ended, did not answer in time, or answered what is no answer; its worker was killed.",
    "Run again; when it happens again, report it to the plugin's publisher, or raise `limits:` in its manifest.",
)
FAILED = code(
    "plugin.failed",
    1,
    "The code of an isolated plugin raised an error that it does not explain.",
    "See the traceback of the plugin's worker; report it to the plugin's publisher.",
)
QUARANTINED = code(
    "plugin.quarantined",
    6,
    "An isolated plugin failed too often in a short time and is not started again.",
    "Report it to the plugin's publisher; run again once it is mended.",
)
NOT_CONFINED = code(
    "plugin.not-confined",
    6,
    "This machine cannot confine a plugin as the isolation level `process` promises.",
    "Allow what is missing (user namespaces, Landlock, seccomp), use a plugin at the level wasm, or say explicitly what may be "
    "missing: `without: [LAYER]` in policy.yaml.",
)
NOT_HERE = code(
    "plugin.not-isolated",
    6,
    "A plugin needs something that only exists in the host's own process.",
    "If you trust the plugin, let it run in-process: `trust:` in policy.yaml, `isolation: inprocess` in its manifest.",
)
