"""Reads a stream by a durable consumer, which others may have used and the server delivers to again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflare_plugins.nats import jetstream
from dataflare_plugins.nats.acking import Acker
from dataflare_plugins.nats.connection import Frame
from dataflare_plugins.nats.errors import CONSUMER
from dataflare_plugins.nats.jetstream import place_of
from dataflare_plugins.nats.reader import StreamReader
from dataflare_sdk import ExtractSpec, Message, Offset, Partition
from dataflare_sdk.inflow.messages import Messages

if TYPE_CHECKING:
    from dataflare_plugins.nats.source import NatsSource

ACK_WAIT = 300_000_000_000
"""Nanoseconds until a durable consumer of ours delivers again."""


class DurableReader(StreamReader):
    """Reads by a durable consumer. What it delivered before, to whomever, is read by sequence number; what it delivers again is dropped."""

    def __init__(self, source: NatsSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None) -> None:
        super().__init__(source, partition, extract, offset, until)
        self._begun: int | None = self.positions.get("")

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch; acks first what the last run left to ack, though nothing may be left to read."""
        if self._looked == 0.0 and self._begun is not None:
            self._look()
        return super().read(max_rows, max_bytes, deadline)

    def _look(self) -> Messages | None:
        begun = super()._look()
        if self.positions.get("") != self._begun:
            self._begun = None  # of a stream that was there before
        if self._consumer is None:
            self._find()
        return begun

    def _first(self, state: jetstream.StreamState) -> int:
        """The first run begins where the consumer stands, if there is one."""
        held = jetstream.consumer_info(self._link, self._config.stream, str(self._config.durable))
        if held is not None:
            return int(held["ack_floor"]["stream_seq"])
        first = super()._first(state)
        if state.retention == "workqueue":
            first = state.first - 1
        self._make(state, first)
        return first

    def _make(self, state: jetstream.StreamState, after: int) -> None:
        queue = state.retention == "workqueue"
        start = {"deliver_policy": "all"} if queue else {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        config = {
            "durable_name": self._config.durable,
            "ack_policy": "explicit" if queue else "all",
            "ack_wait": ACK_WAIT,
            "max_ack_pending": -1,
            "replay_policy": "instant",
            **start,
            **self._source.filters(),
        }
        jetstream.make_consumer(self._link, self._config.stream, config, "durable")

    def _find(self) -> None:
        """Look what the consumer is and how far it has delivered."""
        stream, name = self._config.stream, str(self._config.durable)
        held = jetstream.consumer_info(self._link, stream, name)
        if held is None:
            if "" not in self.positions:
                return
            self._make(self._source.state(), self._at)
            held = jetstream.consumer_info(self._link, stream, name)
            assert held is not None
        config = held["config"]
        if config.get("deliver_subject") or config["ack_policy"] == "none":
            raise CONSUMER.error(f"'{name}' of '{stream}' is no pull consumer that is acked", path="durable")
        filtered = [*([config["filter_subject"]] if config.get("filter_subject") else []), *(config.get("filter_subjects") or [])]
        if filtered and sorted(filtered) != sorted(self._source.subjects):
            raise CONSUMER.error(f"'{name}' of '{stream}' is for {', '.join(filtered)}, not for what `subjects` says", path="durable")
        self._consumer = name
        self._each = config["ack_policy"] == "explicit"
        self._delivered, self._count = int(held["delivered"]["stream_seq"]), int(held["delivered"]["consumer_seq"])
        self._asked = 0
        self._link.pages.clear()
        if self._source.acker is None:
            self._source.acker = Acker(self._link, stream, name, each=self._each)
        begun, self._begun = self._begun, None
        if begun is None:
            return
        # What was left to ack when the last run ended: where this one begins is durable everywhere.
        if self._each:
            floor = int(held["ack_floor"]["stream_seq"])
            self._source.acker.left(floor + 1, min(begun, self._delivered) if held["num_ack_pending"] else floor, begun)
        elif begun == self._delivered and held["num_ack_pending"]:
            self._source.acker.came([(begun, self._source.acker.subject(begun, self._count))])
            self._source.acker.ack(begun)

    def _begin(self) -> None:
        self._find()

    def _next(self, max_rows: int, max_bytes: int) -> Messages | None:
        """Return what was delivered to somebody else or before, else what came."""
        if self._consumer is None:
            self._find()
        end = self._delivered if self.until is None else min(self._delivered, int(self.until[""]))
        if self._at < end:
            return self._caught_up(end, max_rows)
        return super()._next(max_rows, max_bytes)

    def _caught_up(self, end: int, max_rows: int) -> Messages:
        assert self._source.acker is not None
        last = min(end, self._at + min(max_rows, 4 * jetstream.GET_AT_ONCE))
        found = jetstream.get(self._link, self._config.stream, self._at + 1, last)
        acker = self._source.acker
        if self._each:
            acker.came([(number, acker.subject(number, self._count)) for number, _, _ in found])
        elif last == self._delivered:
            acker.came([(last, acker.subject(last, self._count))])
        if not self._source.subjects:
            self._whole([n for n, _, _ in found])
        frames, numbers, times = [f for _, _, f in found], [n for n, _, _ in found], [t for _, t, _ in found]
        return self._messages(frames, numbers, last, times)

    def _page(self, frames: list[Frame]) -> Messages | None:
        assert self._source.acker is not None
        places = [place_of(frame[1]) for frame in frames]  # type: ignore[arg-type]
        if places[0][1] != self._count + 1 or places[-1][1] - places[0][1] != len(frames) - 1:
            # Somebody else reads by it too, or did when we were away: what he got is read by number.
            self._count = places[-1][1]
            self._delivered = max(self._delivered, *(p[0] for p in places))
            return None
        self._count = places[-1][1]
        # What is delivered again may be of this very page: it stands behind messages that are newer than it.
        fresh, again, at = [], [], self._at
        for i, (number, _, _) in enumerate(places):
            reply = frames[i][1]
            if number > at:
                fresh.append(i)
                at = number
            elif reply is not None:
                again.append((number, reply))
        if again:
            self._source.acker.came_again(again)
        if not fresh:
            return None
        bound = None if self.until is None else int(self.until[""])
        kept = [(frames[i], places[i]) for i in fresh]
        self._whole([p[0] for _, p in kept])
        self._delivered = max(self._delivered, kept[-1][1][0])
        self._source.acker.came([(p[0], f[1]) for f, p in kept if f[1] is not None and (bound is None or p[0] <= bound)])
        return self._messages([f for f, _ in kept], [p[0] for _, p in kept], kept[-1][1][0])

    def _drop(self) -> None:
        """The consumer stays."""
        self._consumer, self._asked = None, 0
