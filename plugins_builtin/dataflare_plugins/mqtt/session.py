"""What this client must remember of its session with the broker, from process to process."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from dataflare_sdk.atomic import read_record, write_record
from dataflare_sdk.inflow.durable_log import DurableLog


class Session:
    """Remembers what was subscribed to, and which messages of quality 2 the broker may send again.

    A message of quality 2 is known by its number from its PUBLISH to its PUBREL. Its number is noted in the log beside it; that it
    is free again stands in a file, together with the place in the log from which notes count.

    Args:
        folder: where the file lies.
        log: the log of the messages.
    """

    def __init__(self, folder: Path, log: DurableLog) -> None:
        self._path = folder / "session.json"
        self._log = log
        self._lock = threading.Lock()
        kept = read_record(self._path) or {}
        self.filters: dict[str, int] | None = kept.get("filters")
        """Filter to quality as the broker has them; None: it was never asked."""
        self.client_id: str | None = kept.get("client_id")
        self._held: set[int] = set(kept.get("held", ()))
        position = int(kept.get("at", 0))
        while (page := log.read(position, 65_536, 64 << 20)) is not None:
            self._held |= {mid for note in page.notes.drop_null().to_pylist() for mid in struct.unpack("!H", note)}
            position = page.next
        self._saved = int(kept.get("at", 0))
        self._noted = max(position, log.end)
        """The place in the log up to which every number noted is in `_held`; more may be there by now."""

    def holds(self, mid: int) -> bool:
        """Whether the message of quality 2 with this number is in the log and not yet done with."""
        with self._lock:
            return mid in self._held

    def took(self, mids: Iterable[int], end: int) -> None:
        """Messages are in the log up to `end`, those of quality 2 with their notes: `mids` are their numbers."""
        with self._lock:
            self._held |= set(mids)
            self._noted = end

    def released(self, mids: Iterable[int]) -> None:
        """The broker has done with messages; their numbers will be those of others. Durable on return."""
        with self._lock:
            self._held -= set(mids)
            self._save()

    def subscribed(self, client_id: str, filters: Mapping[str, int]) -> None:
        """Keep what the broker has of us."""
        with self._lock:
            if (client_id, dict(filters)) != (self.client_id, self.filters):
                self.client_id, self.filters = client_id, dict(filters)
                self._save()

    def begun_anew(self) -> None:
        """The broker knows nothing of an earlier connection: numbers mean nothing any more."""
        with self._lock:
            if self._held:
                self._held.clear()
                self._save()

    def before_trim(self, to: int) -> int:
        """Keep the numbers whose notes are about to be trimmed away; return up to where they may be.

        That is less than `to` when messages were read, and held by every destination, before this heard that they are in the log.
        """
        with self._lock:
            to = min(to, self._noted)
            if self._held and to > self._saved:
                self._save()
            return to

    def _save(self) -> None:
        self._saved = self._noted  # not the end of the log, where notes may stand that are not in `_held` yet
        write_record(self._path, {"client_id": self.client_id, "filters": self.filters, "held": sorted(self._held), "at": self._saved})


def note(mid: int) -> bytes:
    """Return what is noted in the log beside a message of quality 2."""
    return struct.pack("!H", mid)
