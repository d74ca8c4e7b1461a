"""A clock that jumps: imported by the process that runs are forked from, it sends `time.time` hours back and forth."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

HOURS = 6
_true = time.time
_chance = random.Random(3)


def _jumping() -> float:
    """Return the time, wrong by up to some hours, another error at every call."""
    return _true() + _chance.uniform(-HOURS, HOURS) * 3600


time.time = _jumping
Path(os.environ["TEST_CLOCK"]).touch()  # so that the test knows: what cannot be imported before a fork is passed over in silence
