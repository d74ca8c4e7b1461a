"""The process that workers are forked from: everything of ours is imported, nothing of a plugin ever is.

Started as `python -I -S zygote.py PATHS`, with its channel as descriptor 3. It ends with the host, and every worker
with it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

CHANNEL = 3


def main() -> None:
    """Serve until the host goes."""
    os.closerange(CHANNEL + 1, 1 << 16)
    channel = socket.socket(fileno=CHANNEL)
    try:
        become_worker, owner = _prepared()
    except Exception as error:
        channel.sendall(f"{type(error).__name__}: {error}".encode()[:2000])
        os._exit(1)
    channel.sendall(b"!")
    while True:
        control = _next(channel)
        go, ready = os.pipe()
        child = os.fork()
        if child == 0:
            channel.close()
            os.close(ready)
            _run(become_worker, control, owner, go)
        control.close()
        os.close(go)
        # The child forks the worker and is gone; only then is the worker ours, and may tie its life to ours.
        os.waitpid(child, 0)
        os.close(ready)


def _prepared() -> tuple[Callable[[socket.socket, int | None, int], None], int | None]:
    """Import what workers need, and return what a fork becomes one by, and a user namespace for the owners of files.

    The slow part of a worker's start, done once: all that a plugin's imports lead to.
    """
    for path in json.loads(sys.argv[1]):
        sys.path.append(path)
    import dataflare_sdk
    from dataflare_plugins.isolation_process.sandbox.confine import USER
    from dataflare_plugins.isolation_process.sandbox.root import owner_map
    from dataflare_plugins.isolation_process.sandbox.syscalls import prctl
    from dataflare_plugins.isolation_process.worker.serve import become_worker
    from dataflare_sdk.compute import pc

    pc.add(1, 1)
    for name in dataflare_sdk.__all__:
        getattr(dataflare_sdk, name)
    _rehearse(dataflare_sdk)
    child_subreaper = 36
    prctl(child_subreaper, 1)
    owner = None
    if os.getuid() == 0:
        with suppress(OSError):
            owner = owner_map(USER)
    gc.collect()
    gc.freeze()  # or a fork's first collection would copy every page
    return become_worker, owner


def _rehearse(sdk: Any) -> None:
    """Do once what every plugin does at its import: what is looked up and compiled on first use, a fork finds done."""

    class Settings:
        """Nothing."""

        text: str = sdk.option("text", default="")

    class Rehearsed(sdk.Processor):  # type: ignore[misc]
        Config = sdk.config(Settings)

    Rehearsed.configure({"text": "x"})


def _next(channel: socket.socket) -> socket.socket:
    """Return the control channel of the next worker; the dead are buried meanwhile."""
    while True:
        ready, _, _ = select.select([channel], [], [], 0.5)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if ready:
            data, handles, _, _ = socket.recv_fds(channel, 1, 1)
            if not data:
                os._exit(0)
            return socket.socket(fileno=handles[0])


def _run(become_worker: Callable[[socket.socket, int | None, int], None], control: socket.socket, owner: int | None, go: int) -> NoReturn:
    try:
        become_worker(control, owner, go)
    except BaseException:  # the host sees the channel end
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
