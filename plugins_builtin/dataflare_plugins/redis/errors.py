"""What can go wrong with a Redis server, as codes; and the driver's errors turned into them."""

from __future__ import annotations

from typing import Any

from dataflare_sdk import CODES, DataflareError, code

BAD_URL = code("redis.bad-url", 3, "The URL is none of Redis.", "Write redis://user:password@host:6379/0, or rediss:// for TLS.")
NO_DRIVER = code("redis.no-driver", 4, "The library redis is not installed.", "pip install 'dataflare[redis]'")
UNREACHABLE = code("redis.unreachable", 4, "The server cannot be reached.", "Check host and port in `url`, and that the server runs.")
LOST = code("redis.connection-lost", 4, "The connection to the server was lost.", "Run again; the run resumes.")
DENIED = code("redis.denied", 4, "The server refuses the user or the password.", "Check user and password in `url`.")
PERMISSION = code("redis.permission", 4, "The user may not run a command or touch a key.", "Let an administrator grant it (ACL SETUSER).")
BUSY = code("redis.busy", 4, "The server is loading its data, or busy with a script.", "The run tries again by itself.")
READ_ONLY = code("redis.read-only", 4, "The server is a replica and takes no writes.", "Name the primary in `url`.")
FULL = code("redis.full", 4, "The server has no memory left for more rows.", "Raise `maxmemory`, or trim its streams.")
NOT_STREAM = code("redis.not-a-stream", 4, "A key holds something else than a stream.", "Check the name of the stream.")
TOO_OLD = code(
    "redis.too-old", 4, "The server is older than Redis 7.", "Read from Redis 7 or newer: older ones do not tell what was trimmed."
)
SERVER = code("redis.failed", 4, "The server failed.", "See the server's message.")

_KINDS = {
    "LOADING": BUSY,
    "BUSY": BUSY,
    "TRYAGAIN": BUSY,
    "MASTERDOWN": BUSY,
    "READONLY": READ_ONLY,
    "OOM": FULL,
    "WRONGTYPE": NOT_STREAM,
    "NOPERM": PERMISSION,
    "NOAUTH": DENIED,
    "WRONGPASS": DENIED,
}
"""By the first word of the server's error."""


def driver() -> Any:
    """Return the library.

    Raises:
        DataflareError: `redis.no-driver`.
    """
    try:
        import redis
    except ImportError as error:
        raise NO_DRIVER.error("Redis needs the library redis, which is not installed") from error
    return redis


def explained(error: BaseException, place: str, *, connecting: bool = False, path: str | None = None) -> DataflareError:
    """Return what an error of the driver means.

    Args:
        error: the error.
        place: the server, without the password.
        connecting: there was no connection yet.
        path: the key of the `with:` block it is about.
    """
    if isinstance(error, DataflareError):
        return error
    exceptions, text = driver().exceptions, str(error) or type(error).__name__
    first = text.split(" ", 1)[0].rstrip(":")
    if isinstance(error, exceptions.BusyLoadingError):
        return BUSY.retriable(f"{place}: {text}")
    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)) or "invalid username-password" in text:
        return DENIED.error(f"{place}: {text}", path="url")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError, EOFError)):
        kind = UNREACHABLE if connecting else LOST
        return kind.retriable(f"{place}: {text}", path="url" if connecting else path)
    if "No space left" in text:
        return CODES["world.disk-full"].error(f"{place}: {text}")
    kind = _kind(error, exceptions) or _KINDS.get(first, SERVER)
    message = f"{place}: {text}"
    return kind.retriable(message) if kind is BUSY else kind.error(message, path="url" if kind is DENIED else path)


def _kind(error: BaseException, exceptions: Any) -> Any:
    """The driver strips the first word of some errors and makes a class of it."""
    for name, kind in (
        ("NoPermissionError", PERMISSION),
        ("ReadOnlyError", READ_ONLY),
        ("OutOfMemoryError", FULL),
        ("MasterDownError", BUSY),
    ):
        if isinstance(error, getattr(exceptions, name)):
            return kind
    return None
