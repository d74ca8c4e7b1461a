"""Scratch twins: systems of the same kind as those a workflow names, made for a proof and thrown away after it.

`dataflare prove` never touches the systems of a workflow. It asks the class of every source and destination for a
twin (`Source.scratch`, `Destination.scratch`), runs the workflow on the twins, kills it, and compares what the
destination twins hold (`Destination.read_back`) with what an undisturbed run makes of the same sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dataflare.contracts import ExtractSpec
from dataflare.errors import code

NO_LOADER = code(
    "prove.nothing-to-load", 3, "The twin of a source takes no SQL.", "Remove the .sql file beside the workflow, or the other source."
)
T = TypeVar("T")


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
    """Where a twin is made.

    Attributes:
        node: id of the node it stands in for.
        folder: a folder for this twin alone; it exists, is empty, and is removed after the proof.
        base_dir: folder that relative paths of the workflow file start from, to copy inputs from. Nothing is
            ever written there.
        seed: seed of whatever the twin makes up.
        resources: what several twins share for the whole proof, see `shared`.
    """

    node: str
    folder: Path
    base_dir: Path
    seed: int = 0
    resources: dict[str, Any] = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[Path], T]) -> T:
        """Return what several twins share (one server), made on first use in a folder of its own.

        Whatever it is, its `close()` is called once, after all twins are closed.
        """
        if name not in self.resources:
            folder = self.folder.parent / f"shared-{name}"
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

    def load(self, sql: str) -> None:  # noqa: ARG002
        """Run the script `<workflow>.sql`: tables and first rows. Not called when there is no such file.

        Called once per twin that `loads`; twins that share one database load once, by the first.

        Raises:
            DataflareError: `prove.nothing-to-load` by default; `prove.bad-script` for a script that fails.
        """
        raise NO_LOADER.error("it is no database")

    def loads(self) -> str | None:
        """Return the name of the database a script is loaded into, None where there is none."""
        return None

    def writer(self, extract: ExtractSpec, seed: int) -> Writer | None:  # noqa: ARG002
        """Return a writer for the tables the node reads, None where nobody writes.

        Only for sources that go on (`incremental`, `cdc`). For `cdc` it inserts, updates, deletes and changes keys;
        for `incremental` it only inserts rows and updates them with a cursor value larger than all before, and
        only inserts when `extract.options["insert_only"]` is true (the rows go to a destination that appends).
        It uses connections of its own, and may be called from another thread or process than `load`.
        """
        return None


class DestinationTwin(Twin):
    """Stands in for the system a destination writes; it is read with `Destination.read_back`."""

    def renew(self) -> None:
        """Empty it, as it was when it was made."""
        raise NotImplementedError
