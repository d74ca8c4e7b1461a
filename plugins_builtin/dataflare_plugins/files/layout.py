"""What a destination's path means: one file, or a folder of parts."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import Any

from dataflare_sdk.records import record

COLUMN = re.compile(r"\{([^{}]+)\}")
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@record
class Layout:
    """Where rows are written.

    Attributes:
        target: the file, or the folder that all parts lie in.
        single: it is one file.
        template: folders below `target` with `{column}` in them, of a partitioned folder.
        columns: the columns of the template.
        ending: of a data file, with compression.
        compression: `gzip`, `zstd` or None.
        wrong: why the path cannot be used, or None.
    """

    target: Path
    single: bool
    template: str = ""
    columns: tuple[str, ...] = ()
    ending: str = ""
    compression: str | None = None
    wrong: str | None = None

    def folder(self, values: tuple[Any, ...]) -> str:
        """Return the folder for one combination of partition values, relative to the target."""
        named = dict(zip(self.columns, values, strict=True))
        return COLUMN.sub(lambda found: escape(named[found[1]]), self.template)


def escape(value: Any) -> str:
    """Return a value as a folder name."""
    if value is None:
        return NULL_FOLDER
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return urllib.parse.quote(text, safe=" -_.:+") if text not in ("", ".", "..") else urllib.parse.quote(text).replace(".", "%2E")


def layout(path: str, base: Path, endings: tuple[str, ...]) -> Layout:
    """Read a path.

    Args:
        path: as the workflow gives it.
        base: where relative paths start.
        endings: of the format, the usual one first.
    """
    if COLUMN.search(path):
        parts = path.rstrip("/").split("/")
        first = next(i for i, part in enumerate(parts) if "{" in part)
        target = base / "/".join(parts[:first]) if first else base
        wrong = None if not path.rstrip("/").endswith(endings) else "a file name cannot hold {column}; end the path with /"
        return Layout(target, False, "/".join(parts[first:]), tuple(COLUMN.findall(path)), endings[0], wrong=wrong)
    if path.endswith("/"):
        return Layout(base / path, False, ending=endings[0])
    suffix = Path(path).suffix
    inner = Path(path).stem if suffix in COMPRESSIONS else path
    if suffix == ".zip":
        return Layout(base / path, True, wrong="a .zip cannot be written; use .gz or .zst")
    if Path(inner).suffix not in endings:
        wrong = f"'{path}' is neither a file that ends in {endings[0]} nor a folder that ends in /"
        return Layout(base / path, True, wrong=wrong)
    return Layout(base / path, True, ending=Path(inner).suffix, compression=COMPRESSIONS.get(suffix))
