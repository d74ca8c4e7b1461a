"""The reader of topics: what the client has fetched becomes pages of one partition each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from dataflare_plugins.kafka.errors import UNREACHABLE, named
from dataflare_plugins.kafka.parts import EARLIEST, LATEST, part_of, place, split
from dataflare_sdk import Batch, ExtractSpec, Offset, Partition, code
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.inflow.reader import MessageReader

if TYPE_CHECKING:
    from dataflare_plugins.kafka.source import KafkaSource

LOST = code(
    "kafka.offset-lost",
    4,
    "The brokers have deleted messages that were not read yet, or the topic was made anew.",
    "Set `on_lost` to earliest or latest to go on without them, or start over with `dataflare state reset`.",
)
ERROR, TOPIC, PARTITION, OFFSET, VALUE = map(methodcaller, ("error", "topic", "partition", "offset", "value"))
PAGE = 16_384
"""Messages taken from the client at once at most."""
PATIENCE = 30.0
"""Seconds without any broker after which the attempt is given up; the client itself would try for ever."""
ENDED = "_PARTITION_EOF"
OUT_OF_RANGE = "_AUTO_OFFSET_RESET"
TOLD_LATER = named("_TRANSPORT _ALL_BROKERS_DOWN _TIMED_OUT _RESOLVE GROUP_AUTHORIZATION_FAILED")
"""Errors of connections that the client mends by itself, and one of a group that is none of ours."""


class KafkaReader(MessageReader):
    """Reads all partitions of a source's topics; a position is the offset of the last message that was handed on."""

    def __init__(
        self, source: KafkaSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None
    ) -> None:
        super().__init__(source, partition, extract, offset, until)
        self._source = source
        self._anew = offset is None
        self._topics: dict[str, str] = dict((offset or {}).get("topics") or {})
        self._client: Any = None
        self._pages: deque[Messages] = deque()
        self._broken: deque[tuple[str, Any]] = deque()
        self._usual = 256
        self._moved: dict[str, int] = {}
        self._looked = 0.0
        self._down: float | None = None
        self._skips = source.config.tombstones == "skip"
        self._empty = b"{}" if source.config.format == "json" else None

    # -- beginning -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Stand at the positions, and at the beginning of partitions that have none yet."""
        names = self._source.parts_there()
        self._looked = time.monotonic()
        wanted = names if self.until is None else [n for n in self.until if self.wants(n)]
        gone = [n for n in wanted if n not in names]
        if gone:
            raise LOST.error(f"there is no partition '{gone[0]}' any more", path="on_lost")
        self._recognise()
        starts = self._source.begun(names) if self._anew else {}
        self._stand([n for n in wanted if n not in self.positions], starts)
        self._client = self._source.consumer({n: self._moved.pop(n, self.positions[n] + 1) for n in wanted})

    def _recognise(self) -> None:
        """See that the topics are those that were read before: offsets mean nothing in one that was made anew.

        Raises:
            DataflareError: `kafka.offset-lost`.
        """
        for topic, identity in self._source.brokers.identities(self._source.topics).items():
            if self._topics.setdefault(topic, identity) == identity:
                continue
            policy, told = self._source.config.on_lost, f"the topic '{topic}' was made anew since it was read"
            if policy == "fail" or self.until is not None:
                raise LOST.error(told, path="on_lost")
            self._source.ctx.log.warning("{}: it is read from its {} (on_lost: {})", told, policy, policy)
            self._topics[topic] = identity
            for part in [p for p in self.positions if split(p)[0] == topic]:
                del self.positions[part]
            there = [n for n in self._source.parts_there() if split(n)[0] == topic]
            for part, onward in self._source.offsets(there, EARLIEST if policy == "earliest" else LATEST).items():
                self._move(part, onward)

    def _move(self, part: str, onward: int) -> None:
        """Have a partition go on at an offset; its position is told by what comes from there, a message or the end."""
        self.positions[part] = min(self.positions.get(part, onward), onward - 2)
        self._moved[part] = onward

    def _batch(self, page: Messages) -> Batch:
        made = super()._batch(page)
        assert made.offset is not None
        made.offset = {**made.offset, "topics": self._topics} if self._topics else made.offset
        return made

    def _stand(self, names: list[str], starts: dict[str, int]) -> None:
        """Give partitions a position; one that came later is read from its beginning."""
        first = self._source.offsets([n for n in names if n not in starts], EARLIEST)
        for name in names:
            self.positions[name] = {**first, **starts}[name] - 1

    def _look_for_new(self) -> None:
        """Read partitions that the topics have got since."""
        now = time.monotonic()
        if self.until is not None or now - self._looked < self._source.config.discover_every:
            return
        self._looked = now
        new = [n for n in self._source.parts_there() if n not in self.positions]
        if new:
            self._stand(new, {})
            self._source.ctx.log.info("there are new partitions: {}", ", ".join(new))
            with self._source.brokers.errors("reading new partitions"):
                self._client.incremental_assign([place(n, self.positions[n] + 1) for n in new])

    # -- reading -------------------------------------------------------------------------------------------

    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return the messages of one partition that have come."""
        if self._client is None:
            self._begin()
        while not self._pages:
            if self._broken:
                self._mend()
                continue
            self._look_for_new()
            self._take(max(1, min(max_rows, PAGE, max_bytes // self._usual)), deadline - time.monotonic())
            if not self._pages and (time.monotonic() >= deadline or self._source.cancelled.is_set()):
                return None
        return self._pages.popleft()

    def _take(self, count: int, wait: float) -> None:
        """Take what has come from the client, or wait for the first message."""
        # The client waits until it has all it was asked for: at first for a moment, for what is there already.
        taken = self._client.consume(count, 0.01)
        if not taken and wait > 0:
            taken = self._client.consume(1, min(wait, 0.2))
        self._watch(bool(taken))
        told = []
        if any(map(ERROR, taken)):
            told = [m for m in taken if m.error() is not None]
            taken = [m for m in taken if m.error() is None]
        for topic, number, messages in _by_part(taken):
            self._pages.append(self._page(topic, number, messages))
        for message in told:  # after the messages: an end stands behind them
            self._told(message)

    def _page(self, topic: str, number: int, messages: list[Any]) -> Messages:
        after = messages[-1].offset()
        payloads = list(map(VALUE, messages))
        if None in payloads:
            if self._skips:
                messages = [m for m in messages if m.value() is not None]
                payloads = [m.value() for m in messages]
            else:
                payloads = [self._empty if p is None else p for p in payloads]
        positions = list(map(OFFSET, messages))
        size = sum(map(len, filter(None, payloads)))
        self._usual = max(1, (self._usual + size // max(1, len(payloads))) // 2)
        metadata = self._source.config.metadata
        return Messages(
            payloads,
            positions,
            part_of(topic, number),
            topic=topic,
            key=[m.key() for m in messages] if "key" in metadata else None,
            time=[_moment(m) for m in messages] if "time" in metadata else None,
            headers=[_headers(m) for m in messages] if "headers" in metadata else None,
            base={"topic": topic, "partition": number},
            place=lambda i: {"offset": positions[i]},
            after=after,
            size=size,
        )

    def _told(self, message: Any) -> None:
        """Act on what the client says of a partition or of its connections."""
        error = message.error()
        name = error.name()
        if name == ENDED:
            # What lies before the end may be no message (the mark of a transaction): the partition stands behind it all the same.
            topic, part = message.topic(), part_of(message.topic(), message.partition())
            self._pages.append(Messages([], [], part, topic=topic, after=message.offset() - 1, size=0))
        elif name == OUT_OF_RANGE:
            self._broken.append((part_of(message.topic(), message.partition()), error))
        elif name not in TOLD_LATER and not error.retriable():
            raise self._source.brokers.explained(error, "reading")

    def _mend(self) -> None:
        """Go on with partitions whose next message is not there, as the workflow says; all before it is handed on by now.

        Raises:
            DataflareError: `kafka.offset-lost`.
        """
        while self._broken:
            part, error = self._broken.popleft()
            wanted, policy = self.positions[part] + 1, self._source.config.on_lost
            first, end = (self._source.offsets([part], when)[part] for when in (EARLIEST, LATEST))
            onward = wanted
            if not first <= wanted <= end:  # else it was an error of the moment
                told = f"offset {wanted} of '{part}' is not there, the brokers have {first} to {end} ({error.str()})"
                if policy == "fail":
                    raise LOST.error(told, path="on_lost")
                onward = first if policy == "earliest" else end
                self._source.ctx.log.warning("{}: reading goes on at {} (on_lost: {})", told, onward, policy)
                self._source.ctx.metric("offsets_lost", float(max(0, onward - wanted)))
                self._move(part, onward)
            self._client.incremental_unassign([place(part, 0)])
            self._client.incremental_assign([place(part, self._moved.pop(part, onward))])

    def _watch(self, got: bool) -> None:
        """Give the attempt up when there is no broker for long.

        Raises:
            RetriableError: `kafka.unreachable`.
        """
        down = self._source.brokers.down
        if got or (self._down is None and not down):
            self._down = None
            return
        self._down = self._down or time.monotonic()
        if time.monotonic() - self._down > PATIENCE:
            if self._source.brokers.answers():
                self._down = None
                return
            raise UNREACHABLE.retriable(f"no broker of {self._source.brokers.name} has answered for {PATIENCE:g} s", path="brokers")

    def close(self) -> None:
        """Let go of the consumer."""
        super().close()
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _by_part(messages: list[Any]) -> Iterator[tuple[str, int, list[Any]]]:
    """Yield topic, number and messages of each partition; mostly there is one, and no message is looked at twice."""
    numbers, topics = list(map(PARTITION, messages)), list(map(TOPIC, messages))
    if len(set(numbers)) == 1 and len(set(topics)) == 1:
        yield topics[0], numbers[0], messages
        return
    found: dict[tuple[str, int], list[Any]] = {}
    for part, message in zip(zip(topics, numbers, strict=True), messages, strict=True):
        found.setdefault(part, []).append(message)
    for (topic, number), of_it in found.items():
        yield topic, number, of_it


def _moment(message: Any) -> int | None:
    kind, milliseconds = message.timestamp()
    return None if kind == 0 else milliseconds * 1000


def _headers(message: Any) -> dict[str, str | None] | None:
    """Return a message's headers as text; of several of one name the last."""
    found = message.headers()
    if found is None:
        return None
    return {name: None if value is None else value.decode("utf-8", "backslashreplace") for name, value in found}
