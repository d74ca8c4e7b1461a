"""Reads a stream of JetStream page by page, in the order of its sequence numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dataflare_plugins.nats import jetstream
from dataflare_plugins.nats.connection import Frame, header, status
from dataflare_plugins.nats.errors import LOST
from dataflare_plugins.nats.jetstream import place_of
from dataflare_sdk import Batch, DataflareError, ExtractSpec, Message, Offset, Partition, code
from dataflare_sdk.inflow.collecting import uncollected
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.inflow.reader import MessageReader

if TYPE_CHECKING:
    from dataflare_plugins.nats.source import NatsSource

REMOVED = code(
    "nats.lost",
    4,
    "Messages were removed from a stream before they were read.",
    "Let the stream keep more, or go on without them: `on_lost: skip`.",
)
REPLACED = code(
    "nats.other-stream",
    4,
    "The stream is another one than was read: it was deleted and made anew.",
    "Forget the place with `dataflare state reset`, or go on from its beginning: `on_lost: skip`.",
)
PAGE = 16_384
"""Messages asked for at once."""
PAGE_BYTES = 8 << 20
"""Bytes asked for at once: what the server sends and we do not read yet, it has to keep."""
WAIT = 30.0
"""Seconds the server waits for messages, before it is asked anew."""
SILENCE = 20.0
"""Seconds without a sign of life, of which the server gives one every five, after which the connection is given up."""
LOOK_EVERY = 5.0
"""Seconds after which the stream is looked at."""
FAR = 100_000
"""Messages of other subjects after which it is told how far the stream is."""


class StreamReader(MessageReader):
    """Reads by a consumer of its own, which begins where it is told to and is not acked."""

    def __init__(self, source: NatsSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None) -> None:
        super().__init__(source, partition, extract, offset, until)
        self._source = source
        self._config = source.config
        self._link = source.link
        self._created: str | None = (offset or {}).get("stream")
        self._consumer: str | None = None
        self._count = 0  # of the consumer's messages that came
        self._asked = 0  # messages that are still to come of the page asked for
        self._came = False  # some came of it
        self._alone = False  # the next message is larger than a page, and asked for by itself
        self._ended = False  # nothing more was there when `until` was asked for
        self._looked = 0.0
        self._noted: Messages | None = None  # that the stream went on without messages of ours
        self._opened = 0

    @property
    def _at(self) -> int:
        return int(self.positions[""])

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch; its offset says of which stream it is."""
        found = super().read(max_rows, max_bytes, deadline)
        if isinstance(found, Batch) and found.offset is not None and self._created is not None:
            found.offset = {**found.offset, "stream": self._created}
        return found

    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return the next page."""
        if self._looked == 0.0:
            begun = self._look()
            if begun is not None:
                return begun
        while not self._source.cancelled.is_set():
            noted, self._noted = self._noted, None
            if noted is not None:
                return noted
            with uncollected():
                page = self._next(max_rows, max_bytes)
            if page is not None:
                if self._consumer is not None and self._link.opened == self._opened:
                    self._ask(int(page.end))  # the server sends the next page while this one is worked on
                return page
            if self._ended and self.until is not None:
                if not self._source.subjects:
                    self._whole([])
                return self._moved(int(self.until[""]))  # though no message stands there
            if not self._more(deadline):
                break
        return None

    # -- beginning and looking -----------------------------------------------------------------------------

    def _look(self) -> Messages | None:
        """See what the stream is, and whether all that follows is still there; at the first run say where it begins."""
        state, opening = self._source.state(), self._looked == 0.0
        self._looked = time.monotonic()
        if self._created not in (None, state.created):
            told = f"the stream '{self._config.stream}' was made at {state.created}, what was read is of one made at {self._created}"
            self._skip(REPLACED.error(told, path="stream"))
            self._created = state.created
            self.positions[""] = state.first - 1
        self._created = state.created
        if "" not in self.positions:
            first = self._first(state)
            return self._moved(first if self.until is None else min(first, int(self.until[""])))
        if opening:
            if self._gone(state, self._at):
                self.positions[""] = state.first - 1
        elif self._passed(state):
            return self._moved(state.last)
        return None

    def _gone(self, state: jetstream.StreamState, behind: int) -> bool:
        """Whether messages that follow a place are gone from the front of the stream: that is an error, or passed over."""
        if state.first <= behind + 1 or state.replaces:
            return False
        some = " (some of them may have been of these subjects)" if self._source.subjects else ""
        told = f"the messages {behind + 1} to {state.first - 1} of '{self._config.stream}' were removed before they were read{some}"
        self._skip(REMOVED.error(told, path="on_lost"))
        return True

    def _whole(self, numbers: Sequence[int]) -> None:
        """Where numbers are missing among those that follow the place read to: see whether the stream begins behind them by now.

        A number that is missing elsewhere was deleted by itself, or is of another subject.
        """
        if len(numbers) and numbers[0] == self._at + 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
            return
        state = self._source.state()
        if state.first > self._at + 1 and state.retention == "limits":
            behind = next((a for a, b in pairwise([self._at, *numbers, state.first]) if b != a + 1), state.first)
            self._gone(state, behind)

    def _passed(self, state: jetstream.StreamState) -> bool:
        """Whether the stream went on by messages of other subjects only, far enough to be worth telling.

        They may be removed: where we stand would then look like a loss.
        """
        far = state.last - self._at > FAR or state.first > self._at + 1
        if not far or self._consumer is None or self._link.pages or not self._source.filters():
            return False
        held = jetstream.consumer_info(self._link, self._config.stream, self._consumer)
        # Asked after `state`: whatever was there then has been delivered, and has come here.
        return held is not None and held["num_pending"] == 0 and held["delivered"]["consumer_seq"] == self._count and not self._link.pages

    def _first(self, state: jetstream.StreamState) -> int:
        return self._source.first(state)

    def _skip(self, error: DataflareError) -> None:
        if self._config.on_lost == "fail":
            raise error
        self._source.ctx.metric("lost", 1)
        self._source.ctx.log.warning(str(error))

    def _moved(self, to: int) -> Messages:
        """Return that the stream is read to a place, with no message of it."""
        return Messages([], [], base=self._base, after=to)

    @property
    def _base(self) -> dict[str, Any]:
        return {"stream": self._config.stream}

    # -- pages ---------------------------------------------------------------------------------------------

    def _next(self, max_rows: int, max_bytes: int) -> Messages | None:
        """Return what came already."""
        frames = self._taken(max_rows, max_bytes)
        return self._page(frames) if frames else None

    def _taken(self, max_rows: int, max_bytes: int) -> list[Frame]:
        """Take messages that came, as many as are wanted; what the server says beside them is heeded."""
        frames: list[Frame] = []
        size, pages = 0, self._link.pages
        while pages and len(frames) < max_rows and size < max_bytes:
            frame = pages.popleft()
            if frame[1] is None:
                if frames:
                    pages.appendleft(frame)
                    break
                self._told(frame)
                continue
            frames.append(frame)
            size += len(frame[3])
        self._asked -= len(frames)
        if frames:
            self._came, self._alone = True, False
        return frames

    def _told(self, frame: Frame) -> None:
        """Heed what is no message: the page asked for is over, or the consumer is gone."""
        number = 0 if frame[2] is None else status(frame[2])
        if number < 400:
            return
        text = frame[2].split(b"\r\n")[0][9:].decode() if frame[2] is not None else ""
        if number == 503 or "deleted" in text.lower():
            self._consumer, self._asked = None, 0
            return
        if number == 409 and "exceeds maxbytes" in text.lower():
            self._alone, self._asked = True, 0
            return
        self._ended = self.until is not None and not self._came and number in (404, 408)
        self._asked = 0

    def _page(self, frames: list[Frame]) -> Messages | None:
        first, last = (place_of(frame[1]) for frame in (frames[0], frames[-1]))  # type: ignore[arg-type]
        if first[1] != self._count + 1 or last[1] - first[1] != len(frames) - 1:
            # Some did not arrive: begin again behind what was handed on.
            self._restart()
            return None
        self._count = last[1]
        whole = last[0] - first[0] == len(frames) - 1
        numbers = range(first[0], last[0] + 1) if whole else [place_of(frame[1])[0] for frame in frames]  # type: ignore[arg-type]
        self._whole(numbers)
        return self._messages(frames, numbers, last[0])

    def _messages(self, frames: list[Frame], numbers: Any, after: int, times: list[int] | None = None) -> Messages:
        acked_to = frames[-1][1] if frames else None
        if self._source.subjects:
            kept = [i for i, frame in enumerate(frames) if self._source.wanted(frame[0])]
            if len(kept) < len(frames):
                frames, numbers = [frames[i] for i in kept], [numbers[i] for i in kept]
                times = None if times is None else [times[i] for i in kept]
        wanted = self._config.metadata
        if "time" in wanted and times is None:
            times = [place_of(frame[1])[2] for frame in frames]  # type: ignore[arg-type]
        if acked_to is not None:
            self._source.ctx.gauge("lag_rows", jetstream.pending_of(acked_to))
        subjects = [frame[0].decode("utf-8", "replace") for frame in frames] if "topic" in wanted else None
        return Messages(
            [frame[3] for frame in frames],
            numbers,
            topic=subjects,
            time=None if times is None or "time" not in wanted else [t // 1000 for t in times],
            headers=[{} if f[2] is None else header(f[2]) for f in frames] if "headers" in wanted else None,
            base=self._base,
            place=lambda i: {"subject": frames[i][0].decode("utf-8", "replace"), "sequence": numbers[i]},
            after=after,
        )

    # -- asking --------------------------------------------------------------------------------------------

    def _more(self, deadline: float) -> bool:
        """Ask for a page unless one is under way, and take what comes until `deadline`; False when nothing did."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._noted = self._look()
            if self._noted is not None:
                return True
        self._link.open()
        if self._link.opened != self._opened:
            self._consumer, self._asked, self._opened = None, 0, self._link.opened
        if self._consumer is None:
            self._begin()
        self._ask(self._at)
        with uncollected():
            if self._link.receive(deadline):
                return True
        if time.monotonic() - self._link.heard > SILENCE:
            self._link.close()
            raise LOST.retriable(f"{self._link.url} gives no sign of life")
        return False

    def _ask(self, at: int) -> None:
        """Ask for a page behind a place, unless one is under way."""
        wanted = PAGE if self.until is None else min(PAGE, int(self.until[""]) - at)
        wanted = min(wanted, 1) if self._alone else wanted
        if self._asked <= 0 < wanted:
            assert self._consumer is not None
            self._asked, self._came = wanted, False
            wait = WAIT if self.until is None else None
            size = None if self._alone else PAGE_BYTES
            jetstream.pull(self._link, self._config.stream, self._consumer, wanted, size, wait=wait)

    def _begin(self) -> None:
        self._link.pages.clear()
        self._consumer, self._count, self._asked = self._source.ephemeral(self._at + 1), 0, 0

    def _restart(self) -> None:
        self._drop()
        self._link.pages.clear()

    def _drop(self) -> None:
        name, self._consumer, self._asked = self._consumer, None, 0
        if name is not None:
            jetstream.drop_consumer(self._link, self._config.stream, name)

    def close(self) -> None:
        """Let go of the consumer."""
        super().close()
        try:
            self._drop()
        except DataflareError:
            self._link.close()  # it is forgotten by itself
        self._link.pages.clear()
