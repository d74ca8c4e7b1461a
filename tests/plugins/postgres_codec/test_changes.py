"""The decoder of changes without a server: what servers send rarely, and what none should."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from tests.plugins.postgres_codec import messages as m

from dataflare_plugins.postgres.codec.changes import ChangeBatch, ChangeDecoder, Ended, Form
from dataflare_plugins.postgres.codec.tables import Relation
from dataflare_plugins.postgres.codec.types import column
from dataflare_sdk import DataflareError

COLUMNS = [("id", m.BIGINT, -1), ("t", m.TEXT, -1)]


def form(relation: Relation) -> Form:
    return Form([column(a.name, a.oid, a.typmod) for a in relation.attributes], ["id"])


def ops(batch: ChangeBatch) -> list[tuple[Any, ...]]:
    letters = map(chr, batch.changes.op.to_pylist())
    return [(o, *r.values()) for o, r in zip(letters, batch.data.to_pylist(), strict=True)]


def test_a_key_sent_though_it_did_not_change_removes_nothing() -> None:
    """PostgreSQL sends the old key when it stood outside the row (TOAST): the row must not be deleted first."""
    decoder = ChangeDecoder(form)
    key = b"K" + m.values(m.big(1), None)
    list(
        m.feed(
            decoder,
            [
                m.relation(9, COLUMNS),
                m.begin(),
                m.update(9, m.values(m.big(1), ...), key),
                m.update(9, m.values(..., b"x"), key),
                m.commit(),
            ],
        )
    )
    (batch,) = decoder.drain()
    assert ops(batch) == [("u", 1, None), ("u", None, "x")]
    assert batch.changes.unchanged["t"].to_pylist() == [True, False]


def test_tables_in_turn_do_not_cost_a_batch_a_row() -> None:
    decoder = ChangeDecoder(form)
    rows = [m.insert(i % 5, m.values(m.big(i), b"x")) for i in range(1000)]
    events = list(m.feed(decoder, [*(m.relation(t, COLUMNS, name=f"t{t}") for t in range(5)), m.begin(), *rows, m.commit()]))
    assert not [e for e in events if isinstance(e, ChangeBatch)]
    batches = decoder.drain()
    assert [b.data.column(0).to_pylist() for b in batches] == [list(range(t, 1000, 5)) for t in range(5)]
    assert [b.position for b in batches] == [None] * 4 + [1008]


def test_rows_after_the_last_commit_have_no_position() -> None:
    decoder = ChangeDecoder(form)
    one, two = (m.insert(9, m.values(m.big(i), None), 100 + i) for i in (1, 2))
    list(m.feed(decoder, [m.relation(9, COLUMNS), m.begin(1000), one, m.commit(1000), m.begin(2000), two]))
    assert decoder.in_transaction
    batches = decoder.drain()
    assert [(b.data.column(0).to_pylist(), b.position) for b in batches] == [([1], 1008), ([2], None)]
    assert [b.changes.pos.to_pylist() for b in batches] == [[101], [102]]
    list(m.feed(decoder, [m.commit(2000)]))
    assert decoder.drain() == []
    assert (decoder.position, decoder.in_transaction, decoder.pending) == (2008, False, False)


def test_bytes_cut_anywhere_are_the_same_changes() -> None:
    rows = [m.insert(9, m.values(m.big(i), b"x" * (i * 37 % 900))) for i in range(300)]
    data = b"".join(m.framed([m.relation(9, COLUMNS), m.begin(), *rows, m.commit(), m.keepalive(5000)]))
    want = [{"id": i, "t": "x" * (i * 37 % 900)} for i in range(300)]
    for size in (1, 2, 3, 7, 1000, 4093, len(data)):
        decoder = ChangeDecoder(form)
        list(decoder.feed(memoryview(data)[at : at + size] for at in range(0, len(data), size)))
        (batch,) = decoder.drain()
        assert (batch.data.to_pylist(), batch.position, decoder.wal_end) == (want, 1008, 5000), size


def test_what_a_server_says_beside_the_stream() -> None:
    """A notice and a setting say nothing; what ends the stream is handed out, after the changes before it."""
    decoder = ChangeDecoder(form)
    row = m.insert(9, m.values(m.big(1), None))
    before = m.framed([m.relation(9, COLUMNS), m.begin(), row, m.commit()])
    beside = [b"N" + struct.pack(">I", 9) + b"SWAR\0", b"S" + struct.pack(">I", 8) + b"a\0b\0"]
    events = list(decoder.feed([*before[:2], *beside, *before[2:], b"E" + struct.pack(">I", 12) + b"Mended\0\0"]))
    assert events[-1] == Ended(b"E", b"Mended\0\0")
    assert [b.data.num_rows for b in decoder.drain()] == [1]


@pytest.mark.parametrize("kind", [b"X", b"D", b"\0"])
def test_a_message_of_no_such_kind_is_an_error(kind: bytes) -> None:
    with pytest.raises(DataflareError, match=r"postgres\.protocol"):
        list(ChangeDecoder(form).feed([kind + struct.pack(">I", 4)]))


@pytest.mark.parametrize("size", [0, 3, 0x80000000, 0xFFFFFFFF])
def test_a_message_of_no_such_length_is_an_error(size: int) -> None:
    with pytest.raises(DataflareError, match=r"postgres\.protocol"):
        list(ChangeDecoder(form).feed([b"d" + struct.pack(">I", size) + bytes(40)]))


def test_a_large_message_does_not_keep_its_room() -> None:
    decoder = ChangeDecoder(form, max_bytes=1 << 20)
    data = b"".join(m.framed([m.relation(9, COLUMNS), m.begin(), m.insert(9, m.values(m.big(1), b"x" * 20_000_000)), m.commit()]))
    list(decoder.feed(data[at : at + 65_536] for at in range(0, len(data), 65_536)))
    assert sum(b.data.num_rows for b in decoder.drain()) == 1
    assert decoder._room == 0


def test_until_stops_before_a_transaction_that_commits_later() -> None:
    row = m.insert(9, m.values(m.big(1), None))
    stream = [m.relation(9, COLUMNS), m.begin(1000), row, m.commit(1000), m.begin(2000), row, m.commit(2000)]
    for until, rows in ((1001, 1), (1008, 1), (1009, 1), (2000, 1), (2001, 2), (2008, 2)):
        decoder = ChangeDecoder(form)
        list(m.feed(decoder, stream, until))
        assert sum(b.data.num_rows for b in decoder.drain()) == rows, until
        assert decoder.reached
    decoder = ChangeDecoder(form)
    list(m.feed(decoder, stream, 2009))
    assert not decoder.reached
    list(m.feed(decoder, [m.keepalive(2009)], 2009))
    assert decoder.reached


def test_a_keepalive_within_a_transaction_reaches_nothing() -> None:
    decoder = ChangeDecoder(form)
    list(m.feed(decoder, [m.begin(1000), m.keepalive(5000, 1)], 2000))
    assert not decoder.reached
    assert decoder.wal_end == 5000
    list(m.feed(decoder, [m.commit(1000)], 2000))
    assert not decoder.reached
    assert decoder.wants_reply()
    assert not decoder.wants_reply()


def test_a_table_altered_within_a_transaction_keeps_its_place_in_it() -> None:
    decoder = ChangeDecoder(form)
    old, new = m.relation(9, COLUMNS), m.relation(9, [*COLUMNS, ("n", m.INT, -1)])
    row = m.insert(9, m.values(m.big(2), None, m.whole(5)))
    events = list(m.feed(decoder, [old, m.begin(), m.insert(9, m.values(m.big(1), None)), new, row, m.commit()])) + decoder.drain()
    batches = [e for e in events if isinstance(e, ChangeBatch)]
    assert [(b.data.to_pylist(), b.position) for b in batches] == [([{"id": 1, "t": None}], None), ([{"id": 2, "t": None, "n": 5}], 1008)]


def test_a_value_larger_than_the_buffers() -> None:
    decoder = ChangeDecoder(form, max_bytes=1 << 20)
    sizes = [10, 3_000_000, 5, 9_000_000, 1]
    rows = [m.insert(9, m.values(m.big(n), b"x" * n)) for n in sizes]
    events = list(m.feed(decoder, [m.relation(9, COLUMNS), m.begin(), *rows, m.commit()])) + decoder.drain()
    batches = [e for e in events if isinstance(e, ChangeBatch)]
    assert [len(r["t"]) for b in batches for r in b.data.to_pylist()] == sizes
    assert decoder._guest.used < 64 << 20


def test_a_refused_change_is_refused_once_where_its_row_is_decoded_twice() -> None:
    """Its text finds no room after its date was refused: the rows before it are given, then it comes again."""
    decoder = ChangeDecoder(form, max_bytes=1)
    rows = [m.insert(9, m.values(m.big(i), m.whole(0x7FFFFFFF if i % 3 == 2 else i), b"x" * 900)) for i in range(30)]
    columns = [("id", m.BIGINT, -1), ("d", m.DATE, -1), ("t", m.TEXT, -1)]
    events = list(m.feed(decoder, [m.relation(9, columns), m.begin(), *rows, m.commit()])) + decoder.drain()
    batches = [e for e in events if isinstance(e, ChangeBatch)]
    assert len(batches) > 5
    assert [i for b in batches for i in b.data.column(0).to_pylist()] == [i for i in range(30) if i % 3 != 2]
    assert [r.row["id"] for b in batches for r in b.rejected if r.row] == list(range(2, 30, 3))


def test_many_tables_do_not_add_up() -> None:
    decoder = ChangeDecoder(form, max_bytes=8 << 20)
    rows = 0
    for t in range(200):
        stream = [
            m.relation(t, COLUMNS, name=f"t{t}"),
            m.begin(),
            *[m.insert(t, m.values(m.big(i), b"x" * 200)) for i in range(1000)],
            m.commit(),
        ]
        rows += sum(e.data.num_rows for e in m.feed(decoder, stream) if isinstance(e, ChangeBatch))
    rows += sum(b.data.num_rows for b in decoder.drain())
    assert rows == 200_000
    assert decoder._guest.used < 24 << 20


def test_a_busy_table_gets_the_room_that_others_no_longer_need() -> None:
    decoder, sizes = ChangeDecoder(form, max_bytes=4 << 20), []
    for t in range(100):
        stream = [
            m.relation(t, COLUMNS, name=f"t{t}"),
            m.begin(),
            *[m.insert(t, m.values(m.big(i), b"x" * 200)) for i in range(2000)],
            m.commit(),
        ]
        sizes += [e.data.num_rows for e in m.feed(decoder, stream) if isinstance(e, ChangeBatch) and e.relation.oid == t == 99]
    sizes += [b.data.num_rows for b in decoder.drain() if b.relation.oid == 99]
    assert sum(sizes) == 2000
    assert max(sizes) > 500


def test_a_table_without_a_key_has_none_that_could_change() -> None:
    """REPLICA IDENTITY FULL marks every column as part of the identity; that is no key."""
    decoder = ChangeDecoder(lambda relation: Form(form(relation).columns))
    old, new = m.values(m.big(1), b"a"), m.values(m.big(2), b"b")
    list(m.feed(decoder, [m.relation(9, COLUMNS, b"f"), m.begin(), m.update(9, new, b"O" + old), m.commit()]))
    (batch,) = decoder.drain()
    assert ops(batch) == [("u", 2, "b")]


def test_a_refused_change_after_the_last_commit_counts_from_it() -> None:
    decoder = ChangeDecoder(form)
    columns = [("id", m.BIGINT, -1), ("d", m.DATE, -1)]
    rows = [m.insert(9, m.values(m.big(i), m.whole(0x7FFFFFFF if i == 3 else 0))) for i in range(5)]
    list(m.feed(decoder, [m.relation(9, columns), m.begin(1000), *rows[:2], m.commit(1000), m.begin(2000), *rows[2:]]))
    whole, rest = decoder.drain()
    assert (whole.data.column(0).to_pylist(), whole.rejected) == ([0, 1], ())
    assert (rest.data.column(0).to_pylist(), [r.index for r in rest.rejected]) == ([2, 4], [1])


def test_ddl_again_and_again_does_not_add_up() -> None:
    decoder, tops = ChangeDecoder(form), []
    for i in range(50):
        list(m.feed(decoder, [m.relation(9, [*COLUMNS, (f"c{i}", m.INT, -1)])]))
        tops.append(decoder._guest._top)
    assert tops[-1] == tops[10]
    assert decoder._guest.used < 1 << 20


@pytest.mark.parametrize(
    "broken",
    [
        [b""],
        [b"x"],
        [b"k123"],
        [m.xlog(b"")],
        [m.xlog(b"Z123")],
        [m.xlog(b"S" + bytes(5))],
        [m.begin(), m.begin()],
        [m.commit()],
        [m.insert(9, m.values(m.big(1), None))],
        [m.begin(), m.insert(8, m.values(m.big(1), None))],
        [m.begin(), m.insert(9, m.values(m.big(1)))],
        [m.begin(), m.insert(9, m.values(m.whole(1), None))],
        [m.begin(), m.insert(9, m.values("1", None))[:-1]],
        [m.begin(), m.insert(9, m.values(m.big(1), None)) + b"x"],
        [m.begin(), m.insert(9, m.values("one", None))],
        [m.begin(), m.delete(9, b"N" + m.values(m.big(1), None))],
        [m.begin(), m.update(9, m.values(m.big(1), None), b"K" + m.values(m.big(1)))],
        [m.begin(), m.truncate(9)[:-1]],
        [m.relation(7, COLUMNS)[:-3]],
        [m.relation(7, COLUMNS)[:40]],
        [m.xlog(b"M" + bytes(5))],
        [m.xlog(b"M" + bytes(10) + b"\0\0\0\5four")],
    ],
)  # fmt: skip
def test_what_is_no_message_is_an_error(broken: list[bytes]) -> None:
    decoder = ChangeDecoder(form)
    list(m.feed(decoder, [m.relation(9, COLUMNS)]))
    with pytest.raises(DataflareError) as caught:
        list(m.feed(decoder, broken))
    assert caught.value.code == "postgres.protocol"
    assert caught.value.exit_code == 4
    assert not decoder.drain()


def test_a_change_of_which_every_value_is_refused() -> None:
    """Both rows of an update that changes the key, and both rows before them, in as many columns as there can be."""
    decoder = ChangeDecoder(form)
    columns = [("id", m.BIGINT, -1), *((f"d{i}", m.DATE, -1) for i in range(1599))]
    old, new = (m.values(m.big(i), *[m.whole(0x7FFFFFFF)] * 1599) for i in (1, 2))
    list(m.feed(decoder, [m.relation(9, columns, b"f"), m.begin(), *[m.update(9, new, b"O" + old)] * 3, m.commit()]))
    (batch,) = decoder.drain()[-1:]
    assert batch.data.num_rows == 0
    assert batch.position == 1008


def one(kind: int, value: bytes | str, typmod: int = -1) -> list[Any]:
    """Decode one value, of a stream in text when it is text."""
    decoder = ChangeDecoder(form, text=isinstance(value, str))
    row = m.insert(9, m.values("1" if isinstance(value, str) else m.big(1), value))
    list(m.feed(decoder, [m.relation(9, [("id", m.BIGINT, -1), ("x", kind, typmod)]), m.begin(), row, m.commit()]))
    (batch,) = decoder.drain()
    batch.data.validate(full=True)
    column = batch.data.column("x")
    return (column.cast("int32") if kind == m.DATE else column.cast("int64") if kind in (1114, 1184) else column).to_pylist()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (m.DATE, "1970-01-01", 0),
        (m.DATE, "2000-02-29", 11016),
        (m.DATE, "0001-12-31 BC", -719163),
        (m.DATE, "0044-03-15 BC", -735160),
        (m.DATE, "0101-03-01 BC", -755993),
        (m.DATE, "4713-01-01 BC", -2440550),
        (m.DATE, "5874897-12-31", 2145042905),
        (1114, "1969-12-31 23:59:59.5", -500_000),
        (1114, "0001-12-31 23:59:59 BC", -62135596801000000),
        (1184, "1970-01-01 05:30:00+05:30", 0),
        (1184, "1969-12-31 16:00:00-08", 0),
        (1184, "1970-01-01 00:00:30.000001+00:00:30", 1),
        (21, "-32768", -32768),
        (20, "-9223372036854775808", -(2**63)),
        (26, "4294967295", 2**32 - 1),
        (701, "-1.2345678901234567e-05", -1.2345678901234567e-05),
        (m.BYTEA, "\\x00FFaa", b"\x00\xff\xaa"),
        (m.TEXTS, '{a,"b,\\"\\\\",NULL,"NULL",""}', ["a", 'b,"\\', None, "NULL", ""]),
        (m.INTS, "[-3:-2]={1,NULL}", [1, None]),
        (m.INTS, "{}", []),
    ],
)
def test_text_of_a_value(kind: int, text: str, value: Any) -> None:
    assert one(kind, text) == [value]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (m.DATE, "2000-13-01"), (m.DATE, "2000-01-01 AD"), (m.DATE, "200-01-01"), (m.DATE, ""),
        (1114, "2000-01-01"), (1114, "2000-01-01 00:00:00+00"), (1184, "2000-01-01 00:00:00"), (1114, "2000-01-01 00:00:00."),
        (21, "32768"), (21, "-32769"), (20, "9223372036854775808"), (20, "1e3"), (26, "-1"), (26, "4294967296"), (16, "true"), (16, ""),
        (m.BYTEA, "\\000"), (m.BYTEA, "\\x0"), (m.BYTEA, "\\xgg"),
        (m.INTS, "{1,}"), (m.INTS, "{1"), (m.INTS, "{1}x"), (m.INTS, "1"), (m.INTS, "{1 2}"), (m.TEXTS, '{"a'), (m.TEXTS, '{"a"b}'), (m.INTS, "[1:2]"),
        (16, b""), (16, b"\1\1"), (21, b"\1"), (m.INTS, b""), (m.INTS, bytes(12) + b"x"),
        (m.INTS, bytes.fromhex("0000000100000000000000170000000100000001") + b"\0\0\0\4" + b"\0\0\0\1" + b"x"),
        (m.INTS, bytes.fromhex("0000000100000000000000170000000200000001") + b"\0\0\0\4" + b"\0\0\0\1"),
        (m.INTS, bytes.fromhex("0000000100000000000000177fffffff00000001") + b"\0\0\0\4" + b"\0\0\0\1"),
        (3802, b"\2{}"), (3802, b""), (2950, bytes(15)), (m.NUMERIC, bytes(7)), (m.NUMERIC, bytes(9)), (m.NUMERIC, b"\0\1" + bytes(6)),
    ],
)  # fmt: skip
def test_what_is_no_value_of_its_type_is_an_error(kind: int, value: bytes | str) -> None:
    with pytest.raises(DataflareError) as caught:
        one(kind, value)
    assert caught.value.code == "postgres.protocol"
