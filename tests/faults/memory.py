"""Whether the memory of a long run grows.

The memory of the run (resident, with its children) is sampled every second. The longest stretch of one run without any disturbance is
taken, its beginning is dropped as warm-up (ten minutes, or a third of it, whichever is less: caches, allocator and pools fill),
and a slope is laid through medians of half minutes. Memory has grown when that slope is above 1 % of the memory per hour
*and* its 95 % interval lies above zero: a slope within the noise is no growth, and neither is one that would take four days to
double. The interval stands in the report, so that a soak too short to see anything is known as such. Under five minutes
behind the warm-up nothing is judged. The soak ends four epochs a second: what grows
by the epoch shows four times as fast as at the usual one.

The slope is that of Theil and Sen: the median of all slopes between two points; ranks of those slopes give its interval, by the
variance of Kendall's S. Method: P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

MIB = 1 << 20
JUDGED = 300.0
"""Seconds behind the warm-up that it takes to judge memory."""
BLOCK = 30.0
"""Seconds whose median is one point: samples of one second hang together too much to be counted each."""


def blocks(samples: Sequence[tuple[float, float]], seconds: float = BLOCK) -> list[tuple[float, float]]:
    """Return the median of every block of `seconds`, at its middle; the last one only if it is whole."""
    if not samples:
        return []
    first = samples[0][0]
    by = itertools.groupby(samples, lambda s: int((s[0] - first) // seconds))
    whole = int((samples[-1][0] - first + 1.5) // seconds)
    return [(first + (i + 0.5) * seconds, statistics.median(v for _, v in group)) for i, group in by if i < whole]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the slope of Theil and Sen and its 95 % interval: `(slope, low, high)`, in units of y per unit of x.

    Raises:
        ValueError: there are fewer than 8 points, too few to say anything.
    """
    if len(points) < 8:
        raise ValueError(f"{len(points)} points are too few for a slope")
    found = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))
    n = len(points)
    half = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((len(found) - half) / 2))
    high = min(len(found) - 1, math.ceil((len(found) + half) / 2))
    return statistics.median(found), found[low], found[high]


class Memory(threading.Thread):
    """Samples the memory of whatever run goes on, once a second.

    Args:
        pid: says which process that is, None: none at the moment.
    """

    def __init__(self, pid: Callable[[], int | None]) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.samples: list[tuple[float, int, float]] = []
        """Clock, process, MiB."""

    def run(self) -> None:
        """Sample until ended."""
        while not self._ended.wait(1.0):
            pid = self._pid()
            if pid is None:
                continue
            with contextlib.suppress(psutil.Error):
                whole = psutil.Process(pid)
                bytes_ = sum(p.memory_info().rss for p in [whole, *whole.children(recursive=True)])
                self.samples.append((time.monotonic(), pid, bytes_ / MIB))

    def end(self) -> None:
        """Sample no more."""
        self._ended.set()
        self.join()

    def verdict(self, disturbed: list[float]) -> dict[str, Any]:
        """Judge the longest stretch of one run between two disturbances; see the module."""
        stretches: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for at, pid, mib in self.samples:
            stretches.setdefault((pid, sum(d <= at for d in disturbed)), []).append((at, mib))
        longest = max(stretches.values(), key=lambda s: s[-1][0] - s[0][0], default=[])
        if not longest:
            return {"judged": False, "grown": False}
        lived = longest[-1][0] - longest[0][0]
        warm = min(600.0, lived / 3)
        points = blocks([s for s in longest if s[0] >= longest[0][0] + warm])
        about: dict[str, Any] = {
            "seconds_undisturbed": round(lived),
            "seconds_of_warm_up": round(warm),
            "mib_most": round(max(m for _, _, m in self.samples), 1),
            "judged": lived - warm >= JUDGED,
            "grown": False,
        }
        if about["judged"]:
            found, low, high = (3600 * x for x in slope(points))
            usual = statistics.median(m for _, m in points)
            about |= {
                "mib_median": round(usual, 1),
                "mib_per_hour": round(found, 2),
                "interval_95": [round(low, 2), round(high, 2)],
                "grown": low > 0 and found > 0.01 * usual,
                "half_minutes": [round(m, 1) for _, m in points],
            }
        return about
