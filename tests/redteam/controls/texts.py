"""Text of a stranger, printed and logged as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from . import OVER, control


def printed(write: Callable[[], object]) -> str:
    """Return what a process prints."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        write()
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@control
def print_as_it_is(target: Any, given: dict[str, Any]) -> str:
    """Print a text: what acts on a terminal arrives there, and a second line looks like any other."""
    found = printed(lambda: print(f"log: {given['text']}"))
    forged = any(line.strip().startswith("all is well, says nobody") for line in found.splitlines())
    return OVER if any(c in found for c in "\x1b\x9b\u202e") or forged else ""


@control
def print_again_and_again(target: Any, given: dict[str, Any]) -> str:
    """Print as often as somebody likes."""
    found = printed(lambda: [print("flood") for _ in range(given["times"])])
    return OVER if found.count("flood") == given["times"] else ""


@control
def print_a_secret(target: Any, given: dict[str, Any]) -> str:
    """Print a text with a secret in it, in the form somebody gave it."""
    with open(target.secret) as file:
        secret = file.read()
    return printed(lambda: print(given["text"].format(secret=secret)))
