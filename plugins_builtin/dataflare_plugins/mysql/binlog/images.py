"""Row images, gathered without looking at a single value.

A row in the log is a bitmap of NULLs and then its values, one after the other; text and blobs bring their length. So a
row falls into *segments*: a run of columns of fixed width that ends with the length of a text, then that text. `Images`
slices rows into segments, one list per segment and one per text; Python's work is one step per segment, not per value.
Rows that lack columns (NULL, or not logged) are filled up with zeros to the same form. A whole batch of a segment,
joined, is a matrix of bytes from which `values` takes columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dataflare_plugins.mysql.binlog.fields import Field
from dataflare_sdk import code

BROKEN = code("mysql.log-broken", 4, "A row of the log ends elsewhere than its event.", "Report it, with the table's definition.")
Step = tuple[Callable[[bytes], None], int, "list[Any] | None", Callable[[Any], None] | None, int]
"""Of one segment: where it goes; its width in the row; its pieces where columns are missing; where its text goes; bytes
of the text's length, 0 when there is no text to read."""


class Segment:
    """A run of columns of fixed width, and the text that may follow it.

    Attributes:
        columns: column number to its place within the segment.
        width: bytes, the length of the text included.
        text: column number of the text, None at the end of a row.
        prefix: bytes of the text's length.
    """

    def __init__(self) -> None:
        self.columns: dict[int, int] = {}
        self.width = 0
        self.text: int | None = None
        self.prefix = 0


def segments_of(fields: Sequence[Field]) -> list[Segment]:
    """Cut a row's columns into segments."""
    found = [Segment()]
    for i, where in enumerate(fields):
        last = found[-1]
        if where.prefix:
            last.text, last.prefix = i, where.prefix
            last.width += where.prefix
            found.append(Segment())
        else:
            last.columns[i] = last.width
            last.width += where.width
    return found if found[-1].width or len(found) == 1 else found[:-1]


class Images:
    """The row images of one table that are waiting to become a batch.

    Args:
        fields: how its columns lie.
        wanted: numbers of the columns that are read; texts of others are not kept.
    """

    def __init__(self, fields: Sequence[Field], wanted: Collection[int]) -> None:
        self.fields = tuple(fields)
        self.segments = segments_of(fields)
        self.bitmap = (len(fields) + 7) // 8
        self.all = ((1 << len(fields)) - 1).to_bytes(self.bitmap, "little")
        self._nothing = bytes(self.bitmap)
        self._wanted = frozenset(wanted)
        self.fixed: list[list[bytes]] = [[] for _ in self.segments]
        self.texts: dict[int, list[bytes | None]] = {s.text: [] for s in self.segments if s.text is not None and s.text in self._wanted}
        self.nulls: list[bytes] = []
        self.absent: list[bytes] = []
        self._known: dict[bytes, dict[bytes, tuple[bytes, list[Step]]]] = {}

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self.nulls)

    def take(self, body: bytes, at: int, presents: Sequence[bytes]) -> int:
        """Gather the images of a rows event, from `at` to its end, and return how many there are.

        Args:
            body: the event's body.
            at: where the first row begins.
            presents: bitmaps of the columns that the images hold: one, or two for before and after.

        Raises:
            DataflareError: `mysql.log-broken`.
        """
        before, end = len(self.nulls), len(body)
        try:
            while at < end:
                if len(presents) == 1:
                    at = self._run(body, at, end, presents[0])
                else:
                    for present in presents:
                        at = self._run(body, at, at, present)
        except IndexError:
            at = -1
        if at != end:
            raise BROKEN.error("a row of the log does not end where its event does")
        count = len(self.nulls) - before
        lacking = [self._nothing if p == self.all else bytes(a & ~b for a, b in zip(self.all, p, strict=True)) for p in presents]
        self.absent += lacking * (count // len(presents))
        return count

    def _run(self, body: bytes, at: int, end: int, present: bytes) -> int:
        """Gather one image, and those after it that begin before `end`; return where the last one ends."""
        known = self._known.setdefault(present, {})
        size = (present_count(present) + 7) // 8
        add_nulls = self.nulls.append
        while True:
            key = body[at : at + size]
            at += size
            found = known.get(key)
            if found is None:
                found = known[key] = self._steps(present, key)
            nulls, steps = found
            add_nulls(nulls)
            for add, width, pieces, add_text, prefix in steps:
                stop = at + width
                if pieces is None:
                    add(body[at:stop])
                else:
                    add(b"".join([p if type(p) is bytes else body[at + p[0] : at + p[1]] for p in pieces]))
                at = stop
                if prefix:
                    at += body[stop - 1] if prefix == 1 else int.from_bytes(body[stop - prefix : stop], "little")
                    add_text(body[stop:at])  # type: ignore[misc]
                elif add_text is not None:
                    add_text(None)
            if at >= end:
                return at

    def _steps(self, present: bytes, nulls: bytes) -> tuple[bytes, list[Step]]:
        """Return the NULLs of all columns, and what to do with a row that holds these columns with these NULLs."""
        there, k = [], 0
        for i in range(len(self.fields)):
            if present[i // 8] >> i % 8 & 1:
                there.append(not nulls[k // 8] >> k % 8 & 1)
                k += 1
            else:
                there.append(False)
        bits = sum(1 << i for i, yes in enumerate(there) if not yes)
        steps = [self._step(s, self.fixed[n].append, there) for n, s in enumerate(self.segments)]
        return bits.to_bytes(self.bitmap, "little"), steps

    def _step(self, segment: Segment, add: Callable[[bytes], None], there: Sequence[bool]) -> Step:
        text = segment.text
        add_text: Callable[[Any], None] | None = None
        if text is not None:
            add_text = self.texts[text].append if text in self._wanted else deque[Any](maxlen=0).append
        has_text = text is not None and there[text]
        if all(there[i] for i in segment.columns) and (text is None or has_text):
            return add, segment.width, None, add_text, segment.prefix
        pieces: list[Any] = []
        at = 0
        for i in segment.columns:
            width = self.fields[i].width
            pieces.append((at, at + width) if there[i] else bytes(width))
            at += width if there[i] else 0
        if text is not None:
            pieces.append((at, at + segment.prefix) if has_text else bytes(segment.prefix))
            at += segment.prefix if has_text else 0
        return add, at, pieces, add_text, segment.prefix if has_text else 0

    def clear(self) -> None:
        """Forget what waits."""
        held: list[list[Any]] = [*self.fixed, *self.texts.values(), self.nulls, self.absent]
        for gathered in held:
            gathered.clear()


def present_count(present: bytes) -> int:
    """Return how many columns a bitmap names."""
    return int.from_bytes(present, "little").bit_count()
