"""Files that are there whole or not at all: a hidden name beside the target, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflare.errors import DISK_FULL, IO_FAILED, PERMISSION, DataflareError, code
from dataflare_sdk import platform

DAMAGED = code(
    "state.damaged-record",
    4,
    "A record beside the files of a destination is damaged.",
    "Restore it, or start over with `dataflare state reset`.",
)
HIDDEN = ".dataflare-"
"""How the names of everything uncommitted begin: readers and globs leave hidden names out."""


def hidden(target: Path, what: str) -> Path:
    """Return a hidden name beside a target, the same for the same target and purpose."""
    return target.with_name(f"{HIDDEN}{target.name}.{what}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one with a code and the path.

    Raises:
        DataflareError: `world.permission`, `world.disk-full`, `world.io`.
    """
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> DataflareError:
    """Return an error of the file system as one with a code."""
    kind = {errno.EACCES: PERMISSION, errno.EPERM: PERMISSION, errno.EROFS: PERMISSION, errno.ENOSPC: DISK_FULL}.get(
        error.errno or 0, IO_FAILED
    )
    return kind.error(f"{error.strerror or error}: {error.filename or path}")


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably.

    Raises:
        DataflareError: `world.permission`, `world.io`.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def put_file(staged: Path, target: Path) -> None:
    """Make a staged file durable and give it its final name."""
    with explained(target):
        platform.fsync_file(staged)
        platform.replace(staged, target)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_record(path: Path, values: Mapping[str, Any], *, through: Path | None = None) -> None:
    """Write a small JSON record with a checksum, durably and atomically.

    Args:
        path: the record.
        values: what stands in it.
        through: folder that it is renamed out of, of the same file system; the record's own when None.
    """
    body = json.dumps(dict(values), sort_keys=True)
    text = json.dumps({"crc": hashlib.sha256(body.encode()).hexdigest()[:16], "record": json.loads(body)})
    staged = (through or path.parent) / (path.name + ".new")
    with explained(path):
        staged.write_text(text, encoding="utf-8")
        platform.fsync_file(staged)
        platform.replace(staged, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote, or None when there is none.

    Raises:
        DataflareError: `state.damaged-record`: its checksum does not hold.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        record: dict[str, Any] = raw["record"]
        body = json.dumps(record, sort_keys=True)
        if raw["crc"] == hashlib.sha256(body.encode()).hexdigest()[:16]:
            return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise DAMAGED.error(f"the record '{path}' is damaged", file=str(path))


def cut(path: Path, length: int) -> None:
    """Cut a file back to a length, durably."""
    with explained(path), path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size > length:
            file.truncate(length)
            os.fsync(file.fileno())
