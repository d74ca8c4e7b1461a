"""Chunks of operator state: content-addressed files, each durable before its reference is given out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from dataflare_sdk import platform
from dataflare_sdk.state_sql import CHUNK


class ChunkFolder:
    """A folder of chunks, in it one of each owner; those that none of an owner's checkpoints names are swept.

    What another process has put and not named yet is therefore never swept: an owner is run by one process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh: set[str] = set()

    def put(self, owner: str, data: bytes) -> str:
        """Keep bytes durably and return their reference."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / owner / digest[:2] / digest
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(data)
            platform.fsync_file(part)
            platform.replace(part, path)
        self._fresh.add(digest)
        return f"chunk:{digest}"

    def get(self, ref: str) -> bytes | None:
        """Return the bytes, or None when they are missing or damaged."""
        digest = ref.removeprefix("chunk:")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            return None
        read = (path.read_bytes() for path in self._folder.glob(f"*/{digest[:2]}/{digest}"))
        return next((data for data in read if hashlib.sha256(data).hexdigest() == digest), None)

    def sweep(self, owner: str, bodies: Iterable[str]) -> None:
        """Remove an owner's chunks that none of the checkpoints' bodies names."""
        folder = self._folder / owner
        if not folder.exists():
            return
        named = {ref.removeprefix("chunk:") for body in bodies for ref in CHUNK.findall(body)}
        self._fresh -= named  # what no checkpoint names yet may be named by the next one
        for path in folder.glob("*/*"):
            if path.name not in named and path.name not in self._fresh:
                path.unlink(missing_ok=True)
