"""DuckDB connections, opened one way: bounded, in UTC, locked down to what they may touch."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from dataflare.errors import DISK_FULL, DataflareError, ErrorCode, code
from dataflare_sdk.schema import literal

if TYPE_CHECKING:
    import duckdb

OUT_OF_MEMORY = code("world.out-of-memory", 4, "A step needs more memory than it was given and cannot spill.", "Raise `runtime.memory`.")
FAILED = code(
    "data.expression", 1, "A value made an expression fail.",
    "Mend the data, guard the expression (try_cast, nullif), or set `errors.on_record`.",
)  # fmt: skip
NO_PUSHDOWN = "SET disabled_optimizers='filter_pushdown,filter_pullup'"
"""For a statement where a step that drops rows follows an expression that can fail: DuckDB must not drop the
failing rows first (with pushdown on, failures silently became filtered rows)."""

LEAST_FOR_SESSIONS = 80 << 20
"""Bytes: DuckDB reads JSON in two buffers of 32 MiB, however short the file."""


def connect(
    *,
    memory: int | None = None,
    threads: int | None = None,
    temp: Path | None = None,
    timezone: str = "UTC",
    database: str = ":memory:",
) -> duckdb.DuckDBPyConnection:
    """Open a connection to an instance of its own.

    Args:
        memory: bytes it may use before it spills.
        threads: worker threads.
        temp: folder to spill into; made when first needed.
        timezone: of `timestamptz` functions; never the machine's.
        database: a file, or the default in-memory one.
    """
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    if memory is not None:
        settings["memory_limit"] = _limit(memory)
    if threads is not None:
        settings["threads"] = max(1, threads)
    if temp is not None:
        temp.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes the folder itself, not those above it
        settings["temp_directory"] = str(temp)
    connection = duckdb.connect(database, config=settings)
    connection.execute(f"SET GLOBAL TimeZone={literal(timezone)}")
    return connection


_shared: duckdb.DuckDBPyConnection | None = None
_sessions: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
_shared_lock = threading.Lock()


def session(timezone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """Open a connection to the instance that the process keeps for small work: binding, discovery, a batch at a time.

    An instance costs some 20 ms, a session microseconds. What holds more than a batch, spills, or is to be locked
    down wants an instance of its own: `connect`.

    Args:
        timezone: of `timestamptz` functions; never the machine's.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = connect(threads=1)
            atexit.register(_forget)
            _shared.execute("SET temp_directory=''")
        made = _shared.cursor()
        _sessions.add(made)
    if timezone != "UTC":
        made.execute(f"SET TimeZone={literal(timezone)}")
    return made


def _forget() -> None:
    """Close the instance before the interpreter goes: DuckDB complains of what is left."""
    global _shared
    atexit.unregister(_forget)
    if _shared is not None:
        _shared.close()
    _shared = None


def take_or_connect(*, memory: int, threads: int, temp: Path, timezone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """Open an instance as `connect` does; when nobody has a session, the one of the sessions is handed over."""
    global _shared
    with _shared_lock:
        if _shared is None or _sessions:
            return connect(memory=memory, threads=threads, temp=temp, timezone=timezone)
        taken, _shared = _shared, None
    taken.execute(f"SET memory_limit='{_limit(memory)}'; SET threads={max(1, threads)}; SET temp_directory={literal(str(temp))}")
    taken.execute(f"SET GLOBAL TimeZone={literal(timezone)}")
    taken.execute(f"SET TimeZone={literal(timezone)}")
    return taken


def _limit(memory: int) -> str:
    return f"{max(memory, 32 << 20) // 1024}KiB"


def bound_sessions(memory: int) -> None:
    """Bound what all sessions of the process use together, in bytes; they are left what one look at a file of JSON takes."""
    with session() as connection:
        connection.execute(f"SET memory_limit='{_limit(max(memory, LEAST_FOR_SESSIONS))}'")


def lock_down(connection: duckdb.DuckDBPyConnection, paths: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Let a connection touch only `paths` and what lies in `folders`, for good.

    A folder needs its trailing slash; one is added when missing.
    """
    allowed = ", ".join(literal(p) for p in paths)
    inside = ", ".join(literal(f if f.endswith("/") else f + "/") for f in folders)
    if allowed:
        connection.execute(f"SET allowed_paths=[{allowed}]")
    if inside:
        connection.execute(f"SET allowed_directories=[{inside}]")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")


def is_out_of_memory(error: Exception) -> bool:
    """Return True when DuckDB gave up for want of memory."""
    return "OutOfMemory" in type(error).__name__ or "Out of Memory" in str(error)


def judged(error: Exception, otherwise: ErrorCode, message: str) -> DataflareError:
    """Tell a failure of memory or disk from one that the data caused."""
    text = str(error)
    if is_out_of_memory(error):
        return OUT_OF_MEMORY.error(message)
    if "No space left" in text:
        return DISK_FULL.error(message)
    return otherwise.error(message)


class CurrentBatch:
    """Serves whatever batches are current; registered once.

    A batch that is registered anew under the same name is not seen by a prepared statement: it would give the old
    rows, silently.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.batches: Sequence[pa.RecordBatch] = ()

    @property
    def batch(self) -> pa.RecordBatch:
        """The first of them; setting it makes it the only one."""
        return self.batches[0]

    @batch.setter
    def batch(self, batch: pa.RecordBatch) -> None:
        self.batches = (batch,)

    def __arrow_c_schema__(self) -> object:
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return pa.RecordBatchReader.from_batches(self._schema, self.batches).__arrow_c_stream__(requested_schema)
