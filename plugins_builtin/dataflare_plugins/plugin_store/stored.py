"""Plugins of the store in this process: their packages are found there, and byte code is neither read nor written."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
from typing import Any

from dataflare_plugins.plugin_store.codes import CLASH
from dataflare_sdk.plugins import InProcess, Manifest

_sites: list[str] = []


class Stored(InProcess):
    """Hands out the classes of a plugin of the store, imported into this process.

    Its dependencies come after everything else: where this process has a package already, in another version, the plugin is
    refused, because it would get the wrong one.

    Raises:
        DataflareError: `plugin.clash`.
    """

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        _check_clashes(manifest)
        if manifest.site not in _sites:
            _sites.append(manifest.site)
            if len(_sites) == 1:
                sys.path_hooks.insert(0, _files)
                sys.meta_path.append(_Sites())


class _Sites(importlib.metadata.DistributionFinder):
    """Finds packages of the store after everything else; `sys.path` does not have them, or they would be taken for installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return where a package at the top level is."""
        return importlib.machinery.PathFinder.find_spec(fullname, _sites, target) if path is None else None

    def find_distributions(self, context: Any = None) -> Any:
        """Return the metadata of a distribution by name: libraries ask for their own version; a list has none of the store."""
        if context is None or context.name is None:
            return ()
        wanted = importlib.metadata.DistributionFinder.Context(name=context.name, path=_sites)
        # Not by `PathFinder`, whose method the package `importlib_metadata` takes away when it is imported.
        return importlib.metadata.MetadataPathFinder.find_distributions(wanted)


def _check_clashes(manifest: Manifest) -> None:
    brought = {_name(d): d.version for d in importlib.metadata.distributions(path=[manifest.site])}
    others = [site for site in _sites if site != manifest.site]
    for found in (*importlib.metadata.distributions(), *importlib.metadata.distributions(path=others)):
        version = brought.get(_name(found))
        if version is not None and version != found.version:
            told = f"{manifest.name!r} brings {_name(found)} {version}, this process has {found.version}"
            raise CLASH.error(told, fix=f"set `isolation: {{{manifest.name}: process}}` in policy.yaml")


def _name(distribution: importlib.metadata.Distribution) -> str:
    return str(distribution.metadata["Name"]).replace("_", "-").lower()


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles the source that was hashed, always: a cache beside it could hold anything."""

    def path_stats(self, path: str) -> Any:  # noqa: ARG002
        """Say that nothing is known of the file, which is how caches are left alone."""
        raise OSError("byte code is not used")


def _files(path: str) -> Any:
    if not any(path == site or path.startswith(site + "/") for site in _sites):
        raise ImportError(path)
    extensions = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    return importlib.machinery.FileFinder(path, extensions, (_Source, importlib.machinery.SOURCE_SUFFIXES))
