"""Files that grow, are rotated, cut, removed and made anew, also while nobody looks: every line once, in its order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.plugins.file_tail.driver import Tail, append, lines

from dataflare_sdk import DataflareError


def test_a_file_that_grows(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    tail = Tail(tmp_path)
    assert tail.quiet().values == []
    append(log, lines(range(3)))
    tail.until(3)
    append(log, b'{"n": 3')
    tail.quiet()
    assert tail.values == [0, 1, 2], "half a line was taken for a line"
    append(log, b"}\n" + lines([4]))
    assert tail.until(5).values == [0, 1, 2, 3, 4]
    assert {b.partition for b in tail.batches[1:]} == {"app.log"}
    tail.close()


def test_renamed_and_made_anew(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, rows=2)
    tail.next(), tail.next()
    old = log.open("ab")
    log.rename(tmp_path / "app.log.1")
    append(log, lines(range(10, 13)))
    old.write(lines([5]))  # the writer has not heard of it yet
    old.flush()
    tail.until(9)
    assert tail.values == [*range(6), 10, 11, 12]
    old.write(lines([6]))
    old.close()
    assert tail.until(10).values[-1] == 6, "a late line of the old file was not read"
    assert {b.partition for b in tail.batches[1:]} == {"app.log"}
    tail.close()


def test_the_rest_of_a_rotated_file_without_a_line_feed(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines([0]) + b'{"n": 1}')
    tail = Tail(tmp_path)
    tail.until(1)
    log.rename(tmp_path / "app.log.1")
    append(log, lines([2]))
    assert tail.until(3).values == [0, 1, 2], "the last line of a file that nobody writes to any more ends with it"
    tail.close()


def test_cut_after_it_was_copied(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, rows=2)
    tail.next(), tail.next()
    shutil.copyfile(log, tmp_path / "app.log.1")
    log.write_bytes(b"")
    append(log, lines(range(10, 12)))
    assert tail.until(7).values == [*range(5), 10, 11]
    append(log, lines([12]))
    assert tail.until(8).values[-1] == 12
    tail.close()


def test_cut_and_longer_than_before_when_it_is_looked_at(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path)
    tail.until(5)
    shutil.copyfile(log, tmp_path / "app.log.1")
    with log.open("r+b") as file:
        file.truncate()
        file.write(lines(range(100, 120)))
    assert tail.until(25).values == [*range(5), *range(100, 120)]
    tail.close()


@pytest.mark.parametrize("glob", ["app.log*", "*"])
def test_a_copy_that_the_pattern_finds_is_no_new_file(glob: str, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, path=glob, rows=2)
    tail.next(), tail.next()
    shutil.copyfile(log, tmp_path / "app.log.1")
    tail.reader.look()
    log.write_bytes(b"")
    append(log, lines(range(10, 12)))
    assert tail.until(7).quiet().values == [*range(5), 10, 11]
    tail.close()


def test_a_file_that_begins_like_another_is_one_of_its_own(tmp_path: Path) -> None:
    for name in ("a.log", "b.log"):
        append(tmp_path / name, lines(range(300)))
    tail = Tail(tmp_path, path="*.log", rows=10_000)
    tail.quiet()
    append(tmp_path / "b.log", lines([300]))
    append(tmp_path / "a.log", lines([400]))
    assert sorted(tail.until(602).values) == sorted([*range(300), *range(300), 300, 400])
    tail.close()


def test_renamed_within_the_pattern_it_is_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(3)))
    tail = Tail(tmp_path, path="app.log*")
    tail.until(3)
    log.rename(tmp_path / "app.log.1")
    append(log, lines(range(3, 6)))
    tail.until(6)
    (tmp_path / "app.log.1").rename(tmp_path / "app.log.2")
    log.rename(tmp_path / "app.log.1")
    append(log, lines([6]))
    assert tail.until(7).quiet().values == list(range(7))
    tail.close()
    again = Tail(tmp_path, offset=tail.offset, path="app.log*")
    append(log, lines([7]))
    assert again.until(1).quiet().values == [7]
    again.close()


def test_removed_and_made_anew(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    for turn in range(3):
        append(log, lines([turn * 2, turn * 2 + 1]))
        if turn == 0:
            tail = Tail(tmp_path)
        tail.until(turn * 2 + 2)
        log.unlink()
    assert tail.quiet(0.5).values == list(range(6))
    append(log, lines([6]))
    tail.until(7)
    tail.source.ack(tail.part, tail.offset)
    append(log, lines([7]))
    tail.until(8)
    assert len(tail.offset["files"]) <= 2, "files that are gone are kept for ever"
    tail.close()


def test_removed_before_it_was_read_while_it_is_held(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, rows=2)
    tail.next(), tail.next()
    log.unlink()
    assert tail.until(5).quiet().values == list(range(5))
    tail.close()


def test_what_happened_while_nobody_looked(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, rows=2)
    tail.next(), tail.next()
    tail.close()
    append(log, lines([5]))
    log.rename(tmp_path / "app.log.1")
    append(log, lines([6, 7]))
    (tmp_path / "app.log.1").rename(tmp_path / "app.log.2")
    log.rename(tmp_path / "app.log.1")
    append(log, lines([8]))
    again = Tail(tmp_path, offset=tail.offset)
    assert [*tail.values, *again.until(7).values] == list(range(9))
    again.quiet(0.5)
    again.close()
    last = Tail(tmp_path, offset=again.offset)
    append(log, lines([9]))
    assert last.until(1).quiet().values == [9]
    last.close()


def test_cut_after_it_was_copied_while_nobody_looked(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path, rows=2)
    tail.next(), tail.next()
    tail.close()
    append(log, lines([5]))
    shutil.copyfile(log, tmp_path / "app.log.1")
    log.write_bytes(lines([6, 7]))
    again = Tail(tmp_path, offset=tail.offset)
    assert [*tail.values, *again.until(6).values] == list(range(8))
    again.close()


@pytest.mark.parametrize("copied", [0, 10, None], ids=["begun", "half", "whole"])
def test_begun_between_a_copy_and_its_cut(copied: int | None, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path)
    tail.until(5)
    tail.close()
    log.rename(tmp_path / "app.log.1")
    append(log, lines(range(5, 8)))
    whole = log.read_bytes()
    (tmp_path / "app.log.2").write_bytes(whole[:copied])
    again = Tail(tmp_path, offset=tail.offset, rows=1)
    again.until(1)
    (tmp_path / "app.log.2").write_bytes(whole)
    log.write_bytes(b"")
    append(log, lines([8]))
    assert again.until(4).quiet().values == [5, 6, 7, 8]
    again.close()


def test_half_a_line_is_no_way_to_tell_files_apart(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines([0]))
    tail = Tail(tmp_path)
    tail.until(1)
    log.rename(tmp_path / "app.log.1")
    append(log, b'{"n"')
    tail.quiet()
    tail.reader.look()
    tail.close()
    append(log, b": 1}\n")
    shutil.copyfile(log, tmp_path / "app.log.2")
    log.write_bytes(lines([2]))
    again = Tail(tmp_path, offset=tail.reader._follower.offset())
    assert again.until(2).quiet().values == [1, 2]
    again.close()


def test_an_inode_that_was_given_to_another_file(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path)
    tail.until(5)
    tail.close()
    log.write_bytes(lines(range(50, 70)))  # as a new file with the number of the old one
    again = Tail(tmp_path, offset=tail.offset)
    assert again.until(20).values == list(range(50, 70))
    again.close()


def test_files_that_appear_later_and_folders_too(tmp_path: Path) -> None:
    tail = Tail(tmp_path, path="logs/**/*.log")
    tail.quiet()
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    append(tmp_path / "logs" / "a.log", lines([1]))
    append(tmp_path / "logs" / "deep" / "b.log", lines([2]))
    assert sorted(tail.until(2).values) == [1, 2]
    assert {b.partition for b in tail.batches if b.data.num_rows} == {"logs/a.log", "logs/deep/b.log"}
    assert set(tail.reader.partitions) == {"logs/a.log", "logs/deep/b.log"}
    tail.close()


def test_a_busy_file_does_not_keep_others_waiting(tmp_path: Path) -> None:
    append(tmp_path / "a.log", lines(range(1000)))
    append(tmp_path / "b.log", lines([5000]))
    tail = Tail(tmp_path, path="*.log", rows=10)
    tail.until(30)
    assert 5000 in tail.values
    tail.close()


def test_latest(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(5)) + b'{"n": 5')
    tail = Tail(tmp_path, start="latest")
    assert tail.quiet().values == []
    tail.close()
    append(log, b"}\n" + lines([6]))
    append(tmp_path / "app.log.9", b"other\n")
    again = Tail(tmp_path, offset=tail.offset, start="latest")
    assert again.until(2).values == [5, 6], "lines that came while nobody looked were passed over"
    again.close()


def test_an_epoch_is_read_again_exactly(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(20)))
    append(tmp_path / "b.log", lines(range(100, 110)))
    tail = Tail(tmp_path, path="*.log", rows=4)
    tail.until(30)
    marks = [None, *[b.offset for b in tail.batches]]
    log.rename(tmp_path / "app.log.1")
    append(log, lines(range(500, 530)))
    for i, start in enumerate(marks):
        for j in range(max(i, 1), len(marks)):
            replay = Tail(tmp_path, offset=start, until=marks[j], path="*.log", rows=3).whole()
            wanted = [v for b in tail.batches[i:j] for v in b.data.column(0).to_pylist()]
            assert sorted(replay.values) == sorted(wanted)
            assert {k: [v for v in replay.values if (v >= 100) is k] for k in (True, False)} == {
                k: [v for v in wanted if (v >= 100) is k] for k in (True, False)
            }
            assert replay.offset == marks[j]
            replay.close()
    tail.close()


def test_an_epoch_whose_file_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(20)))
    tail = Tail(tmp_path)
    tail.until(20)
    log.unlink()
    replay = Tail(tmp_path, until=tail.offset)
    with pytest.raises(DataflareError) as found:
        replay.whole()
    assert (found.value.code, found.value.exit_code) == ("file-tail.gone", 4)
    assert "app.log" in str(found.value)
    assert found.value.problems[0].fix
    replay.close()
    replay = Tail(tmp_path, until=tail.offset, on_lost="skip").whole()
    assert (replay.values, replay.offset) == ([], tail.offset)
    assert replay.ctx.metrics["lost_bytes"] == len(lines(range(20)))
    replay.close()
    tail.close()


def test_unread_lines_that_are_cut_away_without_a_copy(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(range(20)))
    for policy in ("fail", "skip"):
        tail = Tail(tmp_path, rows=5, on_lost=policy)
        tail.next(), tail.next()
        log.write_bytes(b"")
        if policy == "fail":
            with pytest.raises(DataflareError, match=r"file-tail\.gone"):
                tail.quiet()
        else:
            append(log, lines([7]))
            assert tail.until(6).values == [0, 1, 2, 3, 4, 7]
            assert tail.ctx.metrics["lost_bytes"] == len(lines(range(5, 20)))
        tail.close()
        log.write_bytes(lines(range(20)))


def test_once_stops_where_the_files_ended_when_it_began(tmp_path: Path) -> None:
    append(tmp_path / "a.log", lines(range(5)) + b'{"n": 9')
    append(tmp_path / "b.log", lines([10, 11]))
    probe = Tail(tmp_path, path="*.log")
    position = probe.source.position(probe.part, None)
    probe.close()
    append(tmp_path / "a.log", b"9}\n" + lines([98]))
    append(tmp_path / "c.log", lines([97]))
    (tmp_path / "b.log").rename(tmp_path / "b.old")
    tail = Tail(tmp_path, path="*.log", until=position, rows=2).whole()
    assert sorted(tail.values) == [0, 1, 2, 3, 4]
    tail.close()
    rest = Tail(tmp_path, path="*.log", offset=tail.offset)
    assert sorted(rest.until(3).quiet().values) == [97, 98, 99]
    rest.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_cut_after_it_was_copied_while_a_reader_waited_for_more(restarted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lines are waited for before they are given; the file that is looked at meanwhile may become another one."""
    log = tmp_path / "app.log"
    append(log, lines(range(5)))
    tail = Tail(tmp_path)
    tail.until(5)
    tail.ctx.linger = 60.0
    append(log, lines(range(5, 8)))
    wait = tail.reader._wake.wait

    def rotated(seconds: float) -> bool:
        if log.stat().st_size > len(lines(range(6))) and tail.reader._follower.pieces["0"].unread:
            shutil.copyfile(log, tmp_path / "app.log.1")
            log.write_bytes(lines([8]))
        return wait(min(seconds, 0.01))

    monkeypatch.setattr(tail.reader._wake, "wait", rotated)
    tail.until(8)
    if restarted:
        tail.close()
        before, tail = tail, Tail(tmp_path, offset=tail.offset)
        tail.batches += before.batches
    assert tail.until(9).quiet().values == list(range(9))
    tail.close()
