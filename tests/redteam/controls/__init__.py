"""Controls of attacks that are data rather than code: the same module, wheel, bytes or text where the defence is absent.

Each is what somebody would write who trusts what he is given, and runs in the private namespaces of `confined.py` only, as a user
who is not root. It returns the secret text or `OVER` when the attack worked, or leaves something that is noticed from outside. What
ends it without a word, or an exception, means that the attack does not work even there: the case shows nothing, and fails.
"""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Callable
from typing import Any

OVER = "OVER"
CONTROLS: dict[str, Callable[[Any, dict[str, Any]], str]] = {}


def control(function: Callable[[Any, dict[str, Any]], str]) -> Callable[[Any, dict[str, Any]], str]:
    """Make a function one of the controls; its name with dashes is what it is asked for by."""
    CONTROLS[function.__name__.replace("_", "-")] = function
    return function


def data(given: dict[str, Any], key: str) -> bytes:
    """Return bytes that were handed over."""
    return base64.b64decode(given[key]["base64"])


def never_ends(work: Callable[[], object], seconds: float = 2.0) -> str:
    """Do something in a process of its own and return `OVER` when it is still at it after a while."""
    return OVER if _watched(work, seconds) is None else ""


def kills(work: Callable[[], object], seconds: float = 10.0) -> str:
    """Do something in a process of its own and return `OVER` when it ends that process by a signal."""
    status = _watched(work, seconds)
    return OVER if status is not None and os.WIFSIGNALED(status) else ""


def _watched(work: Callable[[], object], seconds: float) -> int | None:
    """Return how a process that does something ended; None: it did not, and was killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def load() -> dict[str, Callable[[Any, dict[str, Any]], str]]:
    """Return all controls by name."""
    from . import bytes_of_arrow, hooks, manifests, modules, requests, texts, wheels  # noqa: F401 - they fill the table

    return CONTROLS
