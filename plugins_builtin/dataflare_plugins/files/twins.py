"""Scratch twins of files: copies of what is read, an empty place for what is written."""

from __future__ import annotations

import glob
import random
import shutil
from pathlib import Path, PurePath
from typing import Any

from dataflare_plugins.files import inputs
from dataflare_sdk import DestinationTwin, ExtractSpec, ScratchPlace, SourceTwin
from dataflare_sdk.fields import to_plain


class FileTwin(SourceTwin):
    """Copies of the files a source reads."""

    def __init__(self, config: dict[str, Any], copies: list[Path], grows: bool) -> None:
        super().__init__(config)
        self._copies = copies
        self._grows = grows

    def writer(self, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> FileWriter | None:
        """Return a writer that adds files where the path takes more than one."""
        if extract.mode != "incremental" or "insert" not in kinds or not self._grows or not self._copies:
            return None
        return FileWriter(self._copies, seed)


class FileWriter:
    """Adds files: copies of those that are there, under names that come after them."""

    def __init__(self, copies: list[Path], seed: int, most: int = 40) -> None:
        self._copies = copies
        self._random = random.Random(seed)  # noqa: S311 - a repeatable choice is what is wanted
        self._left = most
        self._number = 0

    def step(self) -> int:
        """Add one file; it appears whole."""
        if self._left == 0:
            return 0
        self._left -= 1
        self._number += 1
        old = self._random.choice(self._copies)
        name = f"{old.name.partition('.')[0]}~{self._number:04}.{old.name.partition('.')[2]}"
        hidden = old.with_name(f".{name}")
        shutil.copyfile(old, hidden)
        hidden.rename(old.with_name(name))
        return 1

    def close(self) -> None:
        """Nothing is held."""


def source_twin(config: Any, place: ScratchPlace, endings: tuple[str, ...]) -> SourceTwin | None:
    """Return copies of the files `config.path` names; None for an address: a proof reads nothing over the network.

    Raises:
        DataflareError: `world.missing-input`, `world.permission`.
    """
    if inputs.is_url(config.path):
        return None
    found = [Path(f.path) for f in inputs.find(config.path, place.base_dir, endings, place.folder / "unpacked", offline=True)]
    originals = inputs.local(config.path, place.base_dir, endings)
    if not found:
        raise inputs.missing(config.path, place.base_dir)
    fixed, rest = _split(config.path, place.base_dir)
    folder = place.path_for(str(fixed)) if rest else place.path_for(str(fixed)).parent
    copies = []
    for original in originals:
        copy = folder / (original.relative_to(place.base_dir / fixed) if rest else original.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        copies.append(copy)
    path = str(folder / rest) if rest and rest != "." else str(folder) if rest else str(copies[0])
    return FileTwin({**to_plain(config), "path": path}, copies, grows=bool(rest))


def _split(path: str, base: Path) -> tuple[PurePath, str]:
    """Return the folder all files lie in and the pattern within it (`.`: all of it); of a single file itself and ''."""
    whole = base / path
    if whole.is_file():
        return PurePath(path), ""
    if whole.is_dir():
        return PurePath(path), "."
    parts = PurePath(path).parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return PurePath(*parts[:first]) if first else PurePath(), "/".join(parts[first:])


def destination_twin(config: Any, place: ScratchPlace) -> DestinationTwin:
    """Return the same path elsewhere: what is fixed of it is moved, `{column}` and the ending stay."""
    fixed, brace, rest = config.path.partition("{")
    folder, _, name = fixed.rpartition("/") if brace else ("", "", "")
    if brace:
        path = f"{place.path_for(folder or '.') / 'out'}/{name}{brace}{rest}"
    else:
        path = str(place.path_for(config.path)) + ("/" if config.path.endswith("/") else "")
    return DestinationTwin({**to_plain(config), "path": path})
