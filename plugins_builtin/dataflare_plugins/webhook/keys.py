"""Requests that came already: their keys are kept for a while, on the disk, so that a repeated one is not taken twice."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataflare_sdk.records import record

SIZE = 16
_NOTE = struct.Struct(f"<q{SIZE}s{SIZE}sI")


def digest(*parts: bytes) -> bytes:
    """Return a hash that stands for some bytes."""
    made = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()


@record
class Key:
    """A request that bore a key.

    Attributes:
        key: hash of the key.
        body: hash of what was sent with it.
        time: when it was taken, microseconds since 1970.
        rows: how many rows it brought.
    """

    key: bytes
    body: bytes
    time: int
    rows: int

    def note(self) -> bytes:
        """Return it as it stands beside the first of its messages in the log."""
        return _NOTE.pack(self.time, self.key, self.body, self.rows)

    @classmethod
    def of_note(cls, note: bytes) -> Key:
        """Read what `note` gave."""
        time, key, body, rows = _NOTE.unpack(note)
        return cls(key, body, time, rows)


class KeyStore:
    """The keys of the window, in a file.

    The log holds the newest keys beside its messages; here they need be durable only before the log is trimmed (`sync`).

    Args:
        path: the file.
        window: seconds that a key is kept.
    """

    def __init__(self, path: Path, window: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._window = int(window * 1_000_000)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS keys (key BLOB PRIMARY KEY, body BLOB, time INTEGER, rows INTEGER) WITHOUT ROWID")
        self._db.execute("CREATE INDEX IF NOT EXISTS by_time ON keys (time)")

    def find(self, keys: Sequence[bytes], now: int) -> dict[bytes, Key]:
        """Return those that came within the window before `now`, microseconds since 1970."""
        found: dict[bytes, Key] = {}
        with self._lock:
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ", ".join("?" * len(some))
                sql = f"SELECT key, body, time, rows FROM keys WHERE key IN ({marks}) AND time >= ?"
                rows = self._db.execute(sql, (*some, now - self._window))
                found.update((bytes(k), Key(bytes(k), bytes(b), t, n)) for k, b, t, n in rows)
        return found

    def add(self, keys: Iterable[Key]) -> None:
        """Keep keys, and forget those that are older than the window."""
        made = [(k.key, k.body, k.time, k.rows) for k in keys]
        if not made:
            return
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", made)
            self._db.execute("DELETE FROM keys WHERE time < ?", (max(t for _, _, t, _ in made) - self._window,))
            self._db.execute("COMMIT")

    def sync(self) -> None:
        """Make all keys durable."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()
