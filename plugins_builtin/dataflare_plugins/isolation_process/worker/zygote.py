"""The process that workers are forked from: everything of ours is imported, nothing of a plugin ever is.

Started as `python -I -S zygote.py PATHS`, with its channel as descriptor 3. It ends with the host, and every worker
with it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from contextlib import suppress
from typing import NoReturn

CHANNEL = 3


def main() -> None:
    """Serve until the host goes."""
    for path in json.loads(sys.argv[1]):
        sys.path.append(path)
    os.closerange(CHANNEL + 1, 1 << 16)
    import pyarrow.compute  # noqa: F401 - the slow part of a worker's start, done once

    from dataflare_plugins.isolation_process.sandbox.confine import USER
    from dataflare_plugins.isolation_process.sandbox.root import owner_map
    from dataflare_plugins.isolation_process.sandbox.syscalls import prctl
    from dataflare_plugins.isolation_process.worker.serve import become_worker

    child_subreaper = 36
    prctl(child_subreaper, 1)
    owner = None
    if os.getuid() == 0:
        with suppress(OSError):
            owner = owner_map(USER)
    channel = socket.socket(fileno=CHANNEL)
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


def _run(become_worker, control, owner, go) -> NoReturn:  # type: ignore[no-untyped-def]  # noqa: ANN001
    try:
        become_worker(control, owner, go)
    except BaseException:  # the host sees the channel end
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
