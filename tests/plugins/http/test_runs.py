"""Whole runs into a server: what arrives, how often, in which requests, and what a person is told."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.plugins.http.receiver import Receiver
from tests.servers.tls import certificate

import dataflare
from dataflare.errors import DataflareError, exit_code
from dataflare_plugins.http.destination import HttpDestination
from dataflare_sdk.testing import FakeContext

WORKFLOW = """
name: send
sources:
  rows: {{use: jsonl, with: {{path: in.jsonl, columns: {{id: BIGINT, name: VARCHAR, x: DOUBLE}}}}}}
destinations:
  api:
    use: http
    with: {with_}
    write: {{mode: append}}
    errors: {{on_record: {policy}}}
state: {{checkpoint: {{rows: 40, every: 1h}}}}
runtime: {{batch: {{rows: 32}}}}
errors: {{retry: {{attempts: 2, initial: 10ms}}}}
"""
FAST = {"attempts": 4, "initial": "1ms", "max": "10ms"}


def prepare(folder: Path, receiver: Receiver, rows: int = 100, policy: str = "fail", **more: Any) -> list[dict[str, Any]]:
    made = [{"id": i, "name": None if i % 7 == 0 else f"n\u00e4me \n{i}", "x": i / 4} for i in range(rows)]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    with_ = {"url": receiver.url + "/rows", "batch": {"rows": 10, "bytes": "64KiB"}, "retry": FAST, **more}
    (folder / "w.yaml").write_text(WORKFLOW.format(with_=json.dumps(with_), policy=policy))
    return made


def run(folder: Path, *words: str, **env: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "dataflare", *(words or ("run", "w.yaml")), "--json"]
    done = commands.run(command, cwd=folder, text=True, capture_output=True, env={**os.environ, **env}, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def ran(folder: Path) -> tuple[int, dict[str, Any], str]:
    """Run in this process."""
    found = dataflare.run(folder / "w.yaml")
    return exit_code(found.problems), found.document, ""


def letters(folder: Path) -> list[dict[str, Any]]:
    return run(folder, "dlq", "show", "w.yaml")[1]["dead_letters"]


@pytest.mark.parametrize("body", ["array", "ndjson", "object"])
def test_rows_arrive_as_they_are(body: str, receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    made = prepare(tmp_path, server, body=body, compress=body == "ndjson")
    code, report, err = ran(tmp_path)
    assert code == 0, (report, err)
    assert server.rows == made
    assert max(len(got.rows) for got in server.taken) == (1 if body == "object" else 10)
    assert len({got.headers["idempotency-key"] for got in server.taken}) == len(server.taken)
    assert report["rows"]["written"] == 100
    assert server.connections == 1, "every request had a connection of its own"


def test_bytes_bound_a_request(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    made = prepare(tmp_path, server, batch={"rows": 1000, "bytes": "200B"})
    assert ran(tmp_path)[0] == 0
    assert server.rows == made
    assert max(len(got.body) for got in server.taken) <= 201
    assert len(server.taken) < 60


def test_rows_go_to_their_addresses(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    made = prepare(tmp_path, server, url=server.url + "/of/{name}?id={id}&k=v", method="PUT", policy="dead_letter")
    code, report, err = ran(tmp_path)
    assert code == 0, (report, err)
    named = [r for r in made if r["name"]]
    assert [got.path for got in server.taken] == [f"/of/n%C3%A4me%20%0A{r['id']}?id={r['id']}&k=v" for r in named]
    assert [x["row"]["id"] for x in letters(tmp_path)] == [r["id"] for r in made if not r["name"]]
    assert report["guarantee"] == {"api": "effectively_once"}


POINTS = [
    "http.request.sent:2", "http.request.sent:9", "http.epoch.sent:1", "job.epoch.logged:1", "job.epoch.committed:1", "state.log.after:1",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_every_row_is_taken_once_by_key(point: str, receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    made = prepare(tmp_path, server, rows=6000, batch={"rows": 250, "bytes": "64KiB"})
    code, _, err = run(tmp_path, DATAFLARE_FAILPOINT=point)
    assert code == -signal.SIGKILL, err
    code, report, err = run(tmp_path)
    assert (code, report.get("resumed")) == (0, True), (report, err)
    assert server.once_per_key() == made
    assert len(server.rows) - len(made) <= 250, "more than the request under way was made again"


def test_a_failure_of_the_moment_is_waited_out(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    troubles: dict[int, Any] = {
        2: (503, {}, b"later"),
        3: "cut",
        5: (429, {"Retry-After": "1"}, b"slow"),
        7: "cut-after",
        9: (500, {}, b""),
    }
    server = receiver(judge=lambda got, number: troubles.get(number, (200, {}, b"")))
    made = prepare(tmp_path, server)
    code, report, err = ran(tmp_path)
    assert code == 0, (report, err)
    assert server.once_per_key() == made
    assert len(server.rows) == len(made) + 10, "what was taken before the cut came once more"


def test_a_server_that_stays_away_ends_the_run_and_the_next_one_resumes(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    down = [True]
    server = receiver(judge=lambda got, number: (502, {}, b"bad gateway") if down[0] and number > 6 else (201, {}, b""))
    made = prepare(tmp_path, server)
    code, report, _ = ran(tmp_path)
    assert (code, report["error"]["code"]) == (4, "http.unreachable")
    assert "502 bad gateway" in report["error"]["message"]
    down[0] = False
    assert ran(tmp_path)[0] == 0
    assert server.rows == made


def test_refused_rows_end_a_run_that_can_be_mended(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    strict = [True]
    server = receiver(
        judge=lambda got, number: (
            (422, {}, b'{"why": "no id 13"}') if strict[0] and any(r["id"] == 13 for r in got.rows) else (200, {}, b"")
        )
    )
    made = prepare(tmp_path, server)
    code, report, _ = ran(tmp_path)
    assert (code, report["error"]["code"]) == (1, "http.row-refused")
    assert "422" in report["error"]["message"]
    assert "no id 13" in report["error"]["message"]
    assert "rows 11 to 20" in report["error"]["message"]
    strict[0] = False
    assert ran(tmp_path)[0] == 0
    assert server.rows == made


def test_refused_rows_are_found_one_by_one(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    bad = {3, 13, 14, 99}
    server = receiver(judge=lambda got, number: (400, {}, b"bad row") if bad & {r["id"] for r in got.rows} else (200, {}, b""))
    made = prepare(tmp_path, server, policy="dead_letter")
    code, report, err = ran(tmp_path)
    assert code == 0, (report, err)
    assert server.rows == [r for r in made if r["id"] not in bad]
    found = letters(tmp_path)
    assert {x["row"]["id"] for x in found} == bad
    assert {x["code"] for x in found} == {"http.row-refused"}
    assert "400 bad row" in found[0]["cause"]
    assert report["rows"]["dead_lettered"] == 4
    assert report["rows"]["written"] == 96
    assert report["guarantee"] == {"api": "at_least_once"}


@pytest.mark.parametrize("status", [401, 302])
def test_what_is_not_the_rows_fault_is_no_row_error(status: int, receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver(judge=lambda got, number: (status, {"Location": "/elsewhere"}, b"token hunter2-abc is wrong"))
    prepare(tmp_path, server, policy="skip", headers={"Authorization": "Bearer ${env:TOKEN}"})
    done, report, err = run(tmp_path, TOKEN="hunter2-abc")
    assert (done, report["error"]["code"]) == (4, "http.refused")
    assert "hunter2" not in json.dumps(report) + err
    assert len(server.came) == 1
    assert server.came[0].headers["authorization"] == "Bearer hunter2-abc"


def test_a_secret_is_sent_and_not_shown(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver(judge=lambda got, number: (403, {}, f"not you: {got.headers['x-key']}".encode()))
    (tmp_path / "key").write_text("s3cret-key-1\n")
    prepare(tmp_path, server, headers={"X-Key": "${secret:file/key}"})
    done, report, err = run(tmp_path, DATAFLARE_SECRETS_DIR=str(tmp_path))
    told = json.dumps(report) + err
    kept = b"".join(p.read_bytes() for p in (tmp_path / ".dataflare").rglob("*") if p.is_file())
    assert (done, report["error"]["code"]) == (4, "http.refused")
    assert "s3cret-key-1" not in told
    assert b"s3cret-key-1" not in kept
    assert server.came[0].headers["x-key"] == "s3cret-key-1"


def test_a_row_that_would_go_to_another_place_is_a_bad_row(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    """`..` in a path is the place above: servers and proxies take it for that, also where it is written %2E%2E."""
    server = receiver()
    prepare(tmp_path, server, url=server.url + "/of/{name}?n={name}", policy="dead_letter")
    names = ["a", "..", ".", "...", "", "../x", None, "b"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": i, "name": n, "x": 0.5}) + "\n" for i, n in enumerate(names)))
    assert ran(tmp_path)[0] == 0
    assert [got.path for got in server.taken] == [
        "/of/a?n=a", "/of/...?n=...", "/of/?n=", "/of/..%2Fx?n=..%2Fx", "/of/b?n=b",
    ]  # fmt: skip
    assert [(x["row"]["name"], x["code"]) for x in letters(tmp_path)] == [(n, "data.bad-row") for n in ("..", ".", None)]


def test_what_a_server_asks_for_is_no_bug_of_ours(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver(judge=lambda got, number: (429, {"Retry-After": "\xb2"}, b"") if number == 1 else (200, {}, b""))
    made = prepare(tmp_path, server, rows=5)
    assert ran(tmp_path)[0] == 0
    assert server.rows == made


def test_a_header_is_sent_once_however_it_is_written(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    prepare(tmp_path, server, rows=5, headers={"content-type": "application/vnd.api+json", "X-Empty-End": "token "})
    server.judge = lambda got, number: (401, {}, b"plain words")
    found = ran(tmp_path)[1]
    assert "plain words" in found["error"]["message"]
    assert server.came[0].headers["content-type"] == "application/vnd.api+json"


def test_https(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    server = receiver(tls=context)
    made = prepare(tmp_path, server, ca=str(cert))
    code, report, err = ran(tmp_path)
    assert code == 0, (report, err)
    assert server.rows == made
    prepare(tmp_path, server)
    code, report, _ = ran(tmp_path)
    assert (code, report["error"]["code"]) == (4, "http.refused"), "a certificate that nobody vouches for was believed"


@pytest.mark.parametrize(
    ("more", "code", "path"),
    [
        ({"url": "ftp://h/"}, "http.bad-url", "url"),
        ({"url": "http://u:p@h/"}, "http.bad-url", "url"),
        ({"url": "http://{name}.example/"}, "http.bad-url", "url"),
        ({"url": "http://h/a b"}, "http.bad-url", "url"),
        ({"url": "http://h/a\x01"}, "http.bad-url", "url"),
        ({"url": "http://h:0/"}, "http.bad-url", "url"),
        ({"headers": {"X-A": "5 \u20ac"}}, "config.invalid", "headers.X-A"),
        ({"headers": {"Content-Encoding": "br"}}, "config.invalid", "headers.Content-Encoding"),
        ({"headers": {"Host": "x"}}, "config.invalid", "headers.Host"),
        ({"headers": {"X-A": "a\nb"}}, "config.invalid", "headers.X-A"),
        ({"idempotency_header": "a b"}, "config.invalid", "idempotency_header"),
    ],
    ids=str,
)
def test_what_is_refused_without_a_connection(more: dict[str, Any], code: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(DataflareError) as found:
        HttpDestination(HttpDestination.configure({"url": "http://h/", **more}), FakeContext(tmp_path))
    problem = found.value.problems[0]
    assert (found.value.exit_code, problem.code, problem.path) == (3, code, path)
    assert problem.fix


def test_a_column_of_the_address_that_is_not_there(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    prepare(tmp_path, receiver(), url="http://h/{nmae}")
    done, report, _ = run(tmp_path, "validate", "w.yaml")
    assert done == 3
    assert "'nmae'" in report["problems"][0]["message"]


def test_what_validate_says_of_the_guarantee(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server = receiver()
    prepare(tmp_path, server)
    _, report, _ = run(tmp_path, "validate", "w.yaml")
    assert report["guarantee"] == {"api": "at_least_once"}
    assert "idempotent" in json.dumps(report)
    prepare(tmp_path, server, idempotent=True)
    assert run(tmp_path, "validate", "w.yaml")[1]["guarantee"] == {"api": "effectively_once"}
    prepare(tmp_path, server, idempotent=True, policy="dead_letter")
    assert run(tmp_path, "validate", "w.yaml")[1]["guarantee"] == {"api": "at_least_once"}
    assert not server.came, "validate spoke to the server"
