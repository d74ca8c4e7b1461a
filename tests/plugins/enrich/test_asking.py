"""P5: requests of many keys, what is kept of their answers, and what becomes of rows when nobody answers."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plugins.enrich.enriching import Scripted, by_duckdb, same

from dataflare_plugins.enrich import asking
from dataflare_plugins.enrich.cache import Cache
from dataflare_plugins.enrich.index import answers
from dataflare_sdk import CODES, DataflareError, RetriableError

LOOKUP = pa.table({"id": pa.array([1, 2, 3, 3, 5], pa.int64()), "name": ["one", "two", "three", "drei", "five"]})
GIVEN = pa.table({"i": pa.array(range(8), pa.int64()), "k": pa.array([1, 2, 1, None, 9, 5, 2, 9], pa.int64())})
ON, SELECT = {"k": "id"}, {"name": "name"}
QUICK = {"attempts": 3, "initial": "1ms", "max": "2ms"}


def down(*_args) -> None:
    raise CODES["enrich.lookup-down"].retriable("nobody there")


@pytest.fixture(name="told")
def _told(enriching):
    """Make a step over a lookup that a test scripts; returns a function that gives the step, and what was asked."""
    asked: list = []
    made: list[Scripted] = []

    def make(act=lambda _k: None, table=LOOKUP, **config):
        def build() -> Scripted:
            made.append(Scripted(table, asked, lambda keys: act(keys)))
            return made[-1]

        enriching.lookups["scripted"] = build
        return enriching.step(GIVEN.schema, **{"lookup": {"use": "scripted"}, "on": ON, "select": SELECT, "retry": QUICK, **config})

    make.asked, make.made = asked, made
    return make


def wanted(**more):
    return by_duckdb(GIVEN, LOOKUP, ON, SELECT, **more)


def test_a_key_is_asked_for_once_in_a_batch_and_many_in_a_request(enriching, told) -> None:
    step = told()
    same(enriching.over(step, GIVEN)[0], wanted())
    assert [sorted(keys) for keys in told.asked] == [[(1,), (2,), (5,), (9,)]]
    told.asked.clear()
    same(enriching.over(told(keys=3), GIVEN)[0], wanted())
    assert sorted(map(len, told.asked)) == [1, 3]


def test_without_a_cache_every_batch_asks(enriching, told) -> None:
    step = told()
    for _ in range(2):
        enriching.over(step, GIVEN)
    assert len(told.asked) == 2


def test_answers_are_kept_those_without_rows_too(enriching, told) -> None:
    step = told(cache={})
    same(enriching.over(step, GIVEN, 1)[0], wanted())
    assert sorted(k for keys in told.asked for k in keys) == [(1,), (2,), (5,), (9,)]
    metrics = enriching.context.metrics
    assert (metrics["lookup_hits"], metrics["lookup_misses"], metrics["lookup_requests"]) == (3, 4, 4)


def test_an_answer_is_used_until_it_is_too_old(enriching, told) -> None:
    step = told(cache={"ttl": "10m", "miss_ttl": "1m"})
    enriching.over(step, GIVEN)
    told.asked.clear()
    enriching.clock.now += 59
    enriching.over(step, GIVEN)
    assert not told.asked
    enriching.clock.now += 1
    enriching.over(step, GIVEN)
    assert told.asked == [[(9,)]]
    enriching.clock.now += 539
    enriching.over(step, GIVEN)
    assert told.asked[1:] == [[(9,)]]
    enriching.clock.now += 1
    enriching.over(step, GIVEN)
    assert sorted(told.asked[2]) == [(1,), (2,), (5,)]


def test_a_clock_that_is_put_back_makes_answers_old(enriching, told) -> None:
    step = told(cache={"ttl": "10m"})
    enriching.over(step, GIVEN)
    enriching.clock.now -= 3600
    enriching.over(step, GIVEN)
    assert len(told.asked) == 2


def test_a_cache_smaller_than_a_batch_still_answers_it(enriching, told) -> None:
    step = told(cache={"rows": 1})
    for _ in range(2):
        same(enriching.over(step, GIVEN)[0], wanted())


@settings(max_examples=30)
@given(
    ops=st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 4)), max_size=16),
    ttl=st.sampled_from([None, 3.0]),
    rows=st.sampled_from([4, 7, 100]),
)
def test_a_cache_is_a_dictionary_that_forgets(ops, ttl, rows) -> None:
    """Whatever it still has is the newest answer, young enough; it is never larger than it may be."""
    cache, model, now = Cache(ttl=ttl, miss_ttl=ttl, rows=rows, bytes=1 << 30), {}, 0.0
    for serial, (keys, passed) in enumerate(ops):
        now += passed
        probe = pa.array(sorted(set(keys)), pa.int64())
        found, missing = cache.get(probe, now)
        for i, key in enumerate(probe.to_pylist()):
            hits = [(s, slots[i].as_py()) for s, slots in found if slots[i].is_valid]
            assert len(hits) == (0 if missing[i].as_py() else 1)
            for segment, slot in hits:
                start, count = segment.starts[slot].as_py(), segment.counts[slot].as_py()
                values = segment.rows.column("v").slice(start, count).to_pylist()
                assert (values, segment.at[slot].as_py()) == model[key]
                assert ttl is None or now - model[key][1] < ttl
        ask = probe.filter(missing)
        hold = [k for k in ask.to_pylist() for _ in range(k % 3)]
        rows_ = pa.record_batch({"v": [f"{k}/{serial}/{n}" for n, k in enumerate(hold)]}, schema=pa.schema([("v", pa.string())]))
        cache.put(answers(ask, pa.array(hold, pa.int64()), rows_, now))
        for key in ask.to_pylist():
            model[key] = ([f"{k}/{serial}/{n}" for n, k in enumerate(hold) if k == key], now)
        assert len(cache) <= rows


def test_what_was_used_last_stays(enriching) -> None:
    cache = Cache(ttl=None, miss_ttl=None, rows=8, bytes=1 << 30)
    none = pa.record_batch({"v": pa.array([], pa.string())})

    def put(*keys: int) -> None:
        cache.put(answers(pa.array(keys, pa.int64()), pa.array([], pa.int64()), none, 0.0))

    put(*range(8))
    cache.get(pa.array([1, 6], pa.int64()), 0.0)
    put(100)
    _, missing = cache.get(pa.array([1, 6, 100], pa.int64()), 0.0)
    assert not missing.true_count
    assert len(cache) == 6


def test_a_cache_is_bounded_in_bytes(enriching) -> None:
    cache = Cache(ttl=None, miss_ttl=None, rows=1 << 30, bytes=20_000)
    for i in range(50):
        rows = pa.record_batch({"v": ["x" * 1000]})
        cache.put(answers(pa.array([i], pa.int64()), pa.array([i], pa.int64()), rows, 0.0))
        assert cache.nbytes <= 20_000
    assert cache.evicted > 25
    _, missing = cache.get(pa.array([49], pa.int64()), 0.0)
    assert not missing.true_count


def test_threads_that_want_a_key_ask_for_it_once(enriching, told) -> None:
    """Three threads ask for the same keys while the first request is held up."""
    begun, go = threading.Event(), threading.Event()

    def act(_keys) -> None:
        begun.set()
        assert go.wait(30)

    step = told(act=act, cache={})
    out: list = []
    first = threading.Thread(target=lambda: out.append(enriching.over(step, GIVEN)[0]))
    first.start()
    assert begun.wait(30)
    keyed = step._keyed
    joined = threading.Event()
    real = keyed._landed

    def landed(*args):
        if threading.current_thread() is not first:
            waiting.append(1)
            if len(waiting) == 2:
                joined.set()
        return real(*args)

    waiting: list = []
    keyed._landed = landed
    others = [threading.Thread(target=lambda: out.append(enriching.over(step, GIVEN)[0])) for _ in range(2)]
    for thread in others:
        thread.start()
    assert joined.wait(30)
    go.set()
    for thread in (first, *others):
        thread.join(30)
    assert len(out) == 3
    for rows in out:
        same(rows, wanted())
    assert len(told.asked) == 1


def test_requests_are_made_at_once_and_no_more_than_allowed(enriching, told) -> None:
    meet = threading.Barrier(3)
    running, most, lock = [], [], threading.Lock()

    def act(_keys) -> None:
        with lock:
            running.append(1)
            most.append(len(running))
        meet.wait(30)
        with lock:
            running.pop()

    table = pa.table({"i": range(6), "k": pa.array(range(6), pa.int64())})
    step = told(act=act, keys=1, concurrency=3, on_many="first")
    rows, _ = enriching.over(step, table)
    same(rows, by_duckdb(table, LOOKUP, ON, SELECT, many="first"))
    assert max(most) == 3


def test_a_request_is_made_again(enriching, told) -> None:
    fails = [down, down, lambda _k: None]
    step = told(act=lambda keys: fails.pop(0)(keys))
    same(enriching.over(step, GIVEN)[0], wanted())
    assert len(told.asked) == 3
    assert enriching.context.metrics["lookup_retries"] == 2
    assert [m.closed for m in told.made] == [False, True, True, False], "one that failed is not used again"


def test_an_outage_ends_the_run_where_it_may_be_tried_again(enriching, told) -> None:
    with pytest.raises(RetriableError):
        enriching.over(told(act=down), GIVEN)
    assert len(told.asked) == 3


def test_an_error_that_will_stay_is_none_to_try_again(enriching, told) -> None:
    def refuse(_keys):
        raise CODES["config.invalid"].error("no such table")

    step = told(act=refuse, on_outage="keep")
    with pytest.raises(DataflareError, match="no such table"):
        enriching.over(step, GIVEN)
    assert len(told.asked) == 1


def test_an_outage_may_leave_the_columns_empty(enriching, told) -> None:
    rows, rejected = enriching.over(told(act=down, on_outage="keep", on_miss="drop"), GIVEN)
    same(rows, [{**row, "name": None} for row in GIVEN.to_pylist() if row["k"] is not None])
    assert not rejected


def test_rows_of_an_outage_may_be_given_up(enriching, told) -> None:
    answering = lambda keys: down() if 2 in keys.column(0).to_pylist() else None  # noqa: E731
    rows, rejected = enriching.over(told(act=answering, on_outage="dead_letter", keys=1), GIVEN)
    same(rows, [row for row in wanted() if row["k"] != 2])
    assert [(r.index, r.code, r.detail) for r in rejected] == [(i, "data.lookup-outage", {"policy": "dead_letter"}) for i in (1, 6)]
    assert len(told.asked) == 3 + 3, "what `process` found is not asked for again by `attempt`"


def test_what_is_known_but_old_may_be_used(enriching, told) -> None:
    act = [lambda _k: None]
    step = told(act=lambda keys: act[0](keys), cache={"ttl": "1m"}, on_outage="stale")
    enriching.over(step, GIVEN)
    enriching.clock.now += 3600
    act[0] = down
    same(enriching.over(step, GIVEN)[0], wanted())
    with pytest.raises(RetriableError):  # of this key nothing is known
        enriching.over(step, pa.table({"i": pa.array([0], pa.int64()), "k": pa.array([3], pa.int64())}))


def test_what_was_used_though_old_does_not_become_young_by_that(enriching, told) -> None:
    """The lookup answers again, and says something else by now: that is what counts, at once, and no longer than `ttl`."""
    now = [LOOKUP]
    step = told(act=lambda keys: act[0](keys), cache={"ttl": "1m"}, on_outage="stale", breaker={"failures": 1, "pause": "10s"})
    act = [lambda _k: None]
    enriching.over(step, GIVEN)
    enriching.clock.now += 3600
    act[0] = down
    for _ in range(3):
        same(enriching.over(step, GIVEN)[0], wanted())
        enriching.clock.now += 11
    act[0] = lambda _k: None
    now[0] = pa.table({"id": pa.array([1, 9], pa.int64()), "name": ["uno", "nueve"]})
    for made in told.made:
        made.table = now[0]
    told_table = by_duckdb(GIVEN, now[0], ON, SELECT)
    enriching.lookups["scripted"] = lambda: Scripted(now[0], told.asked)
    same(enriching.over(step, GIVEN)[0], told_table)
    count = len(told.asked)
    enriching.clock.now += 59
    same(enriching.over(step, GIVEN)[0], told_table)
    assert len(told.asked) == count


def test_who_does_not_answer_is_left_alone_for_a_while(enriching, told) -> None:
    act = [down]
    step = told(act=lambda keys: act[0](keys), on_outage="keep", retry={"attempts": 1}, breaker={"failures": 2, "pause": "30s"})
    for _ in range(4):
        enriching.over(step, GIVEN)
    assert len(told.asked) == 2
    enriching.clock.now += 30
    enriching.over(step, GIVEN)
    enriching.over(step, GIVEN)
    assert len(told.asked) == 3, "one request looks whether it answers again"
    act[0] = lambda _k: None
    enriching.clock.now += 30
    for _ in range(2):
        same(enriching.over(step, GIVEN)[0], wanted())
    assert len(told.asked) == 5


def test_a_request_that_takes_too_long_is_an_outage(enriching, told) -> None:
    go = threading.Event()
    step = told(act=lambda _k: go.wait(30), timeout="50ms", retry={"attempts": 2, "initial": "1ms"}, on_outage="keep")
    rows, _ = enriching.over(step, GIVEN)
    assert {row["name"] for row in rows} == {None}
    assert len(told.asked) == 2
    assert [m.cancelled for m in told.made[1:]] == [True, True]
    go.set()


def test_a_run_that_is_stopped_does_not_wait_for_an_answer(enriching, told) -> None:
    go = threading.Event()
    enriching.context.cancelled = lambda: bool(told.asked)  # type: ignore[method-assign]
    with pytest.raises(RetriableError):
        enriching.over(told(act=lambda _k: go.wait(30), timeout="30s"), GIVEN)
    go.set()


@pytest.mark.parametrize("policy", ["dead_letter", "fail", "drop", "keep"])
def test_a_miss_and_many_are_told_row_by_row(enriching, told, policy) -> None:
    table = pa.table({"i": pa.array(range(4), pa.int64()), "k": pa.array([1, 3, 9, None], pa.int64())})
    rows, rejected = enriching.over(told(on_miss=policy, on_many="fail"), table)
    missed = [] if policy in ("keep", "drop") else [(2, "data.lookup-miss"), (3, "data.lookup-miss")]
    assert [(r.index, r.code) for r in rejected] == [(1, "data.lookup-many"), *missed]
    kept = [{"i": 2, "k": 9, "name": None}, {"i": 3, "k": None, "name": None}] if policy == "keep" else []
    same(rows, [{"i": 0, "k": 1, "name": "one"}, *kept])


def test_effort_is_shared_between_requests_by_key(enriching) -> None:
    asker = asking.Asker(lambda: None, asking.Effort(1, 1, 0, 0, 1, 0, 100, 4), lambda: 0.0, lambda: False, one_by_one=True)
    assert [asker._chunk(n) for n in (1, 4, 5, 40, 4_000)] == [1, 1, 2, 10, 100]
