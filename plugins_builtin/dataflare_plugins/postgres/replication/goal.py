"""Where a reader is to stop: at nothing, at a goal it reaches or passes, or exactly at a checkpoint."""

from __future__ import annotations

from dataflare_plugins.postgres.replication import offsets
from dataflare_plugins.postgres.replication.offsets import Place, Progress
from dataflare_sdk import Offset


class Goal:
    """What `until` asks for.

    Attributes:
        until: as it was given.
        exact: the checkpoint to stop at, when it is one: what is read again must be what was read.
        within: the checkpoint is within a transaction, where a table's shape changes.
        lsn: where the stream ends; None: nowhere.
    """

    def __init__(self, until: Offset | None) -> None:
        self.until = until
        self.exact: Place | None = None if until is None or offsets.is_goal(until) else offsets.from_json(until)
        self.within = self.exact is not None and self.exact.skip is not None
        self.lsn: int | None = None if until is None or self.within else int(until["lsn"])

    def stop(self, place: Place, name: str) -> Progress | None:
        """Return how far a table is to be copied; None: as far as it goes."""
        return None if self.exact is None or self.exact.streaming != place.streaming else self.exact.tables.get(name)

    def unfinished(self, place: Place) -> str | None:
        """Return the table of which a chunk is to be copied next."""
        if self.exact is not None and (self.exact.streaming == place.streaming):
            return next((n for n, p in self.exact.tables.items() if place.tables.get(n, Progress()) != p), None)
        return next((n for n, p in place.tables.items() if not p.done), None)

    def copied(self, place: Place) -> bool:
        """Whether all tables are where they are to be."""
        if self.exact is not None and not self.exact.streaming:
            return place.streaming or self.unfinished(place) is None
        return place.streaming and self.unfinished(place) is None

    def streamed(self, place: Place) -> bool:
        """Whether the stream is where it is to be."""
        if self.exact is not None and not self.exact.streaming:
            return True
        return self.lsn is not None and place.lsn >= self.lsn

    def extend(self, moment: int) -> None:
        """Do not end before the last chunk's moment: the changes up to it make one moment of all chunks' moments."""
        if self.exact is None and self.lsn is not None:
            self.lsn = max(self.lsn, moment)
