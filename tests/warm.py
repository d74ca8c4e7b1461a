"""A process that has imported what every command needs, and forks one per command: most of a short run is imports.

It is started by `tests.commands` with one end of a socket as its standard input. A command that was forked begins where
one that Python has just started would call `dataflare.process.entry`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import pkgutil
import socket
import struct
import sys
import time
import types
from collections.abc import Iterable, Sequence

LENGTH = struct.Struct("!I")
PATH = "PYTHONPATH"
PACKAGES = ("dataflare", "dataflare_sdk", "dataflare_plugins.engine", "dataflare_plugins.files")
MODULES = (
    "duckdb",
    "pyarrow.compute",
    "pyarrow.parquet",
    "sqlite3",
    "yaml",
    "dataflare_plugins.duckdb.destination",
    "dataflare_plugins.expressions_duckdb",
    "dataflare_plugins.sqlite.destination",
    "dataflare_plugins.sqlite.source",
    "dataflare_plugins.state_sqlite.store",
)
"""What nearly every run imports; nothing of it is opened before the fork."""
WITHOUT = ("dataflare.__main__", "dataflare_sdk.testing", "dataflare_sdk.pdk")

Order = tuple[Sequence[str], str, dict[str, str]]
"""Arguments, folder and environment of a command."""


def preload(packages: Iterable[str], modules: Iterable[str]) -> None:
    """Import packages with all that is in them, and modules."""
    for name in packages:
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not found.name.startswith(WITHOUT):
                importlib.import_module(found.name)
    for name in modules:
        importlib.import_module(name)


def exactly(line: socket.socket, size: int) -> bytes:
    """Receive so many bytes.

    Raises:
        EOFError: the other side has gone.
    """
    parts: list[bytes] = []
    while size:
        part = line.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def serve(line: socket.socket) -> Order | None:
    """Fork commands until nobody asks for one any more, and return None; in what was forked, return what it is to be."""
    while True:
        head, files, _flags, _address = socket.recv_fds(line, LENGTH.size, 3)
        if not head:
            return None
        order: Order = pickle.loads(exactly(line, *LENGTH.unpack(head)))
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            # Its parent's parent takes in what it leaves behind, so that a test waits for a command as for any child of its own.
            child = os.fork()
            if child:
                os.write(write, LENGTH.pack(child))
                os._exit(0)
            for number, file in enumerate(files):
                os.dup2(file, number)
            os.closerange(3, max(line.fileno(), read, write, *files) + 1)
            return order
        os.close(write)
        for file in files:
            os.close(file)
        os.waitpid(between, 0)
        line.sendall(os.read(read, LENGTH.size))
        os.close(read)


def become(order: Order) -> None:
    """Be in its folder, with its environment and arguments, what `python -m dataflare` is when it calls `entry`."""
    from dataflare_sdk import failpoints

    arguments, folder, env = order
    os.chdir(folder)
    failpoints.arm(env.get("DATAFLARE_FAILPOINT"), env.get("DATAFLARE_FAILPOINT_HITS"))
    more = [os.path.abspath(p) for p in env.get(PATH, "").split(os.pathsep) if p and PATH not in os.environ]
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.path[:1] = [folder, *more]  # as `-m` does
    main, sys.modules["warm"] = types.ModuleType("__main__"), sys.modules["__main__"]
    main.__spec__ = importlib.util.find_spec("dataflare.__main__")  # what it starts by `multiprocessing` looks for it
    assert main.__spec__ is not None
    main.__file__ = main.__spec__.origin
    sys.modules["__main__"] = main
    sys.argv = [str(main.__file__), *arguments]


if __name__ == "__main__":
    preload(PACKAGES, MODULES)
    asked = serve(socket.socket(fileno=os.dup(0)))
    if asked is not None:
        become(asked)
        from dataflare.process import entry

        entry()
