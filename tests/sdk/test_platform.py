"""What differs between operating systems: renames that are whole or not at all, locks that end with a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataflare_sdk import platform

LOCK = """
import sys
from dataflare_sdk import platform
file = open(sys.argv[1], "a+")
print(platform.lock_file(file), flush=True)
sys.stdin.read()
"""
KILLED = "from dataflare_sdk import platform\nimport atexit\natexit.register(print, 'handler')\nplatform.kill_self()"

PEAK = """
from dataflare_sdk import platform
before = platform.peak_memory()
held = bytearray(64 << 20)
held[::4096] = b"x" * len(held[::4096])
del held
print(before, platform.peak_memory())
"""


def locker(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_lock_is_held_by_one_process_and_freed_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locker(path) as holder, path.open("a+") as mine:
        assert said(holder) == "True"
        assert not platform.lock_file(mine)
        holder.kill()
        holder.wait()
        assert platform.lock_file(mine)
        with locker(path) as late:
            assert said(late) == "False"
            late.kill()
    with path.open("a+") as again:
        assert platform.lock_file(again), "closing the file did not free the lock"


def test_two_files_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a+") as one, path.open("a+") as two:
        assert platform.lock_file(one)
        assert not platform.lock_file(two)


def test_replace_puts_the_new_in_the_place_of_the_old(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    platform.fsync_file(new)
    platform.replace(new, old)
    assert old.read_text() == "new"
    assert not new.exists()


def test_a_reader_that_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    with old.open() as reader:
        platform.replace(new, old)
        assert reader.read() == "old"


def test_replace_without_a_source_leaves_the_target(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    with pytest.raises(FileNotFoundError):
        platform.replace(tmp_path / "none", target)
    assert target.read_text() == "kept"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges names")
@pytest.mark.parametrize("kind", ["files", "folders"])
def test_exchange_swaps_both_names(kind: str, tmp_path: Path) -> None:
    for name in ("left", "right"):
        if kind == "folders":
            (tmp_path / name).mkdir()
            (tmp_path / name / "content").write_text(name)
        else:
            (tmp_path / name).write_text(name)
    if not platform.exchange(tmp_path / "left", tmp_path / "right"):
        pytest.skip("this file system does not exchange names")
    content = {name: tmp_path / name / "content" if kind == "folders" else tmp_path / name for name in ("left", "right")}
    assert content["left"].read_text() == "right"
    assert content["right"].read_text() == "left"


def test_exchange_with_nothing_says_so_and_changes_nothing(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.write_text("left")
    assert not platform.exchange(left, tmp_path / "none")
    assert left.read_text() == "left"
    assert os.listdir(tmp_path) == ["left"]


def test_a_killed_process_runs_no_handler() -> None:
    found = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == (-9 if platform.POSIX else 137)


def test_peak_memory_counts_what_was_once_held() -> None:
    found = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert 1 << 20 < before < after
    assert after - before >= 60 << 20
