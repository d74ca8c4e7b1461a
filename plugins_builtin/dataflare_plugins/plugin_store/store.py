"""The store: every version of every plugin in a folder of its own, with its own dependencies; one version of each is in use.

::

    active.json                      which version of each plugin is in use, and which one was before; found by the kernel
    acme/1.4.0-3f9c…/site/           packages of the plugin and of its dependencies, for reading only
    acme/1.4.0-3f9c…/artifact/       the wheels (or the WASM module) they were made from, with their signatures

A version is made under another name and renamed into place, and stays until it is removed: a run that began with it goes on
with it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflare_plugins.plugin_store.codes import NO_PREVIOUS, NOT_IN_STORE
from dataflare_sdk.atomic import explained
from dataflare_sdk.exclusive import exclusive, write_whole
from dataflare_sdk.plugins import ACTIVE, file_hash, store_folder

Entry = dict[str, Any]


class Store:
    """The plugins of one user.

    Args:
        folder: where it lies; `$DATAFLARE_PLUGINS`, else in the user's data folder, when None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(store_folder())

    def plugins(self) -> dict[str, Entry]:
        """Return the entry of every plugin by name.

        Raises:
            DataflareError: `plugin.not-in-store`: there is a store that cannot be read.
        """
        path = self.folder / ACTIVE
        try:
            found: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8"))["plugins"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NOT_IN_STORE.error(f"the plugin store cannot be read: {error!r}", file=str(path)) from error
        return found

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Hand out a folder to make a version in, with `site` and `artifact`; what is left of it is removed."""
        place = self.folder / f".staged-{secrets.token_hex(6)}"
        with explained(place):
            (place / "site").mkdir(parents=True)
            (place / "artifact").mkdir()
        try:
            yield place
        finally:
            remove_tree(place)

    def put(self, place: Path, name: str, entry: Mapping[str, Any]) -> Entry:
        """Take a staged version into the store and make it the one in use.

        Args:
            place: from `staged`.
            name: the plugin's name.
            entry: `version`, `package`, `signer`, and `manifest`: where its manifest lies below the version's folder.
        """
        files = files_of(place / "artifact")
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]
        home = f"{name}/{entry['version']}-{digest}"
        with self._changing() as plugins:
            self._replace(place, self.folder / home)
            old = plugins.get(name)
            before = [p for p in _history(old) if p["site"] != f"{home}/site"]
            made: Entry = {**entry, "manifest": f"{home}/{entry['manifest']}", "site": f"{home}/site", "files": files}
            plugins[name] = {**made, "previous": before}
        return plugins[name]

    def remove(self, name: str) -> None:
        """Take a plugin with all its versions out of the store.

        Raises:
            DataflareError: `plugin.not-in-store`.
        """
        with self._changing() as plugins:
            if plugins.pop(name, None) is None:
                raise NOT_IN_STORE.error(f"the plugin {name!r} is not in the store")
        remove_tree(self.folder / name)

    def roll_back(self, name: str) -> Entry:
        """Use the version before the one in use, which is kept.

        Raises:
            DataflareError: `plugin.not-in-store`, `plugin.no-previous`.
        """
        with self._changing() as plugins:
            entry = plugins.get(name)
            if entry is None:
                raise NOT_IN_STORE.error(f"the plugin {name!r} is not in the store")
            if not entry["previous"]:
                raise NO_PREVIOUS.error(f"there is no version of {name!r} before {entry['version']}")
            earlier = entry["previous"][-1]
            plugins[name] = {**earlier, "previous": entry["previous"][:-1]}
        return plugins[name]

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        with exclusive(self.folder / "guard"):
            plugins = self.plugins()
            yield plugins
            text = json.dumps({"store": 1, "plugins": plugins}, indent=1, sort_keys=True)
            write_whole(self.folder / ACTIVE, text + "\n")

    def _replace(self, place: Path, home: Path) -> None:
        """Rename a staged version into place; the same files may be there already, perhaps damaged."""
        with explained(home):
            home.parent.mkdir(parents=True, exist_ok=True)
            if home.exists():
                gone = home.with_name(f".gone-{secrets.token_hex(6)}")
                home.rename(gone)
                remove_tree(gone)
            place.rename(home)


def files_of(folder: Path) -> list[dict[str, str]]:
    """Return name and SHA-256 of every file of a folder, by name."""
    return [{"name": p.name, "sha256": file_hash(p)} for p in sorted(folder.iterdir())]


def changed_files(store: Store, entry: Mapping[str, Any]) -> list[str]:
    """Return which artifacts of a version are not the ones that were installed."""
    artifacts = (store.folder / entry["site"]).parent / "artifact"
    return [file["name"] for file in entry["files"] if file_hash(artifacts / file["name"]) != file["sha256"]]


def artifact_path(store: Store, entry: Mapping[str, Any]) -> Path:
    """Return the wheel or WASM module of the plugin itself, as it is kept."""
    home = store.folder / str(entry["site"])
    return home.parent / "artifact" / str(entry["artifact"])


def remove_tree(folder: Path) -> None:
    """Remove a folder of files that may only be read."""
    shutil.rmtree(folder, ignore_errors=True)


def _history(old: Mapping[str, Any] | None) -> Sequence[Entry]:
    if old is None:
        return ()
    return [*old["previous"], {k: v for k, v in old.items() if k != "previous"}]
