"""The checkpoint record of a destination: the truth about what it holds, in the transaction of its rows.

Records of all workflows lie in one compacted topic of one partition, the newest of a key counts. Committed offsets of a group could
carry as much, but the brokers forget them a week after the last one: a workflow that stood still for longer would be lost.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dataflare_plugins.kafka.connection import Brokers
from dataflare_plugins.kafka.errors import BUSY, administration, driver
from dataflare_sdk import Target, code
from dataflare_sdk.checkpoints import DAMAGED
from dataflare_sdk.fence import FENCED, check_fence
from dataflare_sdk.records import record

NOT_COMPACTED = code(
    "kafka.checkpoints-expire",
    4,
    "The topic of the checkpoints is not compacted: its records would be deleted some day.",
    "Set cleanup.policy=compact on it, or name another one in `checkpoints`.",
)
SETTINGS = {"cleanup.policy": "compact", "segment.ms": "3600000", "segment.bytes": str(16 << 20)}
"""Of the topic: small segments, so that what is superseded goes soon."""
WINDOW = 1_000
"""Records looked at from the end backwards at first; ten times as many each time nothing was found."""
PATIENCE = 75.0
"""Seconds that others' unfinished transactions may stand before the records that are looked for."""
PAUSE = 0.005
PARTITION = 0


@record
class Held:
    """What a destination durably holds.

    Attributes:
        run_id: the run that committed it.
        epoch: its last epoch, 0 when it has only claimed the topic.
        fence: of the newest run that has claimed it.
        offsets: source offsets after that epoch.
    """

    run_id: str
    epoch: int
    fence: int
    offsets: Mapping[str, Any]


class Ledger:
    """Reads and makes the checkpoint records of one destination.

    Args:
        brokers: where they are.
        topic: the topic of the records.
        target: whose records.
    """

    def __init__(self, brokers: Brokers, topic: str, target: Target) -> None:
        self._brokers = brokers
        self.topic = topic
        self._target = target
        self.key = f"{target.workflow_id}/{target.node}".encode()
        self._what = f"reading the checkpoints in '{topic}'"
        self._admin: Any = None
        self._next: int | None = None
        self._newest: bytes | None = None

    def prepare(self) -> None:
        """Make the topic where it is missing, and see that its records are kept.

        Raises:
            DataflareError: `kafka.checkpoints-expire`, `kafka.permission`.
        """
        self._admin = self._brokers.admin()
        if not self._brokers.exists(self.topic, "checkpoints"):
            self._brokers.create(self._admin, self.topic, 1, -1, SETTINGS, "checkpoints")
            return
        policy = self._brokers.setting(self._admin, self.topic, "cleanup.policy")
        if policy is not None and "compact" not in policy.split(","):
            raise NOT_COMPACTED.error(f"the topic '{self.topic}' has cleanup.policy={policy}", path="checkpoints")

    def held(self, *, settled: bool = True) -> Held | None:
        """Return the newest committed record, None when there is none.

        Args:
            settled: nothing before it may be undecided; else what is seen now is enough.

        Raises:
            DataflareError: `state.damaged-checkpoint`, `kafka.busy`.
        """
        with self._brokers.errors(self._what, "checkpoints"):
            self._refresh(self._end(committed=not settled))
        if self._newest is None:
            return None
        try:
            found = json.loads(self._newest)
            made = Held(str(found["run_id"]), int(found["epoch"]), int(found["fence"]), dict(found["offsets"]))
            whole = int(found["crc"]) == self._crc(made)
        except (ValueError, KeyError, TypeError) as error:
            raise DAMAGED.error(f"the checkpoint record of '{self._target.node}' in '{self.topic}' is damaged") from error
        if not whole:
            raise DAMAGED.error(f"the checkpoint record of '{self._target.node}' in '{self.topic}' is damaged")
        return made

    def look(self) -> None:
        """Refuse to go on behind a newer run that can be seen: who fences others first has to be the newest.

        What it does not see yet does no harm: the newer run is fenced, begins again and is found to be the newer one then. It
        waits for nothing, as what stands in the way may be this run's own transaction, which it is about to end.

        Raises:
            DataflareError: `state.fenced`.
        """
        held = self.held(settled=False)
        if held is not None:
            check_fence(held.fence, self._target.fence, f"'{self.topic}'")

    def claimable(self) -> Held:
        """Return what is held, as this run takes it over: the epochs of another run do not count.

        Raises:
            DataflareError: `state.fenced`: a newer run has claimed it.
        """
        target, held = self._target, self.held()
        if held is None:
            return Held(target.run_id, 0, target.fence, {})
        check_fence(held.fence, target.fence, f"'{self.topic}'")
        if held.run_id != target.run_id:
            return Held(target.run_id, 0, target.fence, {})
        return replace(held, fence=target.fence)

    def check(self, epoch: int) -> None:
        """Refuse to write an epoch that does not follow the one that this run holds.

        Raises:
            DataflareError: `state.fenced`.
        """
        target, held = self._target, self.held()
        mine = (target.run_id, epoch - 1, target.fence)
        if held is None or (held.run_id, held.epoch, held.fence) != mine:
            raise FENCED.error(f"'{self.topic}' does not hold epoch {epoch - 1} of this run any more: another run has claimed it")

    def written(self, held: Held) -> bytes:
        """Return a record as it is kept."""
        shown = {"v": 1, "run_id": held.run_id, "epoch": held.epoch, "fence": held.fence, "offsets": dict(held.offsets)}
        return json.dumps({**shown, "plan_hash": self._target.plan_hash, "crc": self._crc(held)}, sort_keys=True).encode()

    def _crc(self, held: Held) -> int:
        offsets = json.dumps(dict(held.offsets), sort_keys=True)
        return zlib.crc32("\0".join((self.key.decode(), held.run_id, str(held.epoch), str(held.fence), offsets)).encode())

    # -- reading -------------------------------------------------------------------------------------------

    def _refresh(self, stop: int) -> None:
        """Read what was committed since, or from the end backwards until a record of ours is found.

        A record of ours may stand behind one of another workflow whose process died within its transaction: until the
        brokers have given that up, readers of what is committed do not get past it.
        """
        if self._next is not None:
            self._scan(self._next, stop)
        else:
            low, window, high = self._end(earliest=True), WINDOW, stop
            while high > low and self._newest is None:
                start = max(low, high - window)
                self._scan(start, high)
                high, window = start, window * 10
        self._next = stop

    def _end(self, *, committed: bool = True, earliest: bool = False) -> int:
        place, spec = driver().TopicPartition(self.topic, PARTITION), administration().OffsetSpec
        levels = driver().IsolationLevel
        level = levels.READ_COMMITTED if committed else levels.READ_UNCOMMITTED
        give_up = time.monotonic() + self._brokers.timeout
        while True:
            found = self._admin.list_offsets(
                {place: spec.earliest() if earliest else spec.latest()}, isolation_level=level, request_timeout=self._brokers.timeout
            )
            try:
                return int(found[place].result().offset)
            except driver().KafkaException as error:
                # Of a topic that was just made, and of one whose leader just changed, brokers do not know yet who leads it.
                if self._brokers.explained(error, self._what).code != BUSY.name or time.monotonic() > give_up:
                    raise
                time.sleep(PAUSE)

    def _scan(self, start: int, stop: int) -> None:
        """Keep the newest record of ours among those from `start` to before `stop`."""
        if start >= stop:
            return
        # A reader for each look: to move one takes a second, and one that stays would ask all the time.
        reader = self._brokers.consumer({"group.id": "dataflare-checkpoints", "isolation.level": "read_committed", "fetch.wait.max.ms": 5})
        try:
            reader.assign([driver().TopicPartition(self.topic, PARTITION, start)])
            give_up = time.monotonic() + PATIENCE
            while start < stop:
                if time.monotonic() > give_up:
                    raise BUSY.retriable(f"an unfinished transaction of another workflow stands in '{self.topic}'", path="checkpoints")
                for message in reader.consume(WINDOW, 0.01):
                    start = max(start, self._looked_at(message, stop))
        finally:
            reader.close()

    def _looked_at(self, message: Any, stop: int) -> int:
        """Keep a record of ours; return where the topic goes on behind it."""
        error = message.error()
        if error is None:
            if message.offset() < stop and message.key() == self.key:
                self._newest = message.value()
            return int(message.offset()) + 1
        if error.name() == "_PARTITION_EOF":
            return int(message.offset())
        if not error.retriable() and error.name() not in ("_TRANSPORT", "_ALL_BROKERS_DOWN", "GROUP_AUTHORIZATION_FAILED"):
            raise driver().KafkaException(error)
        return 0

    def close(self) -> None:
        """Let go of the connections."""
        self._admin = None
