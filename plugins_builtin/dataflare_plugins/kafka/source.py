"""Topics as a source: every message of every partition, from where the last run stopped."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dataflare_plugins.kafka.connection import Brokers
from dataflare_plugins.kafka.errors import driver
from dataflare_plugins.kafka.options import BROKERS, CLIENT, SECURITY, TIMEOUT, Security
from dataflare_plugins.kafka.parts import EARLIEST, LATEST, part_of, place
from dataflare_sdk import Duration, ExtractSpec, Offset, Partition, Reader, StreamInfo, code, config, option
from dataflare_sdk.inflow.options import MessageConfig
from dataflare_sdk.inflow.source import MessageSource

if TYPE_CHECKING:
    from dataflare_plugins.kafka.reader import KafkaReader

WHAT = code("kafka.what-to-read", 3, "Give exactly one of `topic` and `topics`.", "Keep one of them.")
BAD_START = code("kafka.bad-start", 3, "`start` is no place to begin at.", "Write earliest, latest, or a time like 2026-01-31T00:00:00Z.")
STARTED = "start"
"""Key of the state entry that says where a run's first epoch begins."""


@config
class KafkaConfig(MessageConfig):
    """What is read."""

    brokers: str = BROKERS
    topic: str | None = option("The topic.", default=None, example="orders")
    topics: list[str] | None = option("Several topics of the same columns, as one stream.", default=None, min_items=1)
    group: str | None = option(
        "Consumer group under which offsets are committed, for others to see; where a run goes on is in its own state.", default=None
    )
    start: str = option(
        "Where the first run begins: `earliest`, `latest`, or at a time.", default="earliest", example="2026-01-31T00:00:00Z"
    )
    isolation: Literal["read_committed", "read_uncommitted"] = option("Whether open transactions are read.", default="read_committed")
    on_lost: Literal["fail", "earliest", "latest"] = option(
        "Where to go on when the brokers have deleted messages before they were read.", default="fail"
    )
    tombstones: Literal["row", "skip"] = option(
        "Messages without a value: a row whose columns are NULL (its key is `_key`), or none.", default="row"
    )
    discover_every: Duration = option("How often to look for new partitions.", default=30.0, example="30s")
    security: Security | None = SECURITY
    client: dict[str, str | int | float | bool] = CLIENT
    timeout: Duration = TIMEOUT


class KafkaSource(MessageSource[KafkaConfig]):
    """Reads all partitions at once; offsets live in the run's own checkpoints."""

    Config = KafkaConfig

    def __init__(self, config: KafkaConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if (config.topic is None) == (config.topics is None):
            raise WHAT.error("give exactly one of `topic` and `topics`", path="topic")
        self.topics: tuple[str, ...] = (config.topic,) if config.topic is not None else tuple(dict.fromkeys(config.topics or ()))
        self._since = _moment(config.start)
        looking = {"isolation.level": config.isolation, **({"group.id": config.group} if config.group is not None else {})}
        self.brokers = Brokers(config, ctx, looking)

    # -- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Reach the brokers and find every topic."""
        self.parts_there()

    def parts_there(self) -> list[str]:
        """Return the names of all partitions, `topic/0`.

        Raises:
            DataflareError: `kafka.no-topic`, `kafka.unreachable` and the like.
        """
        path = "topic" if self.config.topic is not None else "topics"
        return [part_of(topic, number) for topic in self.topics for number in self.brokers.partitions(topic, path)]

    def sample(self, count: int) -> Sequence[bytes]:
        """Return the newest messages that are there."""
        names = self.parts_there()
        first, last = self.offsets(names, EARLIEST), self.offsets(names, LATEST)
        each = -(-count // len(names))
        starts = {n: max(first[n], last[n] - each) for n in names if last[n] > first[n]}
        if not starts:
            return []
        reader, found = self.consumer(starts), list[bytes]()
        try:
            give_up = time.monotonic() + self.config.timeout
            waiting = set(starts)
            while waiting and len(found) < count and time.monotonic() < give_up:
                for message in reader.consume(count, 0.05):
                    if message.error() is None and message.value() is not None:
                        found.append(message.value())
                    elif message.error() is not None and message.error().name() == "_PARTITION_EOF":
                        waiting.discard(part_of(message.topic(), message.partition()))
        finally:
            reader.close()
        return found[:count]

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition of the plan: the topics' own come and go while it runs."""
        return super().parts(streams[:1], extract)

    # -- offsets -------------------------------------------------------------------------------------------

    def offsets(self, names: Sequence[str], when: int) -> dict[str, int]:
        """Return an offset of each partition: its first one, the next one to be written, or the first since a time.

        Args:
            names: the partitions.
            when: `EARLIEST`, `LATEST`, or milliseconds since 1970.
        """
        if not names:
            return {}
        with self.brokers.errors("asking for offsets", None, self.brokers.looking):
            asked = [place(name, when) for name in names]
            found = self.brokers.looking.offsets_for_times(asked, timeout=self.config.timeout)
            for answer in found:
                if answer.error is not None:
                    raise driver().KafkaException(answer.error)
        made = {part_of(p.topic, p.partition): int(p.offset) for p in found}
        late = [n for n, offset in made.items() if offset < 0]  # nothing is as young as that
        return {**made, **self.offsets(late, LATEST)} if when >= 0 and late else made

    def begun(self, names: Sequence[str]) -> dict[str, int]:
        """Return where the first epoch of this run begins; asked again, after a crash, the same.

        An epoch that is read again must begin where it began: `latest` is another place by then.
        """
        run = self.ctx.run.run_id if self.ctx.run is not None else ""
        held = json.loads(self.ctx.state_get(STARTED) or b"{}")
        if held.get("run") == run:
            return {n: int(offset) for n, offset in held["offsets"].items()}
        made = self.offsets(names, self._since)
        self.ctx.state_put(STARTED, json.dumps({"run": run, "offsets": made}).encode())
        return made

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where every partition ends now."""
        ends = self.offsets(self.parts_there(), LATEST)
        return {"v": 1, "parts": {name: end - 1 for name, end in ends.items()}}

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Commit the offsets of the group, for whoever watches it; nothing of ours depends on them."""
        if self.config.group is None:
            return
        places = [place(name, int(at) + 1) for name, at in (offset.get("parts") or {}).items() if int(at) >= 0]
        try:
            if places:
                self.brokers.looking.commit(offsets=places, asynchronous=False)
        except driver().KafkaException as error:
            self.ctx.log.warning("the offsets of the group '{}' were not committed: {}", self.config.group, error.args[0].str())

    # -- reading -------------------------------------------------------------------------------------------

    def consumer(self, starts: Mapping[str, int]) -> Any:
        """Return a consumer that reads partitions from these offsets on."""
        kept = max(1 << 20, min(64 << 20, self.ctx.memory // 4))
        made = self.brokers.consumer(
            {
                "group.id": self.config.group or f"dataflare-{self.ctx.node}",
                "isolation.level": self.config.isolation,
                "queued.max.messages.kbytes": kept >> 10,
                # A full queue is looked at again soon; by default it is left alone for a second, which costs nine tenths of the speed.
                "fetch.queue.backoff.ms": 5,
                "fetch.message.max.bytes": min(1 << 20, kept),
                "fetch.max.bytes": max(kept, 1 << 20),
            }
        )
        with self.brokers.errors("beginning to read"):
            # At once: a consumer that was idle for a moment begins a second late.
            made.assign([place(name, offset) for name, offset in starts.items()])
        return made

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read on after `offset`, to `until` if given."""
        from dataflare_plugins.kafka.reader import KafkaReader

        reader: KafkaReader = KafkaReader(self, partition, extract, offset, until)
        return reader

    def close(self) -> None:
        """Close every connection."""
        self.brokers.close()


def _moment(start: str) -> int:
    """Return what to ask the brokers for.

    Raises:
        DataflareError: `kafka.bad-start`.
    """
    if start in ("earliest", "latest"):
        return EARLIEST if start == "earliest" else LATEST
    try:
        moment = datetime.datetime.fromisoformat(start)
    except ValueError:
        raise BAD_START.error(f"'{start}' is neither earliest nor latest nor a time", path="start") from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return max(0, int(moment.timestamp() * 1000))
