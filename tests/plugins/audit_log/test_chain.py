"""The audit log: whole under many writers, kills and turns to new files; any change to it is found."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime
from dataflare_plugins.audit_log.chain import AuditLog, _digest

WRITER = """
import sys
from pathlib import Path
from dataflare_plugins.audit_log.chain import AuditLog
log = AuditLog(Path(sys.argv[1]), rotate_at=3000)
for i in range(int(sys.argv[3])):
    log.append({"time": 0.0, "plugin": sys.argv[2], "action": f"use {i}", "allowed": True})
    print(i, flush=True)
"""


def written(folder: Path, count: int, rotate_at: int = 1 << 20, plugin: str = "acme") -> AuditLog:
    log = AuditLog(folder, rotate_at)
    for i in range(count):
        log.append({"time": float(i), "plugin": plugin, "action": f"use {i}", "allowed": i % 2 == 0})
    return log


def test_records_come_back_in_order_over_many_files(tmp_path: Path) -> None:
    log = written(tmp_path, 30, rotate_at=1000)
    assert [r["n"] for r in log.records()] == list(range(1, 31))
    assert [p.name for p in log.files()][:2] == ["log-000001.jsonl", "log-000002.jsonl"]
    assert log.verify() == []
    assert AuditLog(tmp_path / "none").verify() == []


def test_a_log_that_was_just_turned_over_goes_on(tmp_path: Path) -> None:
    log = written(tmp_path, 3, rotate_at=1)
    assert not (tmp_path / "log.jsonl").exists()
    assert len(log.files()) == 3
    written(tmp_path, 1)
    assert log.verify() == []
    assert [r["n"] for r in log.records()] == [1, 2, 3, 4]


def changed(record: Callable[[dict[str, object]], object]) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        made = json.loads(lines[5])
        record(made)
        return [*lines[:5], json.dumps(made, sort_keys=True).encode() + b"\n", *lines[6:]]

    return change


def rehashed(made: dict[str, object]) -> None:
    made["allowed"] = not made["allowed"]
    made["hash"] = _digest({k: v for k, v in made.items() if k != "hash"})


@pytest.mark.parametrize(
    "change",
    [
        changed(lambda r: r.update(allowed=not r["allowed"])),
        changed(lambda r: r.update(time=1.5)),
        changed(lambda r: r.update(extra=1)),
        changed(lambda r: r.pop("plugin")),
        changed(rehashed),
        lambda lines: lines[:5] + lines[6:],
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: [*lines[:-1], lines[-1][:-1]],
        lambda lines: [],
        lambda lines: [*lines[:5], lines[5], *lines[5:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]],
        lambda lines: [*lines, b'{"n": 21, "hash": "x"}\n'],
        lambda lines: [*lines[:5], b"\n", *lines[5:]],
    ],
)
def test_what_was_changed_removed_or_inserted_is_found(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    log = written(tmp_path, 20)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert log.verify() != []


def test_files_that_are_gone_are_found(tmp_path: Path) -> None:
    log = written(tmp_path / "whole", 30, rotate_at=1000)
    for name in (*(p.name for p in log.files()), "head.json"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / name).unlink()
        assert AuditLog(tmp_path / name).verify() != [], name


def test_a_log_written_anew_is_found_by_a_hash_kept_elsewhere(tmp_path: Path) -> None:
    head = written(tmp_path / "a", 5).head()
    assert head is not None
    anew = written(tmp_path / "b", 9, plugin="somebody else")
    assert anew.verify() == []
    assert [f.what for f in anew.verify(expect=head["hash"])] == ["the record that is expected is not there"]
    longer = written(tmp_path / "a", 5)
    assert longer.verify(expect=head["hash"]) == []
    assert AuditLog(tmp_path / "none").verify(expect=head["hash"]) != []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    if not folder.exists():
        written(folder, 6, rotate_at=700)
    copy = tmp_path_factory.mktemp("copy") / "log"
    shutil.copytree(folder, copy)
    path = data.draw(st.sampled_from(AuditLog(copy).files()))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    # White space between the parts of a line says nothing; everything else does.
    assert AuditLog(copy).verify() != [] or whole[place : place + 1] == b" "


def test_many_writers(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, f"p{n}", "40"], stdout=subprocess.DEVNULL) for n in range(3)]
    assert [r.wait() for r in running] == [0, 0, 0]
    log = AuditLog(tmp_path)
    assert log.verify() == []
    records = list(log.records())
    for n in range(3):
        assert [r["action"] for r in records if r["plugin"] == f"p{n}"] == [f"use {i}" for i in range(40)]
    assert len(log.files()) > 5


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    """Seeded kills at random moments; every record that was told to be written is there."""
    chance = random.Random(7)
    told = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, "p", "100000"], stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            running.stdout.readline()
            time.sleep(chance.random() / 20)
            running.send_signal(signal.SIGKILL)
            told += 1 + running.stdout.read().count(b"\n")
        (tmp_path / "torn").write_text("")
    written(tmp_path, 1)
    assert AuditLog(tmp_path).verify() == []
    assert len(list(AuditLog(tmp_path).records())) >= told + 1


@pytest.mark.parametrize("torn", [b'{"n": 4, "act', b"{", b"\xff\xff"])
def test_half_a_line_is_taken_away(tmp_path: Path, torn: bytes) -> None:
    log = written(tmp_path, 3)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn)
    assert log.verify() != []
    written(tmp_path, 1)
    assert log.verify() == []
    assert [r["n"] for r in log.records()] == [1, 2, 3, 4]
    # Half a line alone, in a file that was just begun.
    other = written(tmp_path / "b", 1, rotate_at=1)
    (tmp_path / "b" / "log.jsonl").write_bytes(torn)
    written(tmp_path / "b", 1)
    assert other.verify() == []


def test_a_long_last_line_is_found_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append({"action": "a", "list": ["x" * 100] * 2000})
    log.append({"action": "b" * 5000})
    assert log.verify() == []
    assert [len(r["action"]) for r in log.records()] == [1, 1000]


def test_the_runtime_writes_it_and_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    host = Runtime(tmp_path).host
    for _ in range(3):
        host.audit("acme", "secret T", True)
        host.audit("acme", "net evil", False)
    records = list(AuditLog.beside(tmp_path).records())
    assert [(r["action"], r["allowed"]) for r in records] == [("secret T", True), *[("net evil", False)] * 3]
    assert "folder" not in records[0]
    (tmp_path / "file").write_text("")
    Runtime(tmp_path / "file").host.audit("acme", "secret T", True)


def test_a_guard_that_is_held_is_waited_for_only_so_long(tmp_path: Path) -> None:
    from dataflare_sdk.exclusive import exclusive

    with exclusive(tmp_path / "guard"), pytest.raises(DataflareError, match=r"world\.busy"), exclusive(tmp_path / "guard", wait=0.01):
        pass
