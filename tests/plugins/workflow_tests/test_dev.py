"""`dev` and `test --watch`: what they say first, and again once a file has changed. In a process that is told to stop as a person would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from dataflare_plugins.workflow_tests.watching import SETTLES, made_of, seen, wait_for_change

FLOW = {
    "sources": {"g": {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT"}}}},
    "destinations": {"o": {"use": "csv", "with": {"path": "o.csv"}}},
}
TEST = {"tests": [{"name": "one", "given": {"g": [{"id": 1}]}, "expect": {"o": [{"id": 1}]}}]}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")


class Going:
    """A command that goes on until it is stopped; its output is read line by line."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "dataflare", *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._new = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._new:
                self.lines.append(line.rstrip())
                self._new.notify_all()

    def turn(self, number: int) -> list[str]:
        """Return what it said in its so-many-th turn, once it waits again."""
        with self._new:
            assert self._new.wait_for(lambda: self._turns() >= number, 120), self.lines
            ends = [i for i, line in enumerate(self.lines) if line.startswith("waiting for a change")]
            return self.lines[ends[number - 2] + 1 if number > 1 else 0 : ends[number - 1]]

    def _turns(self) -> int:
        return sum(line.startswith("waiting for a change") for line in self.lines)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.csv").write_text("id\n7\n")
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(FLOW))
    (tmp_path / "w.test.yaml").write_text(yaml.safe_dump(TEST))
    return tmp_path


def put(file: Path, text: str) -> None:
    """Write a file at one moment, whenever the machine stops this process."""
    beside = file.with_name("beside")
    beside.write_text(text)
    beside.replace(file)


def test_every_change_is_checked_tested_and_shown(folder: Path) -> None:
    going = Going(folder, "dev", "w.yaml")
    try:
        first = going.turn(1)
        assert first[0] == "w.yaml: valid"
        assert "1 passed, 0 failed" in first
        assert first[-3:] == ["g:", "id", "7"]
        put(folder / "in.csv", "id\n8\n9\n")
        second = going.turn(2)
        assert "in.csv changed" in second
        assert second[-3:] == ["id", "8", "9"]
        put(folder / "w.test.yaml", yaml.safe_dump(TEST).replace("id: 1", "id: 5", 1))
        assert "0 passed, 1 failed" in going.turn(3)
        put(folder / "w.yaml", yaml.safe_dump(FLOW).replace("path: in.csv", "pth: in.csv"))
        assert any("pth" in line for line in going.turn(4))
        put(folder / "w.yaml", yaml.safe_dump(FLOW))
        assert "w.yaml: valid" in going.turn(5)
        assert going.stop() == 0
    finally:
        going.close()
    assert not (folder / "o.csv").exists(), "nothing is written"


def test_tests_run_again_at_a_change(folder: Path) -> None:
    going = Going(folder, "test", "--watch", "w.yaml")
    try:
        assert "1 passed, 0 failed" in going.turn(1)
        put(folder / "w.test.yaml", yaml.safe_dump(TEST).replace("id: 1", "id: 5", 1))
        assert "0 passed, 1 failed" in going.turn(2)
        assert going.stop() == 0
    finally:
        going.close()


def test_a_file_that_comes_changes_or_goes_is_a_change(tmp_path: Path) -> None:
    file = tmp_path / "a"
    before = seen([file])
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        if not looks:
            file.write_text("x")
        looks.append(seconds)

    assert wait_for_change(lambda: [file], before, sleep) == [file]
    before = seen([file])
    file.unlink()
    assert wait_for_change(lambda: [file], before, looks.append) == [file]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("before")
    before = seen([file])
    writes = ["", "half", "half and the other half"]

    def sleep(_: float) -> None:
        if writes:
            file.write_text(writes.pop(0))

    assert wait_for_change(lambda: [file], before, sleep) == [file]
    assert file.read_text() == "half and the other half"
    assert not writes


def test_a_file_that_never_rests_is_a_change_too(tmp_path: Path) -> None:
    file = tmp_path / "log"
    before = seen([file])
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        file.write_text("x" * len(looks))

    assert wait_for_change(lambda: [file], before, sleep) == [file]
    assert SETTLES < len(looks) < 2 * SETTLES


def test_the_files_of_a_workflow(folder: Path) -> None:
    (folder / "more").mkdir()
    for name in ("more/1.csv", "more/2.csv", "rows.csv", "other.csv"):
        (folder / name).write_text("id\n")
    (folder / "w.test.yaml").write_text(yaml.safe_dump({"tests": [{"name": "x", "given": {"g": {"file": "rows.csv"}}}]}))
    document = {"sources": {"a": {"with": {"path": "more/*.csv"}}, "b": {"with": {"path": "in.csv", "url": "http://x/y"}}}}
    found = made_of(folder / "w.yaml", document, [folder / "w.test.yaml"])
    assert {str(p.relative_to(folder)) for p in found} == {"w.yaml", "w.test.yaml", "in.csv", "more/1.csv", "more/2.csv", "rows.csv"}
