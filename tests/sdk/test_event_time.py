"""Event time at one step: what is late, how far everything has come, and who holds whom back."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare_sdk import Watermark
from dataflare_sdk.event_time import BEGINNING, FOREVER, EventClock, event_times

SECOND = 1_000_000


def heard(clock: EventClock, partition: str, *times: int) -> list[int]:
    """Hand times to a clock; return those that were late."""
    column = pa.array(times, pa.int64())
    late, newest = clock.late(column, partition)
    clock.moved(partition, newest)
    return [] if late is None else column.filter(late).to_pylist()


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.integers(0, 30), st.integers(1, 7))
def test_late_is_judged_row_by_row(times: list[int], lateness: int, rows: int) -> None:
    clock, newest, expected = EventClock(lateness), -(10**9), []
    for time in times:
        newest = max(newest, time)
        if time < newest - lateness:
            expected.append(time)
    found = [late for i in range(0, len(times), rows) for late in heard(clock, "p", *times[i : i + rows])]
    assert found == expected


def test_the_slowest_partition_decides_unless_it_rests_or_has_ended() -> None:
    clock = EventClock(5)
    heard(clock, "fast", 100)
    heard(clock, "slow", 20)
    assert clock.advance([Watermark(None, "fast"), Watermark(None, "slow"), Watermark(None, "unheard")]) == BEGINNING
    assert clock.advance([Watermark(None, "fast"), Watermark(None, "slow")]) == 15
    assert clock.advance([Watermark(None, "fast"), Watermark(None, "slow", 30 * SECOND)]) == 95
    assert clock.advance([Watermark(None, "fast"), Watermark(None, "slow")]) == 95, "it goes back"
    assert heard(clock, "slow", 21, 94, 96) == [21, 94], "what was told may not change any more"


def test_an_ended_partition_holds_nobody_back() -> None:
    clock = EventClock(0)
    heard(clock, "a", 10)
    heard(clock, "b", 50)
    assert clock.advance([Watermark(FOREVER, "a"), Watermark(None, "b")]) == 50
    assert clock.advance([Watermark(FOREVER, "a"), Watermark(FOREVER, "b")]) == 50, "the end of all is for `flush`"


def test_a_step_before_says_how_far_it_has_come() -> None:
    clock = EventClock(5)
    heard(clock, "w", 10)
    assert clock.advance([Watermark(40, "w")]) == 40


def test_where_everybody_rests_time_goes_on_with_the_clock_if_it_may() -> None:
    patient, quiet = EventClock(5), EventClock(5, quiet=60 * SECOND)
    for clock in (patient, quiet):
        heard(clock, "a", 100 * SECOND)
        heard(clock, "b", 20 * SECOND)
    resting = [Watermark(None, "a", 90 * SECOND), Watermark(None, "b", 200 * SECOND)]
    assert patient.advance(resting) == 100 * SECOND - 5
    assert quiet.advance(resting) == 190 * SECOND - 5
    short = [Watermark(None, "a", 30 * SECOND), Watermark(None, "b", 30 * SECOND)]
    assert EventClock(0, quiet=60 * SECOND).advance(short) == BEGINNING


def test_it_goes_on_from_what_was_kept() -> None:
    clock, later = EventClock(5), EventClock(5)
    heard(clock, "a", 100)
    clock.advance([Watermark(None, "a")])
    later.restore(clock.snapshot())
    assert (later.watermark, heard(later, "a", 94, 95)) == (95, [94])


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ns"), pa.date32(), pa.date64()]
)
def test_every_type_of_time_is_microseconds(kind: pa.DataType) -> None:
    day = datetime.datetime(1969, 12, 31, tzinfo=datetime.UTC)
    value = pa.array([-86_400_000_000, None], pa.timestamp("us", "UTC"))
    column = value.cast(pa.timestamp("us")).cast(kind, safe=False) if getattr(kind, "tz", None) is None else value.cast(kind)
    assert event_times(column).to_pylist() == [-86_400_000_000, None]
    assert day.timestamp() == -86_400


def test_what_is_finer_than_a_microsecond_is_cut_off() -> None:
    assert event_times(pa.array([1_999], pa.timestamp("ns"))).to_pylist() == [1]
