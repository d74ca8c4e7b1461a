"""TABLE_MAP events: which table rows belong to, how its columns lie, and where the server tells it, what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dataflare_plugins.mysql.binlog.fields import ENUM, SET, STRING, Field, described, matches, meta_bytes
from dataflare_plugins.mysql.binlog.fields import field as field_of
from dataflare_plugins.mysql.columns import Column
from dataflare_sdk import code
from dataflare_sdk.records import field, record

UNKNOWN_TYPE = code(
    "mysql.unknown-log-type", 4, "A table in the log has a column of a type that is not known.", "Report it, with the column's type."
)
_NUMERIC = {1, 2, 3, 4, 5, 8, 9, 246}
_CHARACTER = {15, 252, STRING}
UNSIGNED, DEFAULT_CHARSET, CHARSETS, NAMES, SETS, ENUMS = 1, 2, 3, 4, 5, 6


@record
class TableMap:
    """What a table map says.

    Attributes:
        schema: database of the table.
        table: its name.
        fields: how each column lies in a row.
        extra: the optional metadata, by type.
    """

    schema: str
    table: str
    fields: tuple[Field, ...]
    extra: Mapping[int, bytes] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the columns' names, [] when the server does not log them (binlog_row_metadata)."""
        return [n.decode("utf-8") for n in _strings(self.extra.get(NAMES, b""))]

    def fits(self, columns: Sequence[Column]) -> bool:
        """Whether columns lie in rows like this."""
        if len(columns) != len(self.fields):
            return False
        names = self.names()
        if names and names != [c.name for c in columns]:
            return False
        return all(matches(c, f) for c, f in zip(columns, self.fields, strict=True))

    def columns(self, known: Sequence[Column], charsets: Mapping[int, str]) -> tuple[Column, ...] | None:
        """Return the columns, from the names in the map and the columns known by these names; None without names.

        Args:
            known: columns of the table from another time; one of the same name and layout tells more than the map.
            charsets: collation id to character set.
        """
        names = self.names()
        if not names:
            return None
        by_name = {c.name: c for c in known}
        unsigned, sets, members = self._unsigned(), self._charsets(charsets), self._members()
        found = []
        for i, (name, where) in enumerate(zip(names, self.fields, strict=True)):
            column = by_name.get(name)
            if column is None or not matches(column, where) or column.unsigned != unsigned.get(i, column.unsigned):
                column = described(name, where, unsigned=unsigned.get(i, False), charset=sets.get(i, ""), members=members.get(i, ()))
            elif i in members and members[i] != column.members:
                column = described(name, where, unsigned=False, charset=column.charset, members=members[i])
            found.append(column)
        return tuple(found)

    def _unsigned(self) -> dict[int, bool]:
        bits = self.extra.get(UNSIGNED)
        numeric = [i for i, f in enumerate(self.fields) if f.code in _NUMERIC]
        if bits is None:
            return {}
        return {i: bool(bits[k // 8] & (0x80 >> k % 8)) for k, i in enumerate(numeric) if k // 8 < len(bits)}

    def _charsets(self, charsets: Mapping[int, str]) -> dict[int, str]:
        character = [i for i, f in enumerate(self.fields) if f.code in _CHARACTER]
        found: dict[int, int] = {}
        if CHARSETS in self.extra:
            found = dict(zip(character, _integers(self.extra[CHARSETS]), strict=False))
        elif DEFAULT_CHARSET in self.extra:
            default, *pairs = list(_integers(self.extra[DEFAULT_CHARSET]))
            found = dict.fromkeys(character, default)
            found.update({character[k]: v for k, v in zip(pairs[::2], pairs[1::2], strict=False)})
        return {i: "" if n == 63 else charsets.get(n, "utf8mb4") for i, n in found.items()}

    def _members(self) -> dict[int, tuple[str, ...]]:
        found = {}
        for kind, tag in ((ENUM, ENUMS), (SET, SETS)):
            mine = [i for i, f in enumerate(self.fields) if f.code == kind]
            for i, texts in zip(mine, _lists(self.extra.get(tag, b"")), strict=False):
                found[i] = tuple(t.decode("utf-8", "replace") for t in texts)
        return found


def parse(body: bytes) -> TableMap:
    """Return what a TABLE_MAP event says.

    Raises:
        DataflareError: `mysql.unknown-log-type`.
    """
    at = 8
    size = body[at]
    schema, at = body[at + 1 : at + 1 + size].decode("utf-8"), at + size + 2
    size = body[at]
    table, at = body[at + 1 : at + 1 + size].decode("utf-8"), at + size + 2
    count, at = lenenc(body, at)
    codes, at = body[at : at + count], at + count
    meta_size, at = lenenc(body, at)
    meta, at = body[at : at + meta_size], at + meta_size
    extra = dict(_tags(body, at + (count + 7) // 8))
    fields, where = [], 0
    for kind in codes:
        width = meta_bytes(kind)
        found = field_of(kind, meta[where : where + width])
        if found is None:
            raise UNKNOWN_TYPE.error(f"'{schema}.{table}' has a column of the type {kind}, which is not known")
        fields.append(found)
        where += width
    return TableMap(schema, table, tuple(fields), extra)


def lenenc(data: bytes, at: int) -> tuple[int, int]:
    """Return a length-encoded number and the place after it."""
    first = data[at]
    if first < 251:
        return first, at + 1
    width = {252: 2, 253: 3, 254: 8}[first]
    return int.from_bytes(data[at + 1 : at + 1 + width], "little"), at + 1 + width


def _tags(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(body):
        tag = body[at]
        size, at = lenenc(body, at + 1)
        yield tag, body[at : at + size]
        at += size


def _integers(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = lenenc(data, at)
        yield value


def _strings(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size, at = lenenc(data, at)
        yield data[at : at + size]
        at += size


def _lists(data: bytes) -> Iterator[list[bytes]]:
    at = 0
    while at < len(data):
        count, at = lenenc(data, at)
        found = []
        for _ in range(count):
            size, at = lenenc(data, at)
            found.append(data[at : at + size])
            at += size
        yield found
