"""Scratch twins: systems of the same kind as those a workflow names, made for a proof and thrown away after it.

`dataflare prove` never touches the systems of a workflow. It asks the class of every source and destination for a
twin (`Source.scratch`, `Destination.scratch`), runs the workflow on the twins, kills it, and compares what the
destination twins hold (`Destination.read_back`) with what an undisturbed run makes of the same sources.

A proof goes in rounds. Every round makes all twins anew in a folder of its own; a server may be kept from round to
round (`ScratchPlace.shared`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dataflare.contracts import ExtractSpec
from dataflare.errors import code

NO_LOADER = code(
    "prove.nothing-to-load", 3, "The twin of a source takes no SQL.", "Remove the .sql file beside the workflow, or the other source."
)
BAD_SCRIPT = code("prove.bad-script", 3, "The .sql file beside the workflow fails on the scratch database.", "Mend the statement named.")
NO_SCRIPT = code(
    "prove.no-script",
    3,
    "A proof starts a server of its own for a source, and does not know its tables.",
    "Write CREATE TABLE and first rows into a file beside the workflow, of the same name with the ending .sql.",
)
T = TypeVar("T")

KINDS = frozenset({"insert", "update", "delete", "key"})
"""What a writer may do: insert rows, update them, delete them, change their keys."""


class Writer(Protocol):
    """Somebody else who writes to a source while a workflow runs: seeded, so that the same seed writes the same."""

    def step(self) -> int:
        """Commit one small transaction and return the number of rows it inserted, changed or deleted."""
        ...

    def close(self) -> None:
        """Release everything it holds."""
        ...


@dataclass(slots=True)
class ScratchPlace:
    """Where the twin of one node is made.

    Attributes:
        node: id of the node it stands in for.
        folder: folder of this round, shared by its twins; removed after the proof.
        base_dir: folder that relative paths of the workflow file start from, to copy inputs from. Nothing is ever
            written there.
        seed: seed of whatever the twin makes up.
        scripted: `<workflow>.sql` will be loaded: begin empty instead of copying what the workflow reads.
        resources: what twins share for the whole proof, see `shared`.
        root: folder of the whole proof.
    """

    node: str
    folder: Path
    base_dir: Path
    seed: int = 0
    scripted: bool = False
    resources: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None

    def path_for(self, original: str) -> Path:
        """Return the path that stands in for a local path of the workflow, the same for the same one in this round.

        Nodes that share a file (one commit scope) share its twin. The folder it lies in is made.
        """
        whole = (self.base_dir / original).absolute()
        folder = self.folder / "files" / hashlib.sha256(str(whole).encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / whole.name

    def shared(self, name: str, make: Callable[[Path], T]) -> T:
        """Return what several twins share for the whole proof (one server), made on first use in a folder of its own.

        Whatever it is, its `close()` is called once, after all twins are closed.
        """
        if name not in self.resources:
            folder = (self.root or self.folder) / f"shared-{name}"
            folder.mkdir(parents=True, exist_ok=True)
            self.resources[name] = make(folder)
        made: T = self.resources[name]
        return made


class Twin:
    """Stands in for the system of one node.

    Attributes:
        config: the `with:` block the node is given instead of its own; absolute paths, local addresses.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def close(self) -> None:
        """Release everything it holds; called on every path, at most once. Files in its folder are removed for it."""


class SourceTwin(Twin):
    """Stands in for the system a source reads."""

    def database(self) -> str | None:
        """Return the name of the database that `<workflow>.sql` is loaded into, None where it takes no SQL.

        Twins of the same database are loaded once, by the first of them.
        """
        return None

    def load(self, sql: str) -> None:  # noqa: ARG002
        """Run a script: tables and first rows. Called before the first run, when there is a script and a `database`.

        Raises:
            DataflareError: `prove.bad-script` for a script that fails.
        """
        raise NO_LOADER.error("it is no database")

    def writer(self, extract: ExtractSpec, seed: int, kinds: frozenset[str]) -> Writer | None:  # noqa: ARG002
        """Return a writer for the tables the node reads, None where nobody can write.

        Asked only for sources that go on (`incremental`, `cdc`). For `incremental` what it inserts and updates gets a
        cursor value larger than all before. It is used from one thread, not the one that made the twin, and opens
        connections of its own.

        Args:
            extract: how the source is read: mode, cursor, key.
            seed: of everything it does.
            kinds: what it may do, of `KINDS`.
        """
        return None


class DestinationTwin(Twin):
    """Stands in for the system a destination writes, empty at first; it is read with `Destination.read_back`."""


class ScratchServer:
    """A server that lives as long as a proof, as `ScratchPlace.shared` keeps it, with fresh databases for every round.

    Attributes:
        databases: names of those that are there.
    """

    def __init__(self) -> None:
        self.databases: set[str] = set()

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        raise NotImplementedError

    def create(self, name: str) -> None:
        """Make a database."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Drop a database with whoever still holds it."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the server and remove it."""
        raise NotImplementedError

    def database(self, place: ScratchPlace, url: str) -> str:
        """Return the database that stands in for the one of `url` in this round; made when first asked for."""
        name = "d" + hashlib.sha256(f"{place.folder}\0{url}".encode()).hexdigest()[:12]
        if name not in self.databases:
            self.create(name)
            self.databases.add(name)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, once."""
        if name in self.databases:
            self.databases.discard(name)
            self.remove(name)


class DatabaseTwin(SourceTwin):
    """The database a source reads, on a scratch server."""

    def __init__(self, config: Mapping[str, Any], server: ScratchServer, name: str) -> None:
        super().__init__({**config, "url": server.url(name)})
        self._server = server
        self._name = name

    def database(self) -> str | None:
        """Return the database."""
        return self._name

    def close(self) -> None:
        """Drop the database."""
        self._server.drop(self._name)


class DatabaseTarget(DestinationTwin):
    """The database a destination writes, on a scratch server."""

    def __init__(self, config: Mapping[str, Any], server: ScratchServer, name: str) -> None:
        super().__init__({**config, "url": server.url(name)})
        self._server = server
        self._name = name

    def close(self) -> None:
        """Drop the database."""
        self._server.drop(self._name)
