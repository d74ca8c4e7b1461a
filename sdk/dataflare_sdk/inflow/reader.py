"""The base of readers of messages: pages become batches, with offsets over all parts, lingering, and `until`."""

from __future__ import annotations

import bisect
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dataflare.contracts import ExtractSpec, Message, Offset, Partition, Pause
from dataflare_sdk.inflow.messages import Messages, joined
from dataflare_sdk.messages import Batch, Origin

if TYPE_CHECKING:
    from dataflare_sdk.inflow.source import MessageSource


class MessageReader(ABC):
    """Reads all parts of a source of messages.

    A part is what has an order of its own: a partition of a topic, a stream, a queue; a source that has one names it "". A
    position says where a message stands in its part; positions of a part ascend, and a part stands at the position of the
    last message that was handed on. The offset is `{"v": 1, "parts": {part: position}}`, all JSON.

    A subclass gives `fetch`. The rest is done here: what came before (a broker that delivers again) is dropped by its position,
    `until` is kept to exactly, a batch is of one part and carries the positions of all.

    Args:
        source: the source; its `cancelled` ends waiting.
        partition: the partition of the plan.
        extract: what is wanted of it.
        offset: where to go on.
        until: the offset to stop at, exactly; None: never. A part that it does not name is not read.
        linger: seconds that a batch waits for more; None: what the workflow says.
    """

    def __init__(
        self,
        source: MessageSource[Any],
        partition: Partition,
        extract: ExtractSpec,
        offset: Offset | None,
        until: Offset | None = None,
        *,
        linger: float | None = None,
    ) -> None:
        self._owner = source
        self._stream = partition.stream
        self.positions: dict[str, Any] = dict((offset or {}).get("parts") or {})
        """Part to the position of the last message that was handed on."""
        self.until: dict[str, Any] | None = None if until is None else dict(until.get("parts") or {})
        self._linger = linger if linger is not None else source.ctx.linger
        self._decoder = source.decoder(partition, extract)
        self._learned = partition.spec["payload"] if partition.spec.get("learned") else None
        self._held: Messages | None = None

    # -- for the subclass ----------------------------------------------------------------------------------

    @abstractmethod
    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return what came next of one part, waiting until `deadline` (monotonic seconds) for the first message.

        A page without messages but with `after` moves its part on. It is not called once `until` is reached.

        Raises:
            RetriableError: the connection is gone; the engine begins again from the last offset that is durable.
        """

    @property
    def partitions(self) -> Collection[str]:
        """The parts there are, for what is judged within each (lateness); none where the source is one part without a name."""
        return tuple(part for part in self.positions if part)

    def order(self, position: Any) -> Any:
        """Return what positions of a part are compared by; by default they are compared themselves."""
        return position

    def wants(self, part: str) -> bool:
        """Whether messages of a part are still to be read."""
        if self.until is None:
            return True
        if part not in self.until:
            return False
        at = self.positions.get(part)
        return at is None or self.order(at) < self.order(self.until[part])

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, `Pause` when `until` is reached, or None when `deadline` passed."""
        if self.until is not None and not any(self.wants(part) for part in self.until):
            return Pause()
        page = self._gathered(max_rows, max_bytes, deadline)
        return None if page is None else self._batch(page)

    def _gathered(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return messages of one part: what came, and what follows it within the linger."""
        pages: list[Messages] = []
        rows = size = 0
        wait = deadline
        while True:
            page, self._held = self._held, None
            if page is None:
                page = self._fresh(self.fetch(max_rows - rows, max_bytes - size, wait))
            if page is not None and pages and page.part != pages[0].part:
                self._held = page
                break
            if page is not None:
                if len(page) > max_rows - rows:
                    page, self._held = page.cut(0, max_rows - rows), page.cut(max_rows - rows, len(page))
                if not pages:
                    wait = min(deadline, time.monotonic() + self._linger)
                pages.append(page)
                self.positions[page.part] = page.end
                rows += len(page)
                size += page.size
            full = rows >= max_rows or size >= max_bytes or (pages and not self.wants(pages[0].part))
            if full or self._held is not None or time.monotonic() >= wait or self._owner.cancelled.is_set():
                break
        return joined(pages) if pages else None

    def _fresh(self, page: Messages | None) -> Messages | None:
        """Return what of a page is neither handed on already nor beyond `until`."""
        if page is None or not self.wants(page.part):
            return None
        order, at = self.order, self.positions.get(page.part)
        bound = None if self.until is None else self.until[page.part]
        start = 0 if at is None else bisect.bisect_right(page.positions, order(at), key=order)
        stop = len(page) if bound is None else bisect.bisect_right(page.positions, order(bound), key=order)
        end = page.end if bound is None or order(page.end) <= order(bound) else bound
        if at is not None and order(end) <= order(at):
            return None
        kept = page.cut(start, max(start, stop))
        # No message may stand at `until` itself: the part has come to it all the same.
        kept.after = end
        return kept

    def _batch(self, page: Messages) -> Batch:
        decoded = self._decoder.decode(page)
        offset: dict[str, Any] = {"v": 1, "parts": dict(self.positions)}
        if self._learned is not None:
            offset["schema"] = self._learned
        kept = decoded.kept
        origin = Origin(
            source=self._owner.ctx.node,
            data=decoded.data,
            base={},
            first=0,
            place=page.where if kept is None else lambda i: page.where(kept[i].as_py()),
        )
        return Batch(self._stream, decoded.data, offset, decoded.rejected, origin, partition=page.part)

    def close(self) -> None:
        """Release the decoder; a subclass lets go of its connection too."""
        self._decoder.close()
