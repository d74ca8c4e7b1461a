"""Which kill comes next: half at failpoints, each as often as is wanted, half at moments; all drawn from the seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from dataflare_sdk.records import record


@record
class Kill:
    """One kill to come.

    Attributes:
        failpoint: where the run dies, None: at a moment.
        nth: at which passing.
        moment: share of an undisturbed run's time after which it is killed.
        zombie: it is stopped, not killed, and wakes up when another run has taken over.
    """

    failpoint: str | None = None
    nth: int = 1
    moment: float = 0.0
    zombie: bool = False


class Schedule:
    """Deals out kills until there are enough.

    Args:
        passed: failpoint to how often an undisturbed run passed it, in the order of the first passing.
        kills: how many kills are wanted; more when the failpoints need more.
        seed: the same seed deals out the same kills.
        zombies: some runs are stopped and woken up instead of killed.
        each: kills wanted at every failpoint.
    """

    TRIES = 4
    """Rounds in which a failpoint may fail to be reached before it is given up."""
    ZOMBIES = 0.15
    """Share of the moments at which a run is stopped and woken up later, instead of killed."""

    def __init__(self, passed: Mapping[str, int], kills: int, seed: int, *, zombies: bool, each: int = 1) -> None:
        self._passed = dict(passed)
        self._random = random.Random(seed)  # noqa: S311 - a repeatable choice is what is wanted
        self._zombies = zombies
        self._missed: Counter[str] = Counter()
        self._skipped: set[str] = set()
        self._each = each
        needed = each * len(self._passed)
        self.wanted = max(kills, needed)
        self.at_failpoints = max(kills // 2, needed) if self._passed else 0
        self.hits: dict[str, int] = dict.fromkeys(self._passed, 0)
        # What is passed once (a snapshot's beginning) is killed before it is over; the others at any stage.
        often = [n for n, count in passed.items() if count > 1]
        self._random.shuffle(often)
        self._order = [n for n, count in passed.items() if count == 1] + often
        self.kills = 0

    @property
    def waiting(self) -> list[str]:
        """Failpoints where not enough runs have died, in the order they are tried, without those given up."""
        return [n for n in self._order if self.hits[n] < self._each and self._missed[n] < self.TRIES]

    def missing(self) -> list[str]:
        """Return the failpoints where fewer runs have died than were wanted."""
        return [n for n, hits in self.hits.items() if hits < self._each]

    def done(self) -> bool:
        """Whether there were enough kills and every failpoint has had its own."""
        return self.kills >= self.wanted and not self.waiting

    def fresh(self) -> None:
        """A new round begins: what could not be reached in the last one may be now."""
        self._skipped.clear()

    def exhausted(self) -> bool:
        """Whether only failpoints are left to hit that this round does not reach any more."""
        return self.kills >= self.wanted and all(n in self._skipped for n in self.waiting)

    def next(self) -> Kill:
        """Return the next kill."""
        zombie = self._zombies and self._random.random() < self.ZOMBIES
        moment = self._random.uniform(0.02, 1.0)
        first = min((n for n in self.waiting if n not in self._skipped), key=lambda n: self.hits[n], default=None)
        done, left = sum(self.hits.values()), self.wanted - self.kills
        if first is not None and (done <= self.kills - done or left <= sum(self._each - self.hits[n] for n in self.waiting)):
            return Kill(first, 1 if self._missed[first] else self._random.randint(1, max(1, min(2, self._passed[first]))))
        if self._passed and done < self.at_failpoints and done <= self.kills - done:
            name = self._random.choice(sorted(self._passed))
            return Kill(name, self._random.randint(1, max(1, min(4, self._passed[name]))))
        return Kill(moment=moment, zombie=zombie)

    def missed_before(self, kill: Kill) -> bool:
        """Whether its failpoint could not be reached in an earlier round: the run is to go to its end this time."""
        return kill.failpoint is not None and bool(self._missed[kill.failpoint])

    def killed(self, kill: Kill, *, at_failpoint: bool) -> None:
        """Note that a run died."""
        self.kills += 1
        if at_failpoint and kill.failpoint is not None:
            self.hits[kill.failpoint] += 1
            self._missed[kill.failpoint] = 0

    def missed(self, kill: Kill) -> None:
        """Note that a run never came to its failpoint."""
        if kill.failpoint is not None and kill.failpoint not in self._skipped:
            self._skipped.add(kill.failpoint)
            self._missed[kill.failpoint] += 1
