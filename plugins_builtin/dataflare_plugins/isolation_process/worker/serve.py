"""From a fork to a worker: confine, let the canaries sing, and only then hear of a plugin."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from dataflare_plugins.isolation_process.sandbox import canaries
from dataflare_plugins.isolation_process.sandbox.confine import Confinement, die_with_parent
from dataflare_plugins.isolation_process.wire.frames import Frames
from dataflare_plugins.isolation_process.worker.ends import Ends
from dataflare_plugins.isolation_process.worker.talk import Talk

__all__ = ["become_worker"]


def become_worker(control: socket.socket, owner: int | None, go: int) -> None:
    """Confine this process and serve the host.

    Args:
        control: the channel to the host.
        owner: user namespace for the owners of files, or None.
        go: a pipe that ends when the worker's parent is the zygote.
    """
    outside = os.getppid()
    frames = Frames(control, most_bytes=1 << 40)
    policy, _ = frames.receive()
    policy["outside"] = outside
    confinement = Confinement(policy, owner)
    confinement.leave()
    _go_on_as_child(frames, go)
    die_with_parent()
    tried = _tried(policy)
    confinement.enter()
    _close_all_but(control.fileno(), confinement.listener)
    frames.say({"report": confinement.report()}, [confinement.listener] if confinement.listener >= 0 else [])
    if confinement.listener >= 0:
        os.close(confinement.listener)
    start, _ = frames.receive()
    frames.say({"canaries": canaries.sing(policy) if tried is None else {"read a forbidden file": tried}})
    _settle(start)
    talk = Talk(frames, shared=start["shared"])
    sys.stdout = sys.stderr = _Said(talk)
    talk.serve(Ends(talk).answer)


def _go_on_as_child(frames: Frames, go: int) -> None:
    """Fork into the new process namespace; the parent hands the host a descriptor of the child and is gone."""
    child = os.fork()
    if child:
        frames.say({"pid": child}, [os.pidfd_open(child)])
        os._exit(0)
    os.read(go, 1)
    os.close(go)


def _close_all_but(*kept: int) -> None:
    """Close what the zygote had open, and what confining needed."""
    begin = 3
    for handle in sorted(k for k in kept if k >= begin):
        os.closerange(begin, handle)
        begin = handle + 1
    os.closerange(begin, 1 << 16)


def _tried(policy: dict[str, Any]) -> str | None:
    try:
        canaries.before(policy)
    except OSError as error:
        return f"could not be tried: {error}"
    return None


def _settle(start: dict[str, Any]) -> None:
    """Take the environment and the import path that the host granted."""
    os.environ.clear()
    os.environ.update(start["env"])
    sys.path[:] = [p for p in sys.path if os.path.isdir(p)]  # noqa: PTH112
    sys.path += [p for p in start["path"] if p not in sys.path]
    sys.argv = ["plugin"]


class _Said:
    """Stands in for a terminal: what a plugin prints is logged."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def write(self, text: str) -> int:
        """Log a text."""
        if text.strip():
            self._talk.tell("log", "debug", text.rstrip())
        return len(text)

    def flush(self) -> None:
        """Nothing is held."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False
