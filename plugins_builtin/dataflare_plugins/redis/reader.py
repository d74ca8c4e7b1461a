"""Reads streams page by page; every page comes with what the server knew of the stream at that instant."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dataflare_plugins.redis.bulk import Columns
from dataflare_plugins.redis.fields import ColumnPage, Page
from dataflare_plugins.redis.ids import Position, order, parse_position
from dataflare_plugins.redis.looking import known, look
from dataflare_sdk import Batch, DataflareError, ExtractSpec, Message, Offset, Partition, RowRejection, code
from dataflare_sdk.inflow.collecting import uncollected
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.inflow.reader import MessageReader

if TYPE_CHECKING:
    from dataflare_plugins.redis.source import RedisSource

TRIMMED = code(
    "redis.lost",
    4,
    "Entries were trimmed from a stream before they were read.",
    "Keep more of the stream, or go on without them: `on_lost: skip`.",
)
REPLACED = code(
    "redis.other-stream",
    4,
    "The stream ends before the place that was read to: it was deleted and made anew.",
    "Forget the place with `dataflare state reset`, or go on from its beginning: `on_lost: skip`.",
)
FIRST, MOST = 64, 65_536
"""Entries of the first page, when nobody knows yet how large they are, and of a page at most."""
LOOK_EVERY = 5.0
"""Seconds after which a stream is looked at although nothing came."""


class StreamsReader(MessageReader):
    """Takes the streams that have something in turn; `position` of each is an id (see `ids.Position`)."""

    def __init__(
        self, source: RedisSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None
    ) -> None:
        # Lingering is done here, once for all streams: a batch is one page.
        super().__init__(source, partition, extract, offset, until, linger=0.0)
        self._pause = float(source.ctx.linger)
        self._source = source
        self._config = source.config
        self._session = source.session()
        self._ready = deque(self._config.streams)
        self._looked = time.monotonic()
        self._count = FIRST
        self._bad: list[RowRejection] = []
        self._behind: dict[str, int] = {}  # entries of a stream that are still to be read
        self._ahead = 0  # entries of the page that was asked for ahead

    def order(self, position: Any) -> tuple[int, int]:
        """Return milliseconds and number of an id."""
        return order(position)

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, with the entries that have no message among its rejections."""
        found = super().read(max_rows, max_bytes, deadline)
        if isinstance(found, Batch) and self._bad:
            found.rejected = [*self._bad, *found.rejected]
            self._bad = []
        return found

    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return the next page of a stream that has one."""
        while not self._source.cancelled.is_set():
            while self._ready:
                stream = self._ready[0]
                with uncollected():
                    page = self._page(stream, max_rows, max_bytes) if self.wants(stream) else None
                if page is None:
                    self._ready.popleft()
                else:
                    self._ready.rotate(-1)  # the others' turn
                    return page
            if self.until is not None or not self._wait(deadline):
                break
        return None

    # -- a page --------------------------------------------------------------------------------------------

    def _page(self, stream: str, max_rows: int, max_bytes: int) -> Messages | None:
        """Return what follows in a stream; None: there is nothing now."""
        text = self.positions.get(stream)
        if text is None:
            return self._begun(stream, look(self._session, stream))
        end = "+" if self.until is None else parse_position(self.until[stream]).id
        at = parse_position(text)
        # What was asked for ahead is taken as it was asked for, unless less is wanted now.
        count = self._ahead if 0 < self._ahead <= max_rows else max(1, min(max_rows, self._count, MOST))
        self._ahead = 0
        found, replies = self._session.entries(_range(stream, at.id, end, count))
        info = known(replies[-1], stream, self._session.url.place)
        at = self._whole(stream, at, info)
        fetched = len(found.values) if found is not None else len(replies[0])
        if not fetched:
            return self._ended(stream)
        page, newest = self._taken(stream, found, replies)
        last = Position(newest, self._added(at, fetched, count, info, end))
        self._bad += page.rejected
        if last.added is not None:
            self._behind[stream] = int(info["entries-added"]) - last.added
            self._source.ctx.gauge("lag_rows", sum(self._behind.values()))
        made = self._messages(stream, page, str(last))
        self._size(made.size, fetched, max_bytes)
        if (
            len(self._ready) == 1
            and fetched == count
            and order(last.id) < order(end if self.until is not None else info["last-generated-id"])
        ):
            # The server prepares the next page while this one is worked on. (Of several streams another is next.)
            self._ahead = max(1, min(max_rows, self._count, MOST))
            self._session.ahead(_range(stream, last.id, end, self._ahead))
        return made

    def _taken(self, stream: str, found: Columns | None, replies: list[Any]) -> tuple[Page | ColumnPage, str]:
        """Return the entries as messages, and the id of the newest."""
        config = self._config
        if found is not None and not config.fields and config.field in (None, found.field.decode("utf-8", "replace")):
            made = ColumnPage(found)
            return made, made.ids[-1]
        entries = found.entries() if found is not None else replies[0]
        return Page(stream, entries, config), str(entries[-1][0], "ascii")

    def _messages(self, stream: str, page: Page | ColumnPage, after: str) -> Messages:
        wanted, ids = self._config.metadata, page.ids
        positions: Any = list(ids) if "position" in wanted else ids
        return Messages(
            page.payloads,
            positions,
            stream,
            topic=stream,
            time=[int(id.partition("-")[0]) * 1000 for id in ids] if "time" in wanted else None,
            headers=page.headers() if "headers" in wanted else None,
            base={"stream": stream},
            place=lambda i: {"position": ids[i]},
            after=after,
        )

    def _begun(self, stream: str, info: dict[str, Any]) -> Messages:
        """Note where a stream is read from, at the first run of all."""
        first = self._source.first(stream, info)
        if self.until is not None:
            first = min(first, parse_position(self.until[stream]), key=lambda p: order(p.id))
        return Messages([], [], stream, base={"stream": stream}, after=str(first))

    def _ended(self, stream: str) -> Messages | None:
        """Nothing is left: the place to stop at is reached, though no entry stands there."""
        return None if self.until is None else Messages([], [], stream, base={"stream": stream}, after=self.until[stream])

    def _added(self, at: Position, entries: int, count: int, info: dict[str, Any], end: str) -> int | None:
        """Return how many entries the stream had got up to the end of a page."""
        if end == "+" and entries < count:
            return int(info["entries-added"])  # all there is: counted by the server, deleted ones too
        return None if at.added is None else at.added + entries

    def _size(self, size: int, entries: int, max_bytes: int) -> None:
        """Ask for as many entries next time as fit the bytes wanted, by the size of these."""
        fitting = max_bytes * entries // max(size, 1)
        self._count = max(1, min(fitting, self._count * 8, MOST))

    # -- what is gone --------------------------------------------------------------------------------------

    def _whole(self, stream: str, at: Position, info: dict[str, Any]) -> Position:
        """Refuse to pass over entries that were trimmed unread, or say so; return where the stream is read to.

        Trimming takes the oldest. So something unread is gone exactly if more entries are gone than were read, and the oldest
        that is left lies behind what was read.
        """
        end = info["last-generated-id"].decode()
        if order(end) < order(at.id):
            told = f"the stream '{stream}' ends at {end}, before {at.id}, to which it was read"
            self._skip(stream, REPLACED.error(told, path="streams"))
            self.positions[stream] = "0-0|0"
            return Position("0-0", 0)
        gone = int(info["entries-added"]) - int(info["length"])
        oldest = info["first-entry"]
        passed = oldest is None or order(oldest[0]) > order(at.id)
        if not passed or order(end) == order(at.id):
            return at
        if at.added is None:
            # Begun at an id or a time: how many entries came before is not known, only whether the last one read is left.
            lost = None if gone and at.id != "0-0" else 0
        else:
            lost = max(0, gone - at.added)
        if lost != 0:
            how = "entries" if lost is None else f"{lost} entries"
            may = "may have been" if lost is None else "were"
            told = f"{how} of the stream '{stream}' after {at.id} {may} trimmed before they were read"
            self._skip(stream, TRIMMED.error(told, path="on_lost"))
        return at if lost is None else Position(at.id, max(at.added or 0, gone) if lost else at.added)

    def _skip(self, stream: str, error: DataflareError) -> None:
        if self._config.on_lost == "fail":
            raise error
        self._source.ctx.metric("lost", 1, stream=stream)
        self._source.ctx.log.warning(str(error))

    # -- waiting -------------------------------------------------------------------------------------------

    def _wait(self, deadline: float) -> bool:
        """Wait until some stream has something; False when the time is up."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._ready.extend(self._config.streams)
            return True
        left = int((deadline - now) * 1000)
        streams = self._config.streams
        places = [parse_position(self.positions[s]).id for s in streams]
        block = ["BLOCK", left] if left > 0 else []
        found = self._session.wait(max(left, 0) / 1000, "XREAD", "COUNT", 1, *block, "STREAMS", *streams, *places)
        if found:
            # What comes within the linger comes with it.
            self._source.cancelled.wait(max(0.0, min(self._pause, deadline - time.monotonic())))
        self._ready.extend(name.decode() for name, _ in found or ())
        return bool(found)

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._session.close()


def _range(stream: str, after: str, end: str, count: int) -> list[tuple[Any, ...]]:
    """Return the commands that give a page and what the server knows of the stream at that instant."""
    return [("XRANGE", stream, f"({after}", end, "COUNT", count), ("XINFO", "STREAM", stream)]
