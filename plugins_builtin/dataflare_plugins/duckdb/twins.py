"""Scratch twins of DuckDB files: a copy of the file that is read, or an empty one a script is loaded into."""

from __future__ import annotations

import shutil
from typing import Any

from dataflare_sdk import CODES, DestinationTwin, ScratchPlace, SourceTwin, duck
from dataflare_sdk.checkpoints import TABLE
from dataflare_sdk.fields import to_plain
from dataflare_sdk.schema import quote
from dataflare_sdk.scratch import BAD_SCRIPT


class DuckdbTwin(SourceTwin):
    """The file a source reads; nobody writes to it: it is read whole only."""

    def database(self) -> str | None:
        """Return the file."""
        return f"duckdb:{self.config['path']}"

    def load(self, sql: str) -> None:
        """Run the script in one transaction.

        Raises:
            DataflareError: `prove.bad-script`.
        """
        with duck.connect(threads=1, database=self.config["path"]) as db:
            try:
                db.execute(f"BEGIN;\n{sql}\n;COMMIT;")
            except Exception as error:
                raise BAD_SCRIPT.error(f"DuckDB refuses it: {str(error).strip().splitlines()[0]}") from error


def source_twin(config: Any, place: ScratchPlace) -> DuckdbTwin:
    """Return a file to read: a copy of the workflow's, or an empty one for its script.

    Raises:
        DataflareError: `world.missing-input`.
    """
    path, original = place.path_for(config.path), place.base_dir / config.path
    if place.scripted:
        duck.connect(threads=1, database=str(path)).close()
    elif not path.exists():
        if not original.exists():
            raise CODES["world.missing-input"].error(f"'{config.path}' does not exist", path="path")
        for ending in ("", ".wal"):
            if (file := original.with_name(original.name + ending)).exists():
                shutil.copyfile(file, path.with_name(path.name + ending))
    return DuckdbTwin({**to_plain(config), "path": str(path)})


def destination_twin(config: Any, place: ScratchPlace) -> DestinationTwin:
    """Return a file to write; where it is the twin of a file that is read too, without the table that is written."""
    path = place.path_for(config.path)
    if path.exists():
        with duck.connect(threads=1, database=str(path)) as db:
            db.execute(f"DROP TABLE IF EXISTS {quote(config.table)}; DROP TABLE IF EXISTS {TABLE}")
    return DestinationTwin({**to_plain(config), "path": str(path)})
