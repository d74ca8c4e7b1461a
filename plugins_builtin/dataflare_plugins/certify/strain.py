"""What a plugin meets beside crashes: rows of another shape than before, and the layers of its own sandbox."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflare_plugins.certify.asked import Certificate
from dataflare_plugins.certify.checking import FAILED, NOT_RUN, PASSED, Result
from dataflare_plugins.certify.world import ROWS, World

DRIFT = "takes-or-refuses-a-column-more"


def drift(
    component: Any, certificate: Certificate, level: str, allowed: Mapping[str, Mapping[str, Any]], read_back: Any
) -> Iterator[Result]:
    """Write to a destination twice, the second time with a column more: it takes it, or refuses by a code and keeps what it has.

    Args:
        component: of the manifest.
        certificate: what the author says.
        level: for the results.
        allowed: what lies beside the workflow and says what the plugin may do.
        read_back: returns the rows of a destination, by its `Asked` and folder.
    """
    name = f"{component.kind}/{component.name}"
    asked = certificate.components.get(name)
    if asked is None or component.kind != "destination":
        return
    with tempfile.TemporaryDirectory(prefix="dataflare-certify-") as place:
        world = World(Path(place), component, asked, certificate, allowed)
        try:
            world.run()
            before = read_back(asked, world.folder)
            world.drift()
            document = world.ended()
            reason = _judged(before or [], read_back(asked, world.folder) or [], document, "append" in component.features)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:500]
        finally:
            world.close()
    yield Result(name, level, DRIFT, FAILED if reason else PASSED, reason)


def _judged(before: list[Any], after: list[Any], document: Mapping[str, Any], appends: bool) -> str:
    """Return what is wrong with how a run with a column more ended."""
    if document["status"] == "done":
        wanted = len(before) + ROWS if appends else ROWS
        return "" if len(after) == wanted else f"it took the column and holds {len(after)} rows where there should be {wanted}"
    error = document.get("error") or {}
    if error.get("code") == "internal.bug":
        return f"it broke: {error.get('message')}"
    return "" if after == before else f"it refused the column ({error.get('code')}), and holds other rows than before"


def sandbox(plugin: str, level: str, report: Mapping[str, Any] | None) -> Iterator[Result]:
    """Tell of each layer of the sandbox the plugin ran in, and of each canary in it.

    Args:
        plugin: its name, for the results.
        level: isolation level.
        report: what the loader says: `requested`, `enforced`, `missing`, `canaries`; None: nothing.
    """
    if report is None:
        if level == "process":
            yield Result(plugin, level, "sandbox", NOT_RUN, "no worker was started")
        return
    for layer in report["requested"]:
        missing = report["missing"].get(layer)
        yield Result(plugin, level, f"sandbox-{layer}", FAILED if missing else PASSED, str(missing or ""))
    for canary, seen in report["canaries"].items():
        held = str(seen).startswith("held")
        yield Result(plugin, level, f"canary-{canary.replace(' ', '-')}", PASSED if held else FAILED, "" if held else str(seen))
