"""Every hook of the runtime, typed. Hooks are the control plane: they build, connect, start, observe and stop.

They are never called per batch or per row; the data path is plain method calls on objects that hooks handed out.
A plugin implements a hook with `dataflare_sdk.hookimpl` in its package's `__init__.py` and lists the hook's name
in its manifest; a hook that is not listed there is not registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from dataflare.contracts import Decision, Loader, Plan, RunEvent
from dataflare.errors import Problem
from dataflare.manifest import API_VERSION, KINDS, Manifest
from dataflare.policy import Policy
from dataflare.workflow import Workflow

__all__ = ["API_VERSION", "KINDS", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "dataflare"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def dataflare_component(kind: str, name: str) -> Any | None:
    """Return the factory of a component.

    When: a component is built. The kernel's own implementation answers from the manifests' `provides`; a plugin
    implements this only to offer names that no manifest can list (adapters). Only asked of `inprocess` plugins.
    Who stops it: the first answer.

    Args:
        kind: one of `KINDS`.
        name: the component's name, without range or prefix.

    Returns:
        A class or function called with (config, context), or None: not mine.

    Raises: may; the error ends what was being built.
    """


@hookspec
def dataflare_sql_functions() -> Sequence[tuple[str, Any]]:
    """Return SQL functions to add to every expression engine, as (name, function) pairs.

    When: an expression engine opens. All answers are collected. Only asked of `inprocess` plugins.

    Returns:
        Pairs; a function takes and gives `pyarrow` arrays, whole columns of a batch, and says their SQL types in its
        annotations: `Annotated[pa.Array, "VARCHAR"]`. It gives the same for the same values. A name that the engine
        has itself, or that two plugins give, is left out and logged.

    Raises: may; the functions are then left out and the error logged.
    """
    return ()


@hookspec
def dataflare_api_routes() -> Sequence[Any]:
    """Return routes to add to the API service.

    When: the service starts. All answers are collected. Raises: may; the plugin is then left out.
    """
    return ()


@hookspec
def dataflare_web_pages() -> Sequence[Any]:
    """Return pages to add to the web interface.

    When: the service starts. All answers are collected. Raises: may; the plugin is then left out.
    """
    return ()


@hookspec(firstresult=True)
def dataflare_load_plugin(manifest: Manifest, grants: Mapping[str, Any], level: str) -> Loader | None:
    """Load a plugin's code at one isolation level.

    When: a component of the plugin is first built. The kernel's own implementation answers `inprocess`.
    Who stops it: the first answer.

    Args:
        manifest: the plugin's manifest.
        grants: its effective capabilities.
        level: `inprocess`, `process` or `wasm`, as the policy decided.

    Returns:
        A loader that hands out the real factories or proxies with the same methods, or None: not my level.

    Raises: may; the plugin is then refused.
    """


@hookspec(firstresult=True)
def dataflare_parse_workflow(path: Path, text: str) -> Mapping[str, Any] | None:
    """Read a workflow document.

    When: a workflow file is opened. Who stops it: the first answer, by file type. Only asked of `inprocess` plugins: a
    document says what runs.

    Args:
        path: the file, for its ending and for error messages.
        text: its content.

    Returns:
        `{"document": plain mapping, "marks": {path tuple: (line, column)}}`, or None: not my format.

    Raises: `DataflareError` with file, line and column.
    """


@hookspec
def dataflare_check_workflow(workflow: Workflow, plan: Plan | None) -> Sequence[Problem]:  # noqa: ARG001
    """Look at a workflow and return what is wrong with it.

    When: after the engine's own validation, offline. All answers are collected.

    Args:
        workflow: the model.
        plan: the plan, or None when there is none because of other problems.

    Returns:
        Problems; empty when all is well.

    Raises: must not; an exception becomes a problem itself.
    """
    return ()


@hookspec
def dataflare_run_event(event: RunEvent) -> None:
    """Hear of something that happened in a run: monitors, lineage, logs.

    When: at phases, epochs, restarts and at most a few times a second for progress; never per batch.
    All are called, one event after the other, on a thread that is not the run's: one that hangs delays the others, and is left
    behind a few seconds after the run has ended. Of several `progress` that wait only the newest is told.
    Raises: should not; an exception is logged and never fails the run.
    """


@hookspec(firstresult=True)
def dataflare_authenticate(credentials: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Say who somebody is.

    When: a request or a command arrives with credentials. Only providers named in the configuration are asked.

    Returns:
        A principal `{"name": …, "roles": […]}`, or None: not known to me. Nobody answering means refused.

    Raises: an exception means refused.
    """


@hookspec
def dataflare_authorize(principal: Mapping[str, Any], action: str, resource: str) -> Decision | None:
    """Allow or deny an action (`run`, `state.reset` …) on a resource (a workflow's name).

    When: before a command or request acts. Only providers named in the configuration are asked; all of them
    are, and any deny wins. With providers configured and no answer the action is denied.

    Raises: an exception means deny.
    """


@hookspec(firstresult=True)
def dataflare_resolve_secret(provider: str, name: str, base_dir: Path) -> str | None:
    """Return a secret.

    When: a component that uses it is built. Only providers named in the configuration are asked (`env` and
    `file` by default). Who stops it: the first answer.

    Args:
        provider: the part before the slash of `${secret:PROVIDER/NAME}`.
        name: the part after it.
        base_dir: folder of the workflow, for providers that look beside it.

    Returns:
        The secret, or None: not mine.

    Raises: may; the message must not contain the secret.
    """


@hookspec(firstresult=True)
def dataflare_verify_artifact(path: Path, manifest: Manifest) -> bool | None:
    """Verify a plugin artifact's signature before it is installed or loaded.

    Returns: True or False, or None: I cannot tell. Raises: an exception means False.
    """


@hookspec(firstresult=True)
def dataflare_consent(manifest: Manifest, missing: Mapping[str, Any], policy: Policy) -> Mapping[str, Any] | None:
    """Ask the person at the terminal whether a plugin may have what it asks for, and keep the answer.

    When: a plugin that nobody has decided on is first loaded, and somebody sits at a terminal.

    Args:
        manifest: the plugin's manifest.
        missing: what it asks for beyond what was decided on before, by kind.
        policy: what the operator decided so far; `policy.base_dir` is where `dataflare.lock` lies.

    Returns:
        The plugin's new entry in `dataflare.lock`, or None: nobody said yes.

    Raises: may; the plugin is then refused.
    """


@hookspec
def dataflare_audit(record: Mapping[str, Any]) -> None:
    """Keep a record of a use or denial of a capability.

    When: at every denial, and at the first use of each capability by each plugin in a process. All are called.
    Raises: an exception is logged.
    """


@hookspec
def dataflare_redact(text: str) -> Sequence[str]:  # noqa: ARG001
    """Return substrings of a text that must not be shown.

    When: before text reaches a log, an error or a report, for text that may carry secrets. All are collected.
    Raises: an exception hides the whole text.
    """
    return ()
