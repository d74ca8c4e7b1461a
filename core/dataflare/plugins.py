"""The plugin manager: loads a plugin on first use, at the isolation the policy decides, and calls hooks."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dataflare.capabilities import LEVEL_TOO_LOW, Policy, admit, effective
from dataflare.errors import DataflareError, code
from dataflare.manifest import Manifest
from dataflare.policy import LEVELS, READY
from dataflare.registry import UNKNOWN, Entry, Registry

if TYPE_CHECKING:
    import pluggy

    from dataflare.contracts import Loader

__all__ = ["InProcess", "PluginManager"]

MISSING_EXTRA = code("plugin.missing-extra", 4, "A plugin needs a package that is not installed.", "Install the extra named.")
ENTRY_MISSING = code(
    "plugin.entry-missing",
    4,
    "A plugin's manifest names code that the plugin does not have.",
    "Install it again.",
)
NO_ISOLATION = code(
    "plugin.isolation-unavailable",
    6,
    "A plugin has to run at an isolation level that nothing installed here can give.",
    "Install a plugin that provides the level; or, if you trust its code, set `isolation: {NAME: inprocess}` in policy.yaml.",
)


class InProcess:
    """Hands out a plugin's own classes, imported into this process: the kernel's default loader."""

    level = "inprocess"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def factory(self, entry: str) -> Any:
        """Import the class or function that `module:attribute` names.

        Raises:
            DataflareError: `plugin.missing-extra`, `plugin.entry-missing`.
        """
        module, _, attribute = entry.partition(":")
        with self._explained(entry):
            found: Any = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        return found

    def hooks(self) -> Any:
        """Import the plugin's package, which holds its hooks."""
        with self._explained(self._manifest.package):
            return importlib.import_module(self._manifest.package)

    def close(self) -> None:
        """Do nothing: what Python imported stays."""

    @contextmanager
    def _explained(self, entry: str) -> Iterator[None]:
        """Tell a package that must be installed first from a plugin that is broken."""
        name = self._manifest.name
        try:
            yield
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.partition(".")[0] == entry.partition(".")[0].partition(":")[0]:
                raise ENTRY_MISSING.error(f"the plugin {name!r} has no {entry!r}: {error}") from error
            extra = name.removeprefix("dataflare-")
            wanted = f'"dataflare[{extra}]"' if self._manifest.built_in else missing.partition(".")[0]
            raise MISSING_EXTRA.error(f"the plugin {name!r} needs the package {missing!r}", fix=f"pip install {wanted}") from error
        except AttributeError as error:
            raise ENTRY_MISSING.error(f"the plugin {name!r} has no {entry!r}: {error}") from error


class PluginManager:
    """Plugins, loaded lazily. With `Host.build` it is what the seed calls ConnectorFactory and ProcessorFactory.

    Args:
        registry: what is installed.
        policy: what the operator decided.

    Attributes:
        interactive: somebody sits at a terminal, and may be asked once for what was not granted yet.
        audit: called with plugin, action and whether it was allowed; the host sets it.
    """

    def __init__(self, registry: Registry, policy: Policy) -> None:
        self.registry = registry
        self.policy = policy
        self.interactive = False
        self.audit: Callable[[str, str, bool], None] = lambda _plugin, _action, _allowed: None
        self._loaders: dict[str, Loader] = {}
        self._registered: set[str] = set()
        self._pluggy: pluggy.PluginManager | None = None
        # Tasks call hooks and build components from their own threads; loading one plugin may need another.
        self._lock = threading.RLock()

    def level(self, manifest: Manifest) -> str:
        """Return the isolation level a plugin runs at."""
        return self.policy.level(manifest)

    def load(self, manifest: Manifest) -> Loader:
        """Return the loader of a plugin, made on first use.

        Raises:
            DataflareError: what `capabilities.admit` raises, `plugin.isolation-unavailable`.
        """
        key = _key(manifest)
        with self._lock:
            if key not in self._loaders:
                self._loaders[key] = self._load_built_in(manifest) if manifest.built_in else self._load_stranger(manifest)
            return self._loaders[key]

    def factory(self, kind: str, use: str) -> Any:
        """Return the class or function behind a name, loading its plugin.

        Raises:
            DataflareError: `plugin.*`, `capability.denied`.
        """
        try:
            entry = self.registry.find(kind, use)
        except Exception as error:
            # Adapters answer for names that no manifest can list.
            if getattr(error, "code", "") == UNKNOWN.name:
                found = self.hook("component", kind=kind, name=use)
                if found is not None:
                    return found
            raise
        return self.entry_factory(entry)

    def entry_factory(self, entry: Entry) -> Any:
        """Return the class or function of one entry, loading its plugin."""
        return self.load(entry.manifest).factory(entry.component.entry)

    def hook(self, name: str, /, *, only: Collection[str] | None = None, **arguments: Any) -> Any:
        """Call a hook, without its prefix, at every plugin whose manifest lists it and that may be loaded without a question.

        A stranger hears of the hooks that decide over others only where that is the operator's decision: where it runs
        in-process, or where the configuration names it, by its own name or its verified signer, for this very question.

        Args:
            name: the hook.
            only: plugins that may be asked, by plugin name or publisher; None: all.
            arguments: the hook's own.

        Returns:
            A list of answers, or for a `firstresult` hook the first one or None.
        """
        asked = self._asked(name, only)
        if not asked:
            return None if name in FIRST_RESULT else []
        return self._call(name, asked, arguments)

    def tell(self, name: str, /, **arguments: Any) -> list[Exception]:
        """Call a hook whose answers do not count, at every plugin: one that fails, or may not be loaded, silences no other.

        Returns:
            What failed.
        """
        failed: list[Exception] = []
        for manifest in self._asked(name, None):
            try:
                self._call(name, [manifest], arguments)
            except Exception as error:
                failed.append(error)
        return failed

    def _asked(self, name: str, only: Collection[str] | None) -> list[Manifest]:
        listed = [m for m in self.registry.manifests if name in m.hooks]
        return [m for m in listed if self._hears(m, name, only) and (only is None or any(m.known_as(who) for who in only))]

    def _call(self, name: str, asked: Sequence[Manifest], arguments: dict[str, Any]) -> Any:
        with self._lock:
            manager = self._manager()
            for manifest in asked:
                self._register(manager, manifest)
        keys = set(map(_key, asked))
        others = [plugin for key, plugin in manager.list_name_plugin() if plugin is not None and key not in keys]
        return manager.subset_hook_caller(f"dataflare_{name}", others)(**arguments)

    def close(self) -> None:
        """Unload every plugin, last loaded first."""
        for loader in reversed(list(self._loaders.values())):
            loader.close()
        self._loaders.clear()

    def _load(self, manifest: Manifest) -> Loader:
        level = self.level(manifest)
        if level == "inprocess" and not manifest.site:
            return InProcess(manifest)
        grants = effective(manifest, self.policy).allowed
        loader: Loader | None = self.hook("load_plugin", manifest=manifest, grants=grants, level=level)
        if loader is None:
            raise NO_ISOLATION.error(
                f"the plugin {manifest.name!r} has to run at the level {level!r}, which no plugin here provides",
                fix=NO_ISOLATION.mend.replace("NAME", manifest.name),
            )
        accept = getattr(loader, "accept", None)
        if accept is not None:
            accept(self.policy.without)
        if LEVELS.index(loader.level) < LEVELS.index(self.policy.min_level):
            loader.close()
            raise LEVEL_TOO_LOW.error(f"the plugin {manifest.name!r} was loaded at the level {loader.level!r}, below the policy's minimum")
        return loader

    def _load_built_in(self, manifest: Manifest) -> Loader:
        admit(manifest, self.policy)
        return InProcess(manifest)

    def _load_stranger(self, manifest: Manifest) -> Loader:
        """Load a plugin that did not come with DataFlare, asking for what was not granted where somebody can be asked."""
        try:
            if self.interactive and self.policy.standing(manifest) in ("not granted", "asks for more"):
                missing = self.policy.missing(manifest)
                entry = self.hook("consent", manifest=manifest, missing=missing, policy=self.policy)
                if entry is not None:
                    self.policy = self.policy._replace(locks={**self.policy.locks, manifest.name: entry})
            admit(manifest, self.policy)
            loader = self._load(manifest)
        except DataflareError as error:
            self.audit(manifest.name, f"load: {error.code}", False)
            raise
        self.audit(manifest.name, f"load {manifest.version} at the level {loader.level}", True)
        return loader

    def _hears(self, manifest: Manifest, hook: str, only: Collection[str] | None) -> bool:
        if self.policy.standing(manifest) not in READY:
            return False
        # What a plugin says of its publisher is its own word: a name in the configuration must be its name, or its signer's.
        named = only is not None and (manifest.name in only or (manifest.signer != "" and manifest.signer in only))
        return named or hook not in DECIDING or self.level(manifest) == "inprocess"

    def _manager(self) -> pluggy.PluginManager:
        if self._pluggy is None:
            import pluggy

            from dataflare import hookspecs

            self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
            self._pluggy.add_hookspecs(hookspecs)
        return self._pluggy

    def _register(self, manager: pluggy.PluginManager, manifest: Manifest) -> None:
        key = _key(manifest)
        if key in self._registered:
            return
        self._registered.add(key)
        hooks = self.load(manifest).hooks()
        if hooks is not None:
            manager.register(_Listed(hooks, manifest.hooks), name=key)


def _key(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.origin} {manifest.site}"


class _Listed:
    """A plugin's hooks, and of them only those its manifest lists."""

    def __init__(self, hooks: Any, names: Sequence[str]) -> None:
        for name in names:
            found = getattr(hooks, f"dataflare_{name}", None)
            if found is not None:
                setattr(self, f"dataflare_{name}", found)


FIRST_RESULT = frozenset(("component", "load_plugin", "parse_workflow", "authenticate", "resolve_secret", "verify_artifact", "consent"))
"""Hooks whose first answer counts; a test compares them with the hook specs."""

DECIDING = frozenset(
    (
        "load_plugin", "verify_artifact", "consent", "audit", "authenticate", "authorize", "resolve_secret", "redact", "sql_functions",
        "parse_workflow", "component",
    )
)  # fmt: skip
"""Hooks that decide over other plugins, see what they must not, or say what the host's own process does: a workflow may name any code."""
