"""Chunks of operator state: content-addressed files, each durable before its reference is given out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from dataflare_sdk import platform

_REF = re.compile(r"chunk:[0-9a-f]{64}")


class ChunkFolder:
    """A folder of chunks; those that no checkpoint names any more are swept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used = folder.exists()
        self._fresh: set[str] = set()

    def put(self, data: bytes) -> str:
        """Keep bytes durably and return their reference."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(data)
            platform.fsync_file(part)
            platform.replace(part, path)
        self._used = True
        self._fresh.add(digest)
        return f"chunk:{digest}"

    def get(self, ref: str) -> bytes | None:
        """Return the bytes, or None when they are missing or damaged."""
        digest = ref.removeprefix("chunk:")
        path = self._path(digest)
        data = path.read_bytes() if path.exists() else None
        return data if data is not None and hashlib.sha256(data).hexdigest() == digest else None

    def sweep(self, bodies: Iterable[str]) -> None:
        """Remove the chunks that none of the checkpoints' bodies names."""
        if not self._used:
            return
        named = {ref.removeprefix("chunk:") for body in bodies for ref in _REF.findall(body)}
        self._fresh -= named  # what no checkpoint names yet may be named by the next one
        for path in self._folder.glob("*/*"):
            if path.name not in named and path.name not in self._fresh:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest
