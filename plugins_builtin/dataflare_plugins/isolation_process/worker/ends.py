"""A worker's ends of the proxies: the components themselves, with answers in a form that crosses."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.worker.context import WorkerContext
from dataflare_plugins.isolation_process.worker.talk import Stream, Talk
from dataflare_sdk import Batch, code

__all__ = ["Ends"]

NO_ENTRY = code(
    "plugin.entry-missing",
    4,
    "A plugin's manifest names code that the plugin does not have.",
    "Install it again.",
)
NO_PACKAGE = code("plugin.missing-extra", 4, "A plugin needs a package that is not installed.", "Install the extra named.")
_FACTS = ("inputs", "changes", "many_streams")


class Ends:
    """Everything a host may call: the component, its readers, the plugin's hooks.

    Args:
        talk: the channel, for the questions of contexts and callbacks.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._component: Any = None
        self._readers: dict[str, Any] = {}
        self._told: dict[str, set[str]] = {}
        self._opened = 0

    def answer(self, target: str, method: str, arguments: list[Any]) -> Any:
        """Answer one call.

        Args:
            target: `worker`, `component`, or the name of a reader.
            method: what to call.
            arguments: with what.
        """
        if target == "worker":
            return getattr(self, f"do_{method}")(*arguments)
        if target != "component":
            return self._reader(target, method, arguments)
        special = getattr(self, f"of_{method}", None)
        return special(*arguments) if special else getattr(self._component, method)(*arguments)

    # -- of the worker -----------------------------------------------------------------------------------

    def do_build(self, entry: str, raw: Any, path: Sequence[str | int], around: Mapping[str, Any]) -> dict[str, Any]:
        """Import and build a component, and say what it is."""
        factory = _find(entry)
        config = factory.configure(raw, path) if hasattr(factory, "Config") else raw
        self._component = factory(config, WorkerContext(self._talk, around))
        facts = {name: getattr(self._component, name) for name in _FACTS if hasattr(self._component, name)}
        return {"features": frozenset(map(str, getattr(self._component, "features", ()))), **facts}

    def do_hook(self, package: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call a hook of the plugin with those of its arguments that it takes."""
        hook = getattr(importlib.import_module(package), f"dataflare_{name}", None)
        if hook is None:
            raise NO_ENTRY.error(f"the plugin has no hook {name!r}")
        taken = inspect.signature(hook).parameters
        answer = hook(**{k: v for k, v in arguments.items() if k in taken})
        return list(answer) if name in ("check_workflow", "redact") and answer is not None else answer

    # -- of components -----------------------------------------------------------------------------------

    def of_process(self, batch: Batch, input: str) -> Stream:
        """Process a batch."""
        return Stream(self._component.process(batch, input))

    def of_flush(self) -> Stream:
        """Give what is left."""
        return Stream(self._component.flush())

    def of_attempt(self, batch: Batch, input: str) -> Any:
        """Process a batch that failed."""
        found = self._component.attempt(batch, input)
        return None if found is None else (list(found[0]), list(found[1]))

    def of_snapshot(self) -> Any:
        """Give the state, its large parts put away by the host."""
        return self._component.snapshot(lambda data: str(self._talk.ask("put", bytes(data))))

    def of_restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self._component.restore(state, lambda ref: bytes(self._talk.ask("get", str(ref))))

    def of_open(self, *arguments: Any) -> Any:
        """Open a destination, or a reader that stays here under a name."""
        found = self._component.open(*arguments)
        if not hasattr(found, "read"):
            return found
        self._opened += 1
        name = f"reader {self._opened}"
        self._readers[name] = found
        return {"reader": name, "partitions": self._new_partitions(name)}

    def of_read_back(self, schema: pa.Schema, keys: pa.Table | None) -> Any:
        """Give the rows a destination holds, or say that it cannot."""
        found = self._component.read_back(schema, keys)
        return None if found is None else Stream(iter(found))

    def _reader(self, name: str, method: str, arguments: list[Any]) -> Any:
        reader = self._readers[name]
        if method == "close":
            del self._readers[name], self._told[name]
        found = getattr(reader, method)(*arguments)
        new = self._new_partitions(name) if method == "read" else []
        return {"read": found, "partitions": new} if new else found

    def _new_partitions(self, name: str) -> list[str]:
        """Return the parts a reader has that the host was not told of yet; a topic may get more while it is read."""
        told, there = self._told.setdefault(name, set()), getattr(self._readers[name], "partitions", ())
        new = [str(part) for part in there if part not in told]
        told.update(new)
        return new


def _find(entry: str) -> Any:
    module, _, attribute = entry.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise NO_PACKAGE.error(f"the plugin needs the package {error.name!r}, which its sandbox does not hold") from error
        raise NO_ENTRY.error(f"the plugin has no {entry!r}: {error}") from error
    except AttributeError as error:
        raise NO_ENTRY.error(f"the plugin has no {entry!r}: {error}") from error
    return found
