"""Proxies of a plugin's hooks: those whose arguments are plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dataflare_plugins.isolation_process.codes import NOT_HERE
from dataflare_plugins.isolation_process.host.keeper import Keeper
from dataflare_plugins.isolation_process.proxies.cell import expected, listed
from dataflare_plugins.isolation_process.proxies.events import Events
from dataflare_plugins.isolation_process.proxies.line import Line
from dataflare_sdk import Decision, Plan, Problem, RunEvent, Workflow, hookimpl
from dataflare_sdk.grants import expand
from dataflare_sdk.settings import hide

__all__ = ["Hooks"]

T = TypeVar("T")
R = TypeVar("R")


class Hooks:
    """The hooks of one plugin, in a worker that is started at the first call; what only listens is in one of its own.

    Args:
        keeper: starts workers of the plugin.
        package: the package its hooks are in.
        names: the hooks its manifest lists.
        grants: what it was granted; without a node there is no configuration to make more of them concrete.

    Raises:
        DataflareError: `plugin.not-isolated`: a hook whose arguments or answer do not cross is listed.
    """

    def __init__(self, keeper: Keeper, package: str, names: Sequence[str], grants: Mapping[str, Any]) -> None:
        for name in names:
            if not hasattr(self, f"dataflare_{name}"):
                raise NOT_HERE.error(f"the plugin {keeper.name!r} implements the hook {name!r}, which needs the host's own process")
        own = expand(grants, {})
        self._line, self._listening = Line(keeper, package, own), Line(keeper, package, own)
        self._events = Events(lambda event: self._listening.call("run_event", _nothing, {"event": event}), self._listening.cut)

    def close(self) -> None:
        """End the workers."""
        self._events.close()
        self._listening.close()
        self._line.close()

    @hookimpl
    def dataflare_run_event(self, event: RunEvent) -> None:
        """Pass on what happened in a run, which does not wait for who listens."""
        self._events.tell(event)

    @hookimpl
    def dataflare_audit(self, record: Mapping[str, Any]) -> None:
        """Pass on a use or denial of a capability."""
        self._call("audit", _nothing, record=dict(record))

    @hookimpl
    def dataflare_check_workflow(self, workflow: Workflow, plan: Plan | None) -> Sequence[Problem]:
        """Ask what is wrong with a workflow; what comes from the environment may be a password, and is not handed over."""
        nodes = tuple(replace(n, config=hide(n.config), blocks=hide(n.blocks)) for n in workflow.nodes)
        shown = replace(workflow, nodes=nodes, settings=hide(workflow.settings), document=hide(workflow.document))
        plan = None if plan is None else Plan.from_json(plan.to_json(), hidden=True)
        return self._list(Problem, "check_workflow", workflow=shown, plan=plan)

    @hookimpl
    def dataflare_parse_workflow(self, path: Path, text: str) -> Mapping[str, Any] | None:
        """Ask for the document in a text."""
        return self._maybe(dict, "parse_workflow", path=path, text=text)

    @hookimpl
    def dataflare_authenticate(self, credentials: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Ask who somebody is."""
        return self._maybe(dict, "authenticate", credentials=dict(credentials))

    @hookimpl
    def dataflare_authorize(self, principal: Mapping[str, Any], action: str, resource: str) -> Decision | None:
        """Ask whether an action is allowed."""
        return self._maybe(Decision, "authorize", principal=dict(principal), action=action, resource=resource)

    @hookimpl
    def dataflare_resolve_secret(self, provider: str, name: str, base_dir: Path) -> str | None:
        """Ask for a secret."""
        return self._maybe(str, "resolve_secret", provider=provider, name=name, base_dir=base_dir)

    @hookimpl
    def dataflare_redact(self, text: str) -> Sequence[str]:
        """Ask what of a text must not be shown."""
        return self._list(str, "redact", text=text)

    def _maybe(self, kind: type[T], hook: str, /, **arguments: Any) -> T | None:
        return self._call(hook, lambda answer: None if answer is None else expected(answer, kind), **arguments)

    def _list(self, kind: type[T], hook: str, /, **arguments: Any) -> list[T]:
        return self._call(hook, lambda answer: [] if answer is None else listed(answer, kind), **arguments)

    def _call(self, hook: str, check: Callable[[Any], R], /, **arguments: Any) -> R:
        return self._line.call(hook, check, arguments)


def _nothing(answer: Any) -> None:
    """Take no answer, whatever it is."""
    del answer
