"""Events are posted over a real wire; who refuses, cuts or hangs costs the run nothing, and secrets are seen by the receiver alone."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.gated import ROWS, WRITTEN, Gated, flow
from tests.servers.receiver import Receiver, until
from tests.servers.tls import certificate

import dataflare
from dataflare_sdk import DataflareError, posting
from dataflare_sdk.posting import Poster

SECRET = "hook-canary-4711"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOOK_TOKEN", SECRET)
    return tmp_path


def posted(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(r.body) for r in receiver.requests]


def test_start_and_end_are_posted_with_their_headers(here: Path) -> None:
    with Receiver() as receiver:
        hook = {"url": f"{receiver.url}/in?x=1", "headers": {"Authorization": "Bearer ${secret:HOOK_TOKEN}"}}
        run = dataflare.run(flow(observe={"webhook": hook}), check=True)
    assert [(r.path, r.headers["authorization"], r.headers["content-type"]) for r in receiver.requests] == [
        ("/in?x=1", f"Bearer {SECRET}", "application/json")
    ] * 2
    first, last = posted(receiver)
    assert (first["event"], first["workflow"], first["run_id"]) == ("run.started", "w", run.document["run_id"])
    assert (last["event"], last["data"]["status"], last["data"]["rows"], last["data"]["error"]) == ("run.ended", "done", run.rows, None)
    assert len({r.headers["x-dataflare-delivery"] for r in receiver.requests}) == 2
    assert run.problems == []


def test_a_failure_is_posted_with_its_code(here: Path) -> None:
    with Receiver() as receiver:
        document = flow(sources={"s": {"use": "csv", "with": {"path": "none.csv"}}}, observe={"webhook": {"url": receiver.url}})
        run = dataflare.run(document)
    assert posted(receiver)[-1]["data"]["error"] == run.error
    assert run.error is not None
    assert run.error["code"] == "world.missing-input"


def test_what_is_not_taken_is_tried_again_with_the_same_id(here: Path) -> None:
    with Receiver() as receiver:
        receiver.answers += [503, "cut", 425, 200]
        run = dataflare.run(flow(observe={"webhook": {"url": receiver.url, "events": ["run.ended"]}, "patience": "60s"}), check=True)
    assert [p["event"] for p in posted(receiver)] == ["run.ended"] * 4
    assert len({r.headers["x-dataflare-delivery"] for r in receiver.requests}) == 1
    assert run.problems == []


@pytest.mark.parametrize(("answer", "tried"), [(404, 1), (302, 1), (500, 3)])
def test_a_refusal_is_a_note(here: Path, answer: int, tried: int) -> None:
    with Receiver() as receiver:
        receiver.always = answer
        hook = {"url": f"{receiver.url}/secret-path-canary", "attempts": 3, "events": ["run.ended"], "headers": {"X-Key": SECRET}}
        run = dataflare.run(flow(observe={"webhook": hook, "patience": "60s"}), check=True)
    assert [r.path for r in receiver.requests] == ["/secret-path-canary"] * tried, "redirects are not followed"
    assert [(p.code, p.severity) for p in run.problems] == [("monitor.failed", "note")]
    said = json.dumps(run.document)
    assert f"HTTP {answer}" in said
    assert "canary" not in said


def test_one_that_hangs_does_not_hold_the_run_up(here: Path) -> None:
    """The receiver never answers: every row is committed all the same, and the end does not wait longer than it was told to."""
    with Receiver() as receiver:
        receiver.always = "hang"
        run = Gated(here, webhook={"url": receiver.url, "events": ["*"], "timeout": "1h"}, patience="10ms")
        try:
            until(lambda: receiver.requests)
            run.advance(lambda: run.written() > 300)
            assert len(receiver.requests) == 1, "the first post is still unanswered"
        finally:
            report = run.finish()
        assert (report.status, report.rows["written"]) == ("done", WRITTEN)
        assert ["left behind" in p.message for p in report.problems] == [True]


def test_nobody_there(here: Path) -> None:
    with Receiver() as receiver:
        url = receiver.url
    run = dataflare.run(flow(observe={"webhook": {"url": url, "attempts": 1}}), check=True)
    assert ["did not take what was posted" in p.message for p in run.problems] == [True]


def test_progress_comes_when_it_is_asked_for(here: Path) -> None:
    with Receiver() as receiver:
        run = Gated(here, webhook=[{"url": receiver.url, "events": ["progress"], "every": "10ms"}])
        try:
            until(lambda: len(receiver.requests) > 3)
        finally:
            run.finish()
    assert {p["event"] for p in posted(receiver)} == {"progress"}
    assert posted(receiver)[-1]["data"]["nodes"][0]["committed"]["rows_in"] == ROWS


def test_secrets_are_written_nowhere(here: Path) -> None:
    with Receiver() as receiver:
        hook = {"url": receiver.url, "headers": {"Authorization": SECRET, "X-Other": "Bearer ${env:HOOK_TOKEN}"}}
        (here / "w.json").write_text(json.dumps(flow(observe={"webhook": hook, "log": "debug", "log_file": "log.txt"})))
        run = dataflare.run(here / "w.json", check=True)
    assert SECRET not in json.dumps(run.document)
    (here / "w.json").unlink()
    for path in here.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("hook", "path"),
    [
        ({"url": "ftp://x"}, "observe.webhook.url"),
        ({"url": "http://user:pass@x"}, "observe.webhook.url"),
        ({"url": "http://x", "headers": {"A": "b\r\nc: d"}}, "observe.webhook.headers"),
        ({"url": "http://x:port"}, "observe.webhook.url"),
        ({"url": "http://x", "event": []}, "observe.webhook.event"),
        ([{"url": "http://x"}, {"headers": {}}], "observe.webhook[1].url"),
        ("http://x", "observe.webhook"),
    ],
)
def test_what_is_wrong_is_said_by_validate(here: Path, hook: Any, path: str) -> None:
    with pytest.raises(DataflareError) as found:
        dataflare.run(flow(observe={"webhook": hook, "patience": "0s"}), check=True)
    assert [p.path for p in found.value.problems] == [path]
    assert found.value.exit_code == 3
    assert "pass" not in str(found.value).replace("password", "")


def test_a_receiver_says_when_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    monkeypatch.setattr(posting.time, "sleep", slept.append)
    with Receiver() as receiver:
        receiver.answers += [429, 503, 200]
        receiver.headers["Retry-After"] = "30"
        Poster(receiver.url, {}).post(b"{}")
        assert (len(receiver.requests), slept) == (3, [30.0, 30.0])


def test_one_that_drips_is_given_up_in_time() -> None:
    """Each byte comes in time, the answer never does: the thread of a monitor would hang for ever."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            one, _ = listening.accept()
            with one, contextlib.suppress(OSError):
                one.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.01):
                    one.sendall(b"a")

        dripping = threading.Thread(target=drip)
        dripping.start()
        poster = Poster(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, timeout=0.3, attempts=1)

        def post() -> None:
            with pytest.raises(DataflareError, match="did not take"):
                poster.post(b"{}")

        posted = threading.Thread(target=post, daemon=True)
        posted.start()
        posted.join(20)
        hangs = posted.is_alive()
        over.set()
        dripping.join()
    assert not hangs


def test_a_certificate_that_nobody_vouches_for_is_asked_once(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with Receiver(context) as receiver, pytest.raises(DataflareError, match=r"certificate.*tried 1 times"):
        Poster(receiver.url, {"X": "hush"}, attempts=3).post(b"{}")
    assert not receiver.requests


def test_an_address_is_shown_without_its_path() -> None:
    assert Poster("https://hooks.example:8443/T0/B0/key?token=1", {}).shown == "https://hooks.example:8443"
