"""Lookups: rows of a table, a file or a service that are asked for by key, many keys at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dataflare.contracts.batch import ArrowBatch
from dataflare.records import record


@record
class LookupSpec:
    """What will be asked of a lookup.

    Attributes:
        keys: its columns that are compared, in the order in which `find` gets them.
        columns: its columns that `find` gives, the keys among them.
        timeout: seconds that one request may take.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    timeout: float = 30.0


class Lookup(Protocol):
    """Gives the rows of some keys. One instance, one thread; only `cancel()` comes from outside.

    Life: built → `discover` → `against` → `prepare` → `find`… → `close`. What connects does so in `discover`, `check`
    or the first `find`, not when it is built.

    Attributes:
        features: of `remote` (behind a network: asked by key unless the workflow says otherwise), `scans` (has no
            index: every request reads all of it), `one_by_one` (a request per key, whatever `find` is given).
        most: keys that `find` takes at once at most, unless the workflow says otherwise.
        parallel: requests that are made at once, each by an instance of its own, unless the workflow says otherwise.
    """

    features: frozenset[str]
    most: int
    parallel: int

    def check(self) -> None:
        """Prove that it can be reached and asked. Not called offline."""
        ...

    def discover(self) -> Any | None:
        """Return the Arrow schema of its columns, or None when it cannot be known offline."""
        ...

    def against(self, keys: Sequence[str]) -> str | None:
        """Return why it cannot be asked by these columns, to stand after "because"; None: it can. Called after `discover`."""
        ...

    def prepare(self, spec: LookupSpec) -> None:
        """Take down what will be asked; nothing is opened."""
        ...

    def find(self, keys: ArrowBatch) -> ArrowBatch:
        """Return every row whose key is one of `keys`, in the columns of the spec.

        Rows of other keys may be among them (a server that compares without regard to case): the caller compares again.

        Args:
            keys: the columns `spec.keys` with the types of `discover`; no NULLs, no key twice.

        Raises:
            RetriableError: it may be answered later: the caller's outage policy applies when trying again does not help.
            DataflareError: it will not be answered.
        """
        ...

    def cancel(self) -> None:
        """Make a `find` that waits return soon. May be called from another thread."""
        ...

    def close(self) -> None:
        """Release everything, on every path."""
        ...
