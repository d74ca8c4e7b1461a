"""Whole runs: killed at every step of the way from a request to the destination, every answered request is there once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.plugins.webhook.driver import COLUMNS, HOOK, post
from tests.servers.processes import free_port

from dataflare_plugins.webhook.source import WebhookSource
from dataflare_sdk import DataflareError, ExtractSpec
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.testing import FakeContext, SourceSuite

WORKFLOW = """
name: hook
sources:
  in: {{use: webhook, with: {with_}, errors: {{on_record: dead_letter}}}}
destinations:
  out: {{use: sqlite, with: {{path: out.db, table: t}}}}
state: {{checkpoint: {{every: 50ms}}}}
runtime: {{batch: {{linger: 5ms}}}}
"""
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def prepare(folder: Path, **with_: Any) -> int:
    port = free_port()
    (folder / "w.yaml").write_text(WORKFLOW.format(with_=json.dumps({"port": port, "columns": COLUMNS, **with_})))
    return port


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dataflare", *(words or ("run", "w.yaml")), "--json"]
    STARTED.append(
        commands.Command(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env})
    )
    return STARTED[-1]


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    process = start(folder, *words)
    out, _ = process.communicate(timeout=60)
    return process.returncode, json.loads(out)


def stop(process: subprocess.Popen[str]) -> dict[str, Any]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    report: dict[str, Any] = json.loads(out)
    assert report["status"] == "interrupted", (report["error"], err[-2000:])
    return report


def arrived(folder: Path) -> list[int]:
    with (
        contextlib.suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{folder}/out.db?mode=ro", uri=True, timeout=30)) as db,
    ):
        return [n for (n,) in db.execute("SELECT n FROM t ORDER BY rowid")]
    return []


def wait(ready: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "it never came"
        assert process is None or process.poll() is None, process.communicate() if process else ""
        time.sleep(0.02)


class Sender(threading.Thread):
    """Sends numbers, each request under a key of its own, again and again until it is answered."""

    def __init__(self, port: int, first: int) -> None:
        super().__init__(daemon=True)
        self._port, self.first, self.next = port, first, first
        self.stop, self.again = threading.Event(), 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self.stop.is_set():
            body = json.dumps([{"n": self.next + i} for i in range(3)])
            try:
                connection.request("POST", "/", body, {"Idempotency-Key": f"key-{self.next}"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.again += 1
                time.sleep(0.02)
                continue
            if answer.status == 202:
                self.next += 3
            else:
                assert answer.status == 503
        connection.close()


POINTS = [
    "inflow.log.written:5", "inflow.log.durable:8", "job.epoch.logged:3", "job.epoch.committed:2", "inflow.log.trimmed:2",
]  # fmt: skip


def test_killed_again_and_again_while_it_is_sent_to(tmp_path: Path) -> None:
    port = prepare(tmp_path)
    senders = [Sender(port, first) for first in (0, 1_000_000)]
    for sender in senders:
        sender.start()
    for point in POINTS:
        process = start(tmp_path, "run", "w.yaml", DATAFLARE_FAILPOINT=point)
        out, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, (point, out[-1500:], err[-1500:])
    process = start(tmp_path)
    before = [s.next for s in senders]
    wait(lambda: all(s.next > b + 30 for s, b in zip(senders, before, strict=True)), process)
    for sender in senders:
        sender.stop.set()
        sender.join()
    total = sum(s.next - s.first for s in senders)
    wait(lambda: len(arrived(tmp_path)) >= total, process)
    report = stop(process)
    found = arrived(tmp_path)
    assert report["guarantee"] == {"out": "exactly_once"}
    assert sum(s.again for s in senders) > len(POINTS), "nobody noticed that it was killed"
    for sender in senders:
        assert [n for n in found if (n >= 1_000_000) == (sender.first > 0)] == list(range(sender.first, sender.next)), (
            "lost, doubled or out of order"
        )


def test_what_was_answered_before_a_kill_is_there_without_being_sent_again(tmp_path: Path) -> None:
    port = prepare(tmp_path)
    process = start(tmp_path, "run", "w.yaml", DATAFLARE_FAILPOINT="job.epoch.logged:2")
    answered: list[int] = []
    number = 0
    while process.poll() is None:
        try:
            if post(port, json.dumps({"n": number}))[0] == 202:
                answered.append(number)
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.02)
        number += 1
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert answered
    assert len(arrived(tmp_path)) < len(answered)
    code, report = run(tmp_path, "run", "w.yaml", "--once")
    assert (code, report["status"]) == (0, "done"), report
    found = arrived(tmp_path)
    assert len(found) == len(set(found))
    assert set(answered) <= set(found)
    assert run(tmp_path, "run", "w.yaml", "--once")[1]["rows"]["written"] == 0
    with pytest.raises(OSError):
        post(port, b"{}")


def test_a_bad_row_is_a_letter_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    port = prepare(tmp_path, on_bad="keep", path="/in", metadata=["topic"])
    process = start(tmp_path)
    wait(lambda: _listens(port), process)
    assert post(port, b'{"n": 1}\nbad\n', path="/in")[0] == 202
    wait(lambda: arrived(tmp_path) == [1], process)
    assert stop(process)["rows"]["dead_lettered"] == 1
    process = start(tmp_path)
    wait(lambda: _listens(port), process)
    assert post(port, b'{"n": 2}', path="/in")[0] == 202
    wait(lambda: arrived(tmp_path) == [1, 2], process)
    stop(process)
    [letter] = run(tmp_path, "dlq", "show", "w.yaml")[1]["dead_letters"]
    assert (letter["raw"], letter["code"], letter["position"]) == ("bad", "data.bad-json", {"topic": "/in", "position": 1})


def _listens(port: int) -> bool:
    try:
        post(port, b"", method="GET")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("with_", "code", "path"),
    [
        ({"columns": None}, "webhook.no-columns", "columns"),
        ({"host": "10.0.0.1"}, "webhook.unguarded", "host"),
        ({"buffer": "1MiB"}, "config.invalid", "buffer"),
        ({"path": "x"}, "config.invalid", "path"),
        ({"bearer": ""}, "config.invalid", "bearer"),
        ({"host": "10.0.0.1", "signature": {"secret": ""}}, "config.invalid", "signature.secret"),
        ({"columns": {"n": "NOPE"}}, "config.bad-type", "columns.n"),
    ],
    ids=str,
)
def test_what_is_refused_without_listening(with_: dict[str, Any], code: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(DataflareError) as found:
        WebhookSource(WebhookSource.configure({"port": 1, "columns": COLUMNS, **with_}), FakeContext(tmp_path))
    problem = found.value.problems[0]
    assert (found.value.exit_code, problem.code, problem.path) == (3, code, path)
    assert problem.fix


def test_a_port_that_is_taken_and_a_certificate_that_is_none(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        prepare(tmp_path, port=taken.getsockname()[1])
        text = (tmp_path / "w.yaml").read_text() + "errors: {retry: {attempts: 0}}\n"
        (tmp_path / "w.yaml").write_text(text)
        done, report = run(tmp_path)
        assert (done, report["error"]["code"]) == (4, "webhook.cannot-listen"), report
    shutil.rmtree(tmp_path / ".dataflare")
    (tmp_path / "no.pem").write_text("no")
    prepare(tmp_path, tls={"certificate": "no.pem", "key": "no.pem"})
    done, report = run(tmp_path)
    assert (done, report["error"]["code"]) == (4, "webhook.bad-tls"), report


def test_suite(tmp_path: Path) -> None:
    log = DurableLog(tmp_path / ".dataflare" / "staging" / "source" / "log")
    log.append(Messages([b'{"n": %d, "s": "x"}' % n for n in range(12)], range(12), topic="/", time=1))
    log.close()

    class Once(WebhookSource):
        """Stops where the log ended when it began."""

        def open(self, partition: Any, extract: ExtractSpec, offset: Any, until: Any = None) -> Any:
            end = self.position(partition, extract)
            return super().open(partition, extract, offset, until if until is not None else end)

    config = Once.configure({"port": free_port(), "columns": COLUMNS, "metadata": ["topic"]})

    def make(ctx: Any) -> WebhookSource:
        ctx.linger = 0.0
        return Once(config, ctx)

    SourceSuite(make, folder=tmp_path, extract=HOOK).assert_conforms()
