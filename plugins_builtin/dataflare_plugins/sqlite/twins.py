"""Scratch twins of SQLite files: a copy of the file that is read, or an empty one a script is loaded into."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from dataflare_sdk import CODES, DestinationTwin, ExtractSpec, ScratchPlace, SourceTwin
from dataflare_sdk.checkpoints import TABLE
from dataflare_sdk.fields import to_plain
from dataflare_sdk.schema import quote
from dataflare_sdk.scratch import BAD_SCRIPT
from dataflare_sdk.seeded import TableShape, TableWriter, Together


class SqliteTwin(SourceTwin):
    """The file a source reads."""

    def database(self) -> str | None:
        """Return the file."""
        return f"sqlite:{self.config['path']}"

    def load(self, sql: str) -> None:
        """Run the script in one transaction.

        Raises:
            DataflareError: `prove.bad-script`.
        """
        with contextlib.closing(sqlite3.connect(self.config["path"])) as db:
            try:
                db.executescript(f"BEGIN;\n{sql}\n;COMMIT;")
            except sqlite3.Error as error:
                raise BAD_SCRIPT.error(f"SQLite refuses it: {error}") from error

    def writer(self, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> Together | None:
        """Return a writer over the tables that are read."""
        tables = self.config.get("tables") or [self.config.get("table")]
        made = [self._over(str(t), extract, seed + i, kinds) for i, t in enumerate(tables) if t]
        return Together(made, seed) if made else None

    def _over(self, table: str, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> TableWriter:
        db = sqlite3.connect(self.config["path"], timeout=30.0)
        rows = db.execute(f"PRAGMA table_xinfo({quote(table)})").fetchall()
        key = tuple(extract.key) or tuple(r[1] for r in sorted(rows, key=lambda r: r[5]) if r[5])
        foreign = {r[3] for r in db.execute(f"PRAGMA foreign_key_list({quote(table)})")}
        shape = TableShape(
            name=quote(table),
            key=key,
            columns=tuple(r[1] for r in rows if not r[6]),
            cursor=extract.cursor,
            fixed=frozenset(foreign),
        )
        return TableWriter(db, shape, seed=seed, kinds=kinds, errors=sqlite3.Error)


def source_twin(config: Any, place: ScratchPlace) -> SqliteTwin:
    """Return a file to read: a copy of the workflow's, or an empty one for its script.

    Raises:
        DataflareError: `world.missing-input`, `world.io`.
    """
    path = place.path_for(config.path)
    if place.scripted:
        sqlite3.connect(path).close()
    elif not path.exists():
        _copy(place.base_dir / config.path, path, config.path)
    return SqliteTwin({**to_plain(config), "path": str(path)})


def destination_twin(config: Any, place: ScratchPlace) -> DestinationTwin:
    """Return a file to write; where it is the twin of a file that is read too, without the table that is written."""
    path = place.path_for(config.path)
    if path.exists():
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"DROP TABLE IF EXISTS {quote(config.table)}")
            db.execute(f"DROP TABLE IF EXISTS {TABLE}")
            db.commit()
    return DestinationTwin({**to_plain(config), "path": str(path)})


def _copy(original: Path, twin: Path, shown: str) -> None:
    """Copy a database consistently, reading only."""
    if not original.exists():
        raise CODES["world.missing-input"].error(f"'{shown}' does not exist", path="path")
    try:
        source = sqlite3.connect(f"{original.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(twin)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        raise CODES["world.io"].error(f"'{shown}' cannot be copied: {error}", path="path") from error
