"""A durable log of messages that cannot be read again where they came from.

The source appends what arrives and tells the sender only then that it has it; rows are read from here, and what every
destination holds is trimmed. A position is the number of messages before it, counted from the first one ever appended.

The folder holds segments, `<number of the first message>.log`, each a sequence of frames. A frame is what one `append`
brought: a header with length and checksum, then the messages as an Arrow record batch.

Every opening begins a segment of its own: a process that was stopped and wakes up behind a newer one writes into no file of it.

After a crash a frame that was not written to its end is cut off: nobody was told of it. A frame in which a byte is not as it was
written is damage: what can still be read is kept, the segment as it was found goes to the folder `damaged`, and both the log
and a counter tell how many messages are lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.errors import code
from dataflare_sdk import platform
from dataflare_sdk.atomic import explained, make_folder, read_record, write_record
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fence import FENCED
from dataflare_sdk.inflow.log_frames import HEADER, batch, head, packed
from dataflare_sdk.inflow.log_segments import Cursor, Segment, recovered
from dataflare_sdk.inflow.messages import Messages

declare("inflow.log.written", "inflow.log.durable", "inflow.log.trimmed")

CLOSED = code("inflow.closed", 4, "A message came when its source was being closed.", "Send it again; it was not taken.")
TRIMMED = code(
    "inflow.trimmed",
    4,
    "Messages are to be read again that every destination held already, and that are gone from the log.",
    "The state is older than the log: restore both together, or start over with `dataflare state reset`.",
)
LOST = "log_messages_lost"
"""Counter."""
OVER = code("inflow.too-large", 4, "One message is larger than the whole buffer.", "Raise `buffer`.")

SEGMENT_BYTES = 16 << 20
"""Size from which a new segment is begun."""


@dataclass(slots=True)
class LogPage:
    """What was read of a log.

    Attributes:
        messages: the messages; their positions are their numbers, their columns Arrow arrays.
        next: the position behind the last of them.
        notes: what the source noted beside each.
    """

    messages: Messages
    next: int
    notes: pa.Array


class DurableLog:
    """Keeps messages in a folder until they are trimmed.

    `append`, `wait_for_room`, `end` and `trim` may be used from any thread; `read` from one at a time.

    Args:
        folder: where the segments lie; made when missing. One process at a time uses it.
        max_bytes: how much may lie there; who appends more waits until there is room.
        log: told of damage; None: nobody is.
        count: receives `(name, value)` of counters: `log_messages_lost`, `log_segments_damaged`.
        segment_bytes: size from which a new segment is begun.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 1 << 30,
        log: Any = None,
        count: Callable[[str, float], None] | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._folder = Path(folder)
        self.max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(max_bytes // 4, 1))
        self._log, self._count = log, count
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._file: FileIO | None = None
        self._closed = False
        self._failed: BaseException | None = None
        self._cursor: Cursor | None = None
        self._last: tuple[int, pa.RecordBatch] | None = None
        """The frame that was read last, of which more may be wanted."""
        make_folder(self._folder)
        self._segments = recovered(self._folder, self._told)
        kept = read_record(self._folder / "trimmed.json") or {}
        self._trimmed = int(kept.get("to", 0))
        self._end = max(self._trimmed, self._segments[-1].end if self._segments else 0)
        self._next = self._end
        """Number of the next message to be given a place; `_end` is the first that is not durable."""
        self._pending_bytes = 0

    # -- writing -------------------------------------------------------------------------------------------

    @property
    def start(self) -> int:
        """The oldest position that can be read from."""
        with self._changed:
            return self._trimmed

    @property
    def end(self) -> int:
        """The position behind the last durable message."""
        with self._changed:
            return self._end

    @property
    def size(self) -> int:
        """Bytes that lie in the log."""
        with self._changed:
            return self._used()

    def _used(self) -> int:
        return sum(s.size for s in self._segments) + self._pending_bytes

    def advance(self, to: int) -> None:
        """Give no number below `to` to a message: they were given before, to messages that were read and that are gone since."""
        with self._writing, self._changed:
            if to > self._end:
                self._end = self._next = to
                if self._file is not None:
                    self._file.close()
                    self._file = None

    def resume(self, position: int) -> None:
        """Go on at a position that was read to before; no number below it is given again.

        Raises:
            DataflareError: `inflow.trimmed`.
        """
        if position < self.start:
            raise TRIMMED.error(f"message {position} of '{self._folder}' is wanted, and those before {self.start} are trimmed")
        self.advance(position)

    def append(self, messages: Messages, notes: Sequence[bytes | None] | None = None) -> int:
        """Add messages in their order and return the position behind them, once they are on the disk.

        Several threads that append at once share one fsync. When the log is full it waits until something is trimmed.

        Args:
            messages: with list columns or single values; positions and places are not kept.
            notes: bytes of the source's own beside each message.

        Raises:
            DataflareError: `inflow.closed`; `inflow.too-large`; `world.disk-full` and the like.
        """
        count = len(messages)
        if not count:
            return self.end
        body = packed(messages, notes)
        need = HEADER.size + len(body)
        if need > self.max_bytes and count > 1:
            half = count // 2
            self.append(messages.cut(0, half), None if notes is None else notes[:half])
            return self.append(messages.cut(half, count), None if notes is None else notes[half:])
        if need > self.max_bytes:
            raise OVER.error(f"{count} messages of {need} bytes do not fit into a buffer of {self.max_bytes} bytes")
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._failed is not None or self._fits(need))
            self._check()
            mine = self._next + count
            self._waiting.append((head(body, self._next, count) + body, count))
            self._next = mine
            self._pending_bytes += need
        with self._writing:
            # Whoever comes first writes for all that wait.
            if self._end < mine:
                self._write_waiting()
        return mine

    def wait_for_room(self, need: int, deadline: float) -> bool:
        """Wait until `need` bytes fit, or `deadline` (monotonic seconds) passed; return whether they do."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._fits(need), max(0.0, deadline - time.monotonic()))

    def _fits(self, need: int) -> bool:
        # With nothing in it that is needed, what lies there is about to go.
        return self._used() + need <= self.max_bytes or self._trimmed >= self._next

    def _check(self) -> None:
        if self._closed:
            raise CLOSED.error("the source is being closed")
        if self._failed is not None:
            raise self._failed

    def _write_waiting(self) -> None:
        with self._changed:
            self._check()
            frames = list(self._waiting)
            self._waiting.clear()
        try:
            self._write([f for f, _ in frames])
        except BaseException as error:
            with self._changed:
                self._failed = error  # what was promised to no one stays unwritten; nothing may be put behind it
                self._changed.notify_all()
            raise
        with self._changed:
            written = sum(len(f) for f, _ in frames)
            self._segments[-1].size += written
            self._pending_bytes -= written
            self._end += sum(n for _, n in frames)
            self._segments[-1].end = self._end
            self._changed.notify_all()

    def _write(self, frames: list[bytes]) -> None:
        with explained(self._folder):
            file = self._file
            if file is None or self._segments[-1].size >= self._segment_bytes:
                file = self._begin_segment()
            left = memoryview(b"".join(frames))
            while left:  # a disk that is nearly full takes a part, and only the next write fails
                left = left[file.write(left) :]
            failpoint("inflow.log.written")
            os.fsync(file.fileno())
            # A newer run may have taken the folder away, and have looked at it before this was written: then nobody has it.
            if not self._segments[-1].path.exists():
                raise FENCED.error(f"the log '{self._folder}' was taken over by a newer run")
            failpoint("inflow.log.durable")

    def _begin_segment(self) -> FileIO:
        if self._file is not None:
            self._file.close()
            self._file = None
        path = self._folder / f"{self._end:020}.log"
        self._file = path.open("ab", buffering=0)
        platform.fsync_dir(self._folder)
        with self._changed:
            self._segments.append(Segment(path, self._end, self._end, 0))
        return self._file

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, position: int, max_rows: int, max_bytes: int, deadline: float = 0.0) -> LogPage | None:
        """Return durable messages from `position` on, waiting for the first until `deadline` (monotonic seconds); None: none came.

        What is trimmed is passed over; what is lost by damage too, and it is told.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._failed is not None or self._end > position, max(0.0, deadline - time.monotonic())
            )
            end, position = self._end, max(position, self._trimmed)
            if self._failed is not None and end <= position:
                raise self._failed
        if end <= position:
            return None
        batches: list[pa.RecordBatch] = []
        numbers: list[range] = []
        rows = size = 0
        for first, frame in self._frames(position, end):
            skip = max(0, position - first)
            part = frame.slice(skip, max_rows - rows)
            batches.append(part)
            numbers.append(range(first + skip, first + skip + part.num_rows))
            rows += part.num_rows
            size += part.nbytes
            position = first + skip + part.num_rows
            if rows >= max_rows or size >= max_bytes:
                break
        if not batches:
            return None
        whole = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
        named = {name: whole.column(name) for name in ("topic", "key", "time", "headers")}
        positions = numbers[0] if len(numbers) == 1 else [n for r in numbers for n in r]
        return LogPage(Messages(whole.column("payload"), positions, **named), position, whole.column("note"))

    def _frames(self, position: int, end: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the first number and the messages of each frame from the one that holds `position` on."""
        if self._last is not None and self._last[0] <= position < self._last[0] + self._last[1].num_rows:
            yield self._last
            position = self._last[0] + self._last[1].num_rows
        while position < end:
            cursor = self._cursor
            if cursor is None or cursor.at > position or not cursor.segment.path.exists():
                cursor = self._seek(position)
                if cursor is None:
                    return
            frame = cursor.next(min(end, cursor.segment.end))
            if frame is None:
                following = self._following(cursor.segment)
                if following is None:
                    return
                cursor.close()
                self._cursor = Cursor(following)
                continue
            first, count, body = frame
            if first > position:
                self._lost(position, first)
            if first + count > position:
                self._last = first, batch(body)
                yield self._last
                position = first + count

    def _seek(self, position: int) -> Cursor | None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
        with self._changed:
            held = [s for s in self._segments if s.end > position]
        if held:
            self._cursor = Cursor(held[0])
        return self._cursor

    def _following(self, segment: Segment) -> Segment | None:
        with self._changed:
            return next((s for s in self._segments if s.first >= segment.end and s.end > s.first and s is not segment), None)

    # -- trimming ------------------------------------------------------------------------------------------

    def trim(self, to: int) -> None:
        """Forget the messages before `to`: they are durable elsewhere. Files go when nothing of them is needed."""
        with self._writing:
            with self._changed:
                to = min(to, self._end)
                if to <= self._trimmed:
                    return
                self._trimmed = to
                done = [s for s in self._segments if s.end <= to and s.size]
                if done and done[-1] is self._segments[-1] and done[-1].size < self._segment_bytes // 16:
                    done.pop()  # hardly begun: more will be put there
            write_record(self._folder / "trimmed.json", {"to": to})
            failpoint("inflow.log.trimmed")
            with self._changed:
                if done and done[-1] is self._segments[-1] and self._file is not None:
                    self._file.close()
                    self._file = None
                self._segments = [s for s in self._segments if s not in done]
            for segment in done:
                segment.path.unlink(missing_ok=True)
            with self._changed:
                self._changed.notify_all()

    def wake(self) -> None:
        """Make a `read` that waits look again now."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of the files; who waits to append is told that it was not taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._file = None
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _lost(self, first: int, end: int) -> None:
        self._told(LOST, end - first, f"{end - first} messages of the log are lost by damage: those from {first} to {end - 1}")

    def _told(self, counter: str, value: int, text: str) -> None:
        if self._count is not None:
            self._count(counter, float(value))
        if self._log is not None:
            self._log.error(text)
