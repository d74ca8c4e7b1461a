"""Crashes: a workflow around the component is killed with SIGKILL and run again; what arrives is compared with a run that was not."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflare_plugins.certify.asked import Certificate
from dataflare_plugins.certify.checking import FAILED, NOT_RUN, PASSED, Result
from dataflare_plugins.certify.world import World

FAILPOINTS = ("task.source.batch:1", "state.log.after:1", "task.sink.committed:1")
KINDS = ("source", "processor", "destination")


def crash(
    component: Any, certificate: Certificate, level: str, allowed: Mapping[str, Mapping[str, Any]], read_back: Any
) -> Iterator[Result]:
    """Kill a workflow with the component in it at each failpoint.

    Args:
        component: of the manifest.
        certificate: what the author says.
        level: for the results.
        allowed: what lies beside the workflow and says what the plugin may do: file name to content.
        read_back: returns the rows of a destination, by its `Asked` and folder.
    """
    name = f"{component.kind}/{component.name}"
    asked = certificate.components.get(name)
    if asked is None or component.kind not in KINDS:
        return
    wanted: Counter[Any] | None = None
    for failpoint in (None, *FAILPOINTS):
        check = f"survives-a-kill-at-{(failpoint or '').partition(':')[0]}"
        with tempfile.TemporaryDirectory(prefix="dataflare-certify-") as place:
            world = World(Path(place), component, asked, certificate, allowed)
            try:
                killed, document = world.run(failpoint)
                found = Counter(read_back(asked, world.folder) or () if component.kind == "destination" else world.arrived())
            except Exception as error:
                yield Result(name, level, check if failpoint else "runs-in-a-workflow", FAILED, f"{type(error).__name__}: {error}"[:500])
                return
            finally:
                world.close()
        if failpoint is None:
            wanted = found
            yield Result(name, level, "runs-in-a-workflow", PASSED if found else FAILED, "" if found else "no row arrived")
        elif not killed:
            yield Result(name, level, check, NOT_RUN, "the run was over before it")
        else:
            reason = _compared(wanted or Counter(), found, next(iter(document["guarantee"].values())))
            yield Result(name, level, check, FAILED if reason else PASSED, reason)


def _compared(wanted: Counter[Any], found: Counter[Any], guarantee: str) -> str:
    lost, doubled = wanted - found, found - wanted
    if lost:
        return f"{lost.total()} rows were lost, for example {next(iter(lost))}"
    if doubled and guarantee == "exactly_once":
        return f"{doubled.total()} rows came twice, for example {next(iter(doubled))}"
    strange = [row for row in doubled if row not in wanted]
    return f"a row came that should not: {strange[0]}" if strange else ""
