"""The durable log: what was appended is there after a crash, in order, once; damage is told and costs only itself."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import DataflareError
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages


def made(*texts, **columns):
    return Messages([t if isinstance(t, bytes) else t.encode() for t in texts], range(len(texts)), **columns)


def drained(log, start=None, rows=1000):
    """Return every message from a position on, and the numbers they have."""
    position, found, numbers = log.start if start is None else start, [], []
    while (page := log.read(position, rows, 1 << 20)) is not None:
        found += page.messages.payloads.to_pylist()
        numbers += list(page.messages.positions)
        position = page.next
    return found, numbers


class Told:
    def __init__(self):
        self.errors, self.counts = [], {}

    def error(self, text):
        self.errors.append(text)

    def count(self, name, value):
        self.counts[name] = self.counts.get(name, 0) + value


def test_what_was_appended_is_read_in_order_with_all_that_belongs_to_it(tmp_path):
    log = DurableLog(tmp_path)
    assert log.read(0, 10, 1 << 20) is None
    end = log.append(made("a", "b", topic=["x", "y"], key=[b"k", None], time=[5, 6], headers=[{"h": "1"}, None]), [b"n", None])
    assert end == log.end == 2
    assert log.append(made("c", topic="z", time=7)) == 3
    page = log.read(0, 10, 1 << 20)
    assert page.messages.payloads.to_pylist() == [b"a", b"b", b"c"]
    assert page.messages.topic.to_pylist() == ["x", "y", "z"]
    assert page.messages.key.to_pylist() == [b"k", None, None]
    assert page.messages.time.to_pylist() == [5, 6, 7]
    assert page.messages.headers.to_pylist() == [[("h", "1")], None, None]
    assert page.notes.to_pylist() == [b"n", None, None]
    assert (list(page.messages.positions), page.next) == ([0, 1, 2], 3)
    assert log.read(1, 1, 1 << 20).messages.payloads.to_pylist() == [b"b"]
    log.close()


@given(
    pages=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=12),
    rows=st.integers(1, 5),
    trims=st.lists(st.integers(0, 60), max_size=4),
    segment=st.sampled_from([1, 300, 1 << 20]),
)
@settings(max_examples=20)
def test_any_appends_reads_trims_and_reopenings_give_the_list_that_was_appended(pages, rows, trims, segment):
    with tempfile.TemporaryDirectory() as folder:
        model, trimmed = [], 0
        log = DurableLog(Path(folder), segment_bytes=segment)
        for i, page in enumerate(pages):
            log.append(made(*page))
            model += page
            if i < len(trims):
                log.trim(trims[i])
                trimmed = max(trimmed, min(trims[i], len(model)))
            if i % 3 == 2:
                log.close()
                log = DurableLog(Path(folder), segment_bytes=segment)
            assert (log.start, log.end) == (trimmed, len(model))
            assert drained(log, rows=rows) == (model[trimmed:], list(range(trimmed, len(model))))
        log.close()


@given(cut=st.integers(1, 400))
@settings(max_examples=20)
def test_a_torn_tail_is_cut_and_costs_only_what_nobody_was_told_of(cut):
    with tempfile.TemporaryDirectory() as folder:
        told = Told()
        log = DurableLog(Path(folder))
        for text in ("one", "two"):
            log.append(made(text))
        whole = log.size
        log.append(made("three"))
        log.close()
        path = next(Path(folder).glob("*.log"))
        os.truncate(path, max(whole, path.stat().st_size - cut))
        log = DurableLog(Path(folder), log=told, count=told.count)
        assert log.end == 2 or path.stat().st_size > whole
        assert drained(log)[0] == [b"one", b"two"]
        log.append(made("four"))
        log.close()
        log = DurableLog(Path(folder))
        assert drained(log) == ([b"one", b"two", b"four"], [0, 1, 2])
        assert not told.errors
        log.close()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_frame_costs_its_own_messages_and_is_told(tmp_path, which):
    told = Told()
    log = DurableLog(tmp_path)
    ends = []
    for texts in (("a", "b"), ("c", "d"), ("e", "f")):
        log.append(made(*texts))
        ends.append(log.size)
    log.close()
    path = next(tmp_path.glob("*.log"))
    raw = bytearray(path.read_bytes())
    raw[ends[which] - 8] ^= 1
    path.write_bytes(bytes(raw))
    log = DurableLog(tmp_path, log=told, count=told.count)
    log.advance(6)
    left = [t for i, pair in enumerate(((b"a", b"b"), (b"c", b"d"), (b"e", b"f"))) for t in pair if i != which]
    numbers = [n for n in range(6) if n // 2 != which]
    assert drained(log) == (left, numbers)
    assert told.counts["log_segments_damaged"] == 1
    log.append(made("g"))
    assert drained(log) == ([*left, b"g"], [*numbers, 6])
    assert told.counts["log_messages_lost"] >= 2
    aside = list((tmp_path / "damaged").iterdir())
    assert [p.read_bytes() for p in aside] == [bytes(raw)]
    log.close()
    again = Told()
    DurableLog(tmp_path, log=again).close()
    assert not again.errors


def test_a_whole_missing_segment_is_told(tmp_path):
    told = Told()
    log = DurableLog(tmp_path, segment_bytes=1)
    for text in "abc":
        log.append(made(text))
    log.close()
    sorted(tmp_path.glob("*.log"))[1].unlink()
    log = DurableLog(tmp_path, log=told, count=told.count)
    assert drained(log) == ([b"a", b"c"], [0, 2])
    assert told.counts == {"log_messages_lost": 1}
    log.close()


def test_it_blocks_when_full_until_something_is_trimmed(tmp_path):
    log = DurableLog(tmp_path, max_bytes=4000)
    log.append(made("x" * 1000))
    log.append(made("y" * 1000))
    assert not log.wait_for_room(2000, time.monotonic())
    appended = threading.Event()

    def more():
        log.append(made("z" * 1500))
        appended.set()

    thread = threading.Thread(target=more)
    thread.start()
    assert not appended.wait(0.05)
    log.trim(1)
    log.trim(2)
    thread.join(60)
    assert appended.is_set()
    assert drained(log) == ([b"z" * 1500], [2])
    with pytest.raises(DataflareError) as error:
        log.append(made("w" * 5000))
    assert error.value.code == "inflow.too-large"
    log.close()


def test_who_waits_is_told_when_it_is_closed(tmp_path):
    log = DurableLog(tmp_path, max_bytes=2000)
    log.append(made("x" * 1200))
    codes = []

    def more():
        try:
            log.append(made("y" * 1200))
        except DataflareError as error:
            codes.append(error.code)

    thread = threading.Thread(target=more)
    thread.start()
    log.close()
    thread.join(60)
    assert codes == ["inflow.closed"]


def test_many_who_append_share_few_fsyncs_and_none_is_lost(tmp_path, monkeypatch):
    calls, real = [], os.fsync

    def slow(handle):
        calls.extend([handle] if stat.S_ISREG(os.fstat(handle).st_mode) else [])
        time.sleep(0.002)
        real(handle)

    monkeypatch.setattr(os, "fsync", slow)
    log = DurableLog(tmp_path)

    def append(number):
        for i in range(25):
            log.append(made(f"{number}-{i}"))

    threads = [threading.Thread(target=append, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, numbers = drained(log)
    assert numbers == list(range(200))
    assert sorted(found) == sorted(f"{n}-{i}".encode() for n in range(8) for i in range(25))
    for n in range(8):
        mine = [t for t in found if t.startswith(f"{n}-".encode())]
        assert mine == [f"{n}-{i}".encode() for i in range(25)]
    assert 0 < len(calls) < 200
    log.close()


def test_a_process_that_wakes_up_behind_a_newer_one_is_told_and_spoils_nothing(tmp_path):
    older = DurableLog(tmp_path / "1")
    older.append(made("a"))
    (tmp_path / "1").rename(tmp_path / "2")  # as a newer run takes a folder away
    newer = DurableLog(tmp_path / "2")
    newer.append(made("b"))
    with pytest.raises(DataflareError) as error:
        older.append(made("x"))
    assert error.value.code == "state.fenced"
    older.close()
    newer.append(made("c"))
    newer.close()
    again = DurableLog(tmp_path / "2")
    assert drained(again)[0][0] == b"a"
    assert [t for t in drained(again)[0] if t != b"x"] == [b"a", b"b", b"c"]
    again.close()


def test_what_was_read_and_is_trimmed_is_not_read_again_silently(tmp_path):
    log = DurableLog(tmp_path)
    log.append(made("a", "b", "c"))
    log.trim(2)
    with pytest.raises(DataflareError) as error:
        log.resume(1)
    assert error.value.code == "inflow.trimmed"
    log.resume(7)  # the log is older than the state: numbers are not given twice
    assert log.append(made("d")) == 8
    log.close()


WRITER = """
import sys
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages
from pathlib import Path
log = DurableLog(Path(sys.argv[1]), segment_bytes=2000)
i = log.end
while True:
    n = 1 + i % 3
    log.append(Messages([b"%d" % j for j in range(i, i + n)], range(n)))
    i += n
    print(i, flush=True)
"""


def test_kill_9_loses_nothing_that_append_returned_for(tmp_path):
    promised = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
            for _ in range(40):
                promised = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split("\n")
        promised = max([promised, *(int(t) for t in rest[:-1] if t)])
        log = DurableLog(tmp_path, segment_bytes=2000)
        assert log.end >= promised
        found, numbers = drained(log, 0)
        assert found == [b"%d" % i for i in range(log.end)]
        assert numbers == list(range(log.end))
        log.close()


@pytest.mark.parametrize("point", ["inflow.log.written", "inflow.log.durable"])
def test_the_failpoints_lie_around_the_fsync(tmp_path, point):
    hits = tmp_path / "hits"
    environment = {**os.environ, "DATAFLARE_FAILPOINT": f"{point}:3", "DATAFLARE_FAILPOINT_HITS": str(hits)}
    folder = tmp_path / "log"
    ended = subprocess.run([sys.executable, "-c", WRITER, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    promised = int(ended.stdout.split()[-1])
    log = DurableLog(folder)
    assert log.end >= promised
    assert drained(log)[0] == [b"%d" % i for i in range(log.end)]
    log.close()


FULL_DISK = """
import resource, sys
from dataflare_sdk import DataflareError
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages
from pathlib import Path
log = DurableLog(Path(sys.argv[1]))
log.append(Messages([b"first"], [0]))
# As on a disk with little room left, the next write is done in part, and only the one behind it fails.
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    print("taken", log.append(Messages([b"x" * 50_000], [0])))
except DataflareError as error:
    print(error.code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_write_that_is_done_in_part_is_promised_to_nobody(tmp_path):
    said = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert not said.startswith("taken"), "it was told that the message is on the disk"
    told = Told()
    log = DurableLog(tmp_path, log=told, count=told.count)
    assert (drained(log, 0)[0], told.counts) == ([b"first"], {})
    assert log.append(made("second")) == 2
    assert drained(log, 0)[0] == [b"first", b"second"]
    log.close()
