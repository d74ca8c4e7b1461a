"""Bytes that are wrong: an error or valid rows, never a crash, a hang, or a write beyond a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pyarrow as pa
import pytest
from tests.plugins.postgres_codec import messages as m

from dataflare_plugins.postgres.codec.changes import ChangeBatch, ChangeDecoder, Form, NeedsTextError
from dataflare_plugins.postgres.codec.copy import CopyDecoder
from dataflare_plugins.postgres.codec.encode import CopyEncoder
from dataflare_plugins.postgres.codec.memory import PADDING, Guest
from dataflare_plugins.postgres.codec.tables import Relation
from dataflare_plugins.postgres.codec.types import column
from dataflare_sdk import DataflareError

GUARD, MARK = 64, 0xA5
COLUMNS = [
    column("a", 20), column("b", 16), column("c", 1700, (12 << 16 | 3) + 4), column("d", 1700), column("e", 25), column("f", 17),
    column("g", 1184), column("h", 2950), column("i", 3802), column("j", 1009), column("k", 1231, (6 << 16 | 1) + 4), column("l", 1083),
]  # fmt: skip


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Put marked bytes behind every allocation; the function checks those that are in use and returns how many."""
    allocate, free, used = Guest.allocate, Guest.free, dict[tuple[Guest, int], int]()

    def guarded_allocate(self: Guest, size: int) -> int:
        address = allocate(self, size + GUARD)
        self.fill(address + size + 16, MARK, PADDING + GUARD - 16)
        used[self, address] = size
        return address

    def guarded_free(self: Guest, address: int, size: int) -> None:
        assert used.pop((self, address)) == size
        free(self, address, size + GUARD)

    def check() -> int:
        for (guest, address), size in used.items():
            assert guest.read(address + size + 16, PADDING + GUARD - 16) == bytes([MARK]) * (PADDING + GUARD - 16)
        checked = len(used)
        used.clear()
        return checked

    monkeypatch.setattr(Guest, "allocate", guarded_allocate)
    monkeypatch.setattr(Guest, "free", guarded_free)
    return check


def mutated(dice: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(out))
        what = dice.random()
        if what < 0.5:
            out[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        elif what < 0.7:
            out[at : at + 4] = dice.choice(
                [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00", b"\x00\x10\x00\x00"]
            )
        elif what < 0.85:
            del out[at : at + dice.randint(1, 9)]
        else:
            out[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 9)))
    return bytes(out)


def sample(rows: int = 12) -> pa.RecordBatch:
    dice = random.Random(5)
    some = lambda make: [None if i % 5 == 4 else make(i) for i in range(rows)]  # noqa: E731
    return pa.RecordBatch.from_arrays(
        [
            pa.array(some(lambda i: i - 3), pa.int64()),
            pa.array(some(lambda i: i % 2 == 0)),
            pa.array(some(lambda i: i * 1234567), pa.int64()).cast(pa.decimal128(38, 3)).cast(pa.decimal128(12, 3)),
            pa.array(some(lambda i: f"{i}{'0' * i}.{'12' * i or '0'}")),
            pa.array(some(lambda i: "é☃x" * i)),
            pa.array(some(lambda i: bytes(range(i * 3)))),
            pa.array(some(lambda i: i * 10**14), pa.timestamp("us", "UTC")),
            pa.array(some(lambda i: f"{dice.getrandbits(128):032x}")),
            pa.array(some(lambda i: f'{{"a": {i}}}')),
            pa.array(some(lambda i: [None, "é" * i, ""][: i % 4]), pa.list_(pa.string())),
            pa.array(some(lambda i: [None, i, -i][: i % 4]), pa.list_(pa.int64()))
            .cast(pa.list_(pa.decimal128(19, 0)))
            .cast(pa.list_(pa.decimal128(20, 1)))
            .cast(pa.list_(pa.decimal128(6, 1))),
            pa.array(some(lambda i: i * 10**9), pa.time64("us")),
        ],
        names=[c.name for c in COLUMNS],
    )


def test_mutated_copies(guarded: Callable[[], int]) -> None:
    batch = sample()
    encoder = CopyEncoder(batch.schema, COLUMNS)
    data = b"".join([*encoder.encode(batch).chunks, encoder.finish()])
    assert guarded() == 3
    encoder.close()
    dice, ends = random.Random(1), {"rows": 0, "refused": 0, "error": 0}
    for _ in range(1000):
        wrong, decoder = mutated(dice, data), CopyDecoder(COLUMNS, max_rows=dice.choice([2, 5, 100]))
        try:
            made = [*decoder.feed([wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :]]), decoder.finish()]
        except DataflareError as error:
            assert error.code == "postgres.protocol"
            ends["error"] += 1
        else:
            for part in made:
                if part is not None:
                    part.data.validate(full=True)
                    ends["refused"] += len(part.rejected)
            ends["rows"] += 1
        assert guarded() > 30
        decoder.close()
    assert min(ends.values()) > 10, ends


def stream(text: bool) -> list[bytes]:
    columns = [
        ("id", m.BIGINT, -1),
        ("n", m.NUMERIC, (12 << 16 | 3) + 4),
        ("b", m.BYTEA, -1),
        ("l", m.TEXTS, -1),
        ("i", m.INTS, -1),
        ("d", m.DATE, -1),
    ]
    if text:
        rows = [m.values(str(i), f"-{i}.5", f"\\x00{i % 256:02x}", '{NULL,"a\\"b",c}', "{1,-2,NULL}", "0044-03-15 BC") for i in range(6)]
    else:
        number, ints = (
            bytes.fromhex("000200004000000100011388"),
            bytes.fromhex("00000001000000010000001700000002000000010000000400000007ffffffff"),
        )
        texts = bytes.fromhex("00000001000000010000001900000002000000010000000161ffffffff")
        rows = [m.values(m.big(i), number, b"ab" * i, texts, ints, m.whole(i)) for i in range(6)]
    out = [m.relation(1, columns, b"d", "t1"), m.relation(2, columns, b"f", "t2")]
    for i, row in enumerate(rows):
        nulls = b"".join([b"n"] * 5)
        key = b"K" + row[: 2 + 5 + int.from_bytes(row[3:7], "big")] + nulls
        kept = row[: 2 + 5 + int.from_bytes(row[3:7], "big")] + b"u" * 5
        out += [m.begin(1000 + 100 * i), m.insert(1, row), m.insert(2, row), m.update(1, kept, key), m.update(2, kept, b"O" + rows[i - 1])]
        out += [m.delete(1, key), m.delete(2, b"O" + row), m.truncate(1, 2), m.commit(1000 + 100 * i), m.keepalive(10_000)]
    return out


def form(relation: Relation) -> Form:
    return Form([column(a.name, a.oid, a.typmod) for a in relation.attributes], ["id"])


def read(decoder: ChangeDecoder, payloads: list[bytes]) -> list[ChangeBatch]:
    return [e for e in [*m.feed(decoder, payloads), *decoder.drain()] if isinstance(e, ChangeBatch)]


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_mutated_streams(guarded: Callable[[], int], text: bool) -> None:
    good, dice, ends = stream(text), random.Random(2), {"good": 0, "error": 0}
    want = [(b.data, b.changes.op) for b in read(ChangeDecoder(form, text=text), good)]
    assert sum(d.num_rows for d, _ in want) == 54
    guarded()
    for _ in range(300):
        decoder = ChangeDecoder(form, text=text, max_rows=dice.choice([2, 5, 100]))
        which = dice.randrange(len(good))
        try:
            pieces = m.framed(good)
            if dice.random() < 0.2:
                pieces[which] = mutated(dice, pieces[which])
            else:
                pieces[which : which + 1] = m.framed([mutated(dice, good[which])])
            for batch in [e for e in [*decoder.feed(pieces), *decoder.drain()] if isinstance(e, ChangeBatch)]:
                batch.data.validate(full=True)
            ends["good"] += 1
        except (DataflareError, NeedsTextError):  # a description may have become one of another type
            ends["error"] += 1
        decoder.drain()
        assert guarded() >= 2
        decoder.close()
    assert min(ends.values()) > 50, ends
