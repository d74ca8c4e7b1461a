"""Entries and their fields: which of them is the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from dataflare_plugins.redis.bulk import Columns, Ids
from dataflare_sdk import RowRejection, code

NO_FIELD = code(
    "data.no-field",
    1,
    "An entry of a stream has no field that is the message.",
    "Name the field in `field`, read all with `fields: true`, or set `errors.on_record`.",
)
NAME, VALUE = itemgetter(0), itemgetter(1)
"""Of an entry its id and its fields, of fields the first name and the value behind it."""


class ColumnPage:
    """Entries with one field each, which is the message; as `Page`.

    Args:
        found: the entries.
    """

    rejected: Sequence[RowRejection] = ()

    def __init__(self, found: Columns) -> None:
        self.payloads, self.ids = found.values, Ids(found.ids)

    def headers(self) -> Sequence[Mapping[str, str]]:
        """Return that there are no other fields."""
        return [{}] * len(self.ids)


class Page:
    """Entries of a stream as the driver gives them, `[id, [name, value, …]]`, taken apart.

    Args:
        stream: the stream.
        entries: the entries.
        config: says which field is the message.

    Attributes:
        ids: of the entries whose message was found, as texts.
        payloads: their messages.
        rejected: the entries that have none.
    """

    def __init__(self, stream: str, entries: Sequence[Any], config: Any) -> None:
        self._stream = stream
        self._named = None if config.field is None else config.field.encode()
        self.rejected: list[RowRejection] = []
        self._entries = entries
        values = list(map(VALUE, entries))
        if config.fields:
            from dataflare_plugins.redis.columns import as_objects

            self.payloads: Any = as_objects(values)
        elif self._plain(values):
            self.payloads = list(map(VALUE, values))
        else:
            self.payloads = self._picked()
        self.ids = [str(name, "ascii") for name in map(NAME, self._entries)]

    def _plain(self, values: Sequence[Sequence[bytes]]) -> bool:
        """Whether every entry has the message in front: all of its one field, or its first field of that name."""
        if self._named is None:
            return set(map(len, values)) <= {2}
        return set(map(NAME, values)) <= {self._named}

    def _picked(self) -> list[bytes]:
        kept, found = [], []
        for entry in self._entries:
            id, values = entry
            names = values[::2]
            if self._named in names:
                found.append(values[2 * names.index(self._named) + 1])
            elif self._named is None and len(names) == 1:
                found.append(values[1])
            else:
                self.rejected.append(self._without(id, values))
                continue
            kept.append(entry)
        self._entries = kept
        return found

    def _without(self, id: bytes, values: Sequence[bytes]) -> RowRejection:
        shown = ", ".join(f"{_text(values[i])}={_text(values[i + 1])}" for i in range(0, len(values), 2))[: 64 << 10]
        there = ", ".join(_text(name) for name in values[::2])
        named = self._named
        cause = f"the entry has the fields {there}" if named is None else f"the entry has no field '{_text(named)}', it has {there}"
        return RowRejection(NO_FIELD.name, cause, {"stream": self._stream, "position": id.decode()}, raw=shown)

    def headers(self) -> Sequence[Mapping[str, str]]:
        """Return the other fields of every entry."""
        found = []
        for _, values in self._entries:
            names = values[::2]
            message = self._named if self._named is not None else names[0]
            found.append({_text(n): _text(values[2 * i + 1]) for i, n in enumerate(names) if n != message})
        return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
