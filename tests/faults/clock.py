"""A clock that jumps: imported by the process that runs are forked from, it sends `time.time` hours back and forth."""

from __future__ import annotations

import random
import time

HOURS = 6
_true = time.time
_chance = random.Random(3)


def _jumping() -> float:
    """Return the time, wrong by up to some hours, another error at every call."""
    return _true() + _chance.uniform(-HOURS, HOURS) * 3600


time.time = _jumping
