"""A stream of JetStream as a source: messages are read by their sequence numbers, so that a stretch can be read again exactly."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from typing import Any, Literal

from dataflare_plugins.nats import jetstream
from dataflare_plugins.nats.acking import Acker
from dataflare_plugins.nats.connection import Link, parse_url, status
from dataflare_plugins.nats.errors import LOST, WORK_QUEUE
from dataflare_sdk import CODES, ExtractSpec, Offset, Partition, Reader, RetriableError, config, option
from dataflare_sdk.inflow.options import MessageConfig
from dataflare_sdk.inflow.source import MessageSource

SHORT = 60_000_000_000
"""Nanoseconds after which the server forgets a consumer that nobody uses."""
LOOKED_AT = 100
"""Messages of all subjects that are looked at for each one that columns are to be learned from, at most."""


@config
class NatsStream(MessageConfig):
    """What is read."""

    url: str = option("The server, or those of a cluster; `tls://` for TLS.", example="nats://app:${secret:nats}@broker:4222")
    stream: str = option("The stream.", example="ORDERS")
    subjects: list[str] | None = option(
        "Only messages of these subjects, which may hold `*` and `>`; by default all.", default=None, min_items=1, example=["orders.eu.>"]
    )
    start: str = option(
        "Where the first run begins: `earliest`, `latest`, a sequence number (that message and what follows) or a time.",
        default="earliest",
        example="2026-01-31T00:00:00Z",
    )
    durable: str | None = option(
        "A durable consumer whose messages are acked once they are durable in every destination; made when it is missing.", default=None
    )
    on_lost: Literal["fail", "skip"] = option("Messages were removed from the stream before they were read.", default="fail")


class NatsSource(MessageSource[NatsStream]):
    """Reads one stream, in its order."""

    Config = NatsStream

    def __init__(self, config: NatsStream, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.link = Link(parse_url(config.url))
        self.subjects: tuple[str, ...] = tuple(config.subjects or ())
        for name, text in (("stream", config.stream), ("durable", config.durable or "x")):
            if not text or any(c in text for c in " .*>\t\r\n/\\"):
                raise CODES["config.invalid"].error(f"'{text}' is no name: it may hold no space, dot, star, > or slash", path=name)
        wrong = next((s for s in self.subjects if not s or any(c.isspace() for c in s)), None)
        if wrong is not None:
            raise CODES["config.invalid"].error(f"'{wrong}' is no subject", path="subjects")
        parse_start(config.start)
        self.acker: Acker | None = None

    # -- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Connect and find the stream.

        Raises:
            DataflareError: `nats.no-stream` and others of this plugin.
        """
        self._readable(jetstream.stream_state(self.link, self.config.stream))

    def _readable(self, state: jetstream.StreamState) -> None:
        if state.retention == "workqueue" and self.config.durable is None:
            raise WORK_QUEUE.error(f"the stream '{self.config.stream}' is a work queue: name a consumer", path="durable")

    def state(self) -> jetstream.StreamState:
        """Return the state of the stream, which can be read.

        Raises:
            DataflareError: `nats.no-stream`, `nats.work-queue`.
        """
        state = jetstream.stream_state(self.link, self.config.stream)
        self._readable(state)
        return state

    def wanted(self, subject: bytes) -> bool:
        """Whether messages of a subject are read."""
        return not self.subjects or any(jetstream.matches(subject, s) for s in self.subjects)

    def filters(self) -> dict[str, Any]:
        """Return what a consumer is told of the subjects."""
        return jetstream.filters(self.subjects, self.link.version)

    def sample(self, count: int) -> Sequence[bytes]:
        """Return messages that are there, among the newest ones; a work queue's are looked at one by one."""
        state, stream = jetstream.stream_state(self.link, self.config.stream), self.config.stream
        if state.retention == "workqueue":
            frames = [f for _, _, f in jetstream.get(self.link, stream, max(state.first, state.last - count + 1), state.last)]
            return [f[3] for f in frames if self.wanted(f[0])]
        first = state.first if self.subjects else max(state.first, state.last - count + 1)
        name = self.ephemeral(first)
        try:
            found: list[bytes] = []
            seen = coming = 0
            while len(found) < count and seen < LOOKED_AT * count:
                if not coming:  # of a page that came whole the server does not say that it is over
                    coming = count
                    jetstream.pull(self.link, stream, name, count, 16 << 20, wait=None)
                while not self.link.pages:
                    if not self.link.receive(float("inf")):
                        raise LOST.retriable(f"{self.link.url} does not answer")
                subject, reply, headers, payload = self.link.pages.popleft()
                if reply is None:
                    if headers is not None and status(headers) >= 400:
                        break
                    continue
                seen, coming = seen + 1, coming - 1
                if self.wanted(subject):
                    found.append(payload)
            return found
        finally:
            self.link.pages.clear()
            jetstream.drop_consumer(self.link, stream, name)

    def ephemeral(self, first: int) -> str:
        """Make a consumer that reads from a sequence number, is not acked and soon forgotten; return its name."""
        self.link.open()
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(first, 1)}
        common = {"ack_policy": "none", "replay_policy": "instant", "mem_storage": True, "inactive_threshold": SHORT}
        return str(jetstream.make_consumer(self.link, self.config.stream, {**common, **start, **self.filters()})["name"])

    # -- reading -------------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read after `offset`, to `until` exactly if given."""
        if self.config.durable is None:
            from dataflare_plugins.nats.reader import StreamReader

            return StreamReader(self, partition, extract, offset, until)
        from dataflare_plugins.nats.durable import DurableReader

        return DurableReader(self, partition, extract, offset, until)

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where the stream ends now."""
        state = self.state()
        return {"v": 1, "parts": {"": state.last}, "stream": state.created}

    def first(self, state: jetstream.StreamState) -> int:
        """Return the sequence number after which the first run reads."""
        wanted = parse_start(self.config.start)
        if wanted == "earliest":
            return state.first - 1
        if wanted == "latest":
            return state.last
        if isinstance(wanted, int):
            return min(wanted - 1, state.last)
        return self._at(wanted, state)

    def _at(self, time: str, state: jetstream.StreamState) -> int:
        """Return the sequence number before the first message that is not older than a time.

        Numbers and times ascend together: it is looked for by halves, a missing message counts as the next one that is there.
        """
        low, high, moment = state.first, state.last + 1, jetstream.nanoseconds(time)
        while low < high:
            middle = (low + high) // 2
            end, found = middle, None
            while found is None and end < high:
                held = jetstream.get(self.link, self.config.stream, end, min(end + jetstream.GET_AT_ONCE, high) - 1)
                found, end = (held[0] if held else None), min(end + jetstream.GET_AT_ONCE, high)
            if found is not None and found[1] < moment:
                low = found[0] + 1
            else:
                high = middle
        return low - 1

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Ack the messages of the durable consumer up to `offset`; where the server is away just now, with the next epoch."""
        if self.acker is None:
            return
        number = int((offset.get("parts") or {}).get("", 0))
        try:
            self.acker.ack(number)
        except RetriableError:
            try:
                self.acker.ack(number)  # over a new connection: the old one may have been lost long since
            except RetriableError as error:
                self.ctx.log.warning(f"the server was not told how far '{self.ctx.node}' is: {error}")

    def idle(self) -> None:
        """Answer the server's pings, and so show that we live."""
        with contextlib.suppress(RetriableError):  # whoever needs the connection next opens another one
            self.link.receive(0.0)

    def cancel(self) -> None:
        """Interrupt the connection."""
        super().cancel()
        self.link.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self.link.close()


def parse_start(text: str) -> str | int:
    """Return `earliest`, `latest`, a sequence number, or a time as the server writes it.

    Raises:
        DataflareError: `config.invalid`.
    """
    if text in ("earliest", "latest"):
        return text
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CODES["config.invalid"].error(f"'{text}' is none of earliest, latest, a sequence number, a time", path="start") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).replace(tzinfo=None).isoformat() + "Z"
