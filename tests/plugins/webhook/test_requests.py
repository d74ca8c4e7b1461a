"""Every kind of request: what becomes rows, what is answered, and that an answer means that the rows are on the disk."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plugins.webhook.driver import Hook, post, raw
from tests.servers.receiver import until
from tests.servers.tls import certificate

from dataflare_plugins.webhook.bodies import Refused, objects, unpacked
from dataflare_sdk import DataflareError
from dataflare_sdk.inflow.durable_log import DurableLog


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def start(**config: Any) -> Hook:
        made.append(Hook(tmp_path, **config))
        return made[-1]

    yield start
    for one in made:
        one.close()


GOOD: dict[str, tuple[bytes, dict[str, str], int]] = {
    "object": (b'{"n": 1, "s": "a"}', {}, 1),
    "pretty": (b'\xef\xbb\xbf{\r\n  "n": 1,\n  "s": "a\\nb"\n}\n', {}, 1),
    "array": (b' [ {"n": 1}, {"n": 2,"s":"x"} ,\n{} ]\n', {}, 3),
    "no-element": (b"[]", {}, 0),
    "ndjson": (b'{"n": 1}\r\n\n{"n": 2}\n', {"Content_Type": "application/x-ndjson"}, 2),
    "ndjson-untold": (b'{"n": 1}\n{"n": 2}', {}, 2),
    "gzip": (gzip.compress(b'[{"n": 1}') + gzip.compress(b',{"n": 2}]'), {"Content_Encoding": "gzip"}, 2),
    "large-number": (b'{"n": 1, "more": ' + b"9" * 6000 + b"}", {}, 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_taken(name: str, hook: Callable[..., Hook]) -> None:
    body, headers, count = GOOD[name]
    one = hook()
    status, answer, _ = post(one.port, body, **headers)
    assert (status, answer) == (202, {"accepted": count})
    plain = gzip.decompress(body) if name == "gzip" else body
    text = plain.decode("utf-8-sig").strip()
    wanted = (
        json.loads(text)
        if text.startswith("[")
        else [json.loads(x) for x in (text.splitlines() if "ndjson" in name else [text]) if x]
        if name != "large-number"
        else [{"n": 1}]
    )
    one.read(count)
    assert one.rows == [{"n": r.get("n"), "s": r.get("s")} for r in wanted]


BAD: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "nothing": (b"", {}, 400, "no-json"),
    "text": (b"hello", {}, 400, "no-json"),
    "half": (b'{"n": 1', {}, 400, "no-json"),
    "two": (b'{"n": 1} {"n": 2}', {}, 400, "no-json"),
    "nan": (b'{"n": NaN}', {}, 400, "no-json"),
    "number": (b"1", {}, 400, "no-object"),
    "element": (b'[{"n": 1}, 2]', {}, 400, "no-object"),
    "comma": (b'[{"n": 1},]', {}, 400, "no-json"),
    "after-array": (b'[{"n": 1}] x', {}, 400, "no-json"),
    "line": (b'{"n": 1}\nno\n', {"Content_Type": "application/x-ndjson"}, 400, "no-json"),
    "raw-line-feed": (b'{"s": "a\nb"}', {}, 400, "no-json"),
    "latin-1": ('{"s": "\u00e4"}'.encode("latin-1"), {}, 400, "no-utf8"),
    "deep": (b"[" * 200_000, {}, 400, "no-json"),
    "no-gzip": (b'{"n": 1}', {"Content_Encoding": "gzip"}, 400, "gzip"),
    "half-gzip": (gzip.compress(b'{"n": 1}')[:-4], {"Content_Encoding": "gzip"}, 400, "gzip"),
    "brotli": (b"x", {"Content_Encoding": "br"}, 415, "encoding"),
    "bomb": (gzip.compress(b" " * 50_000_000), {"Content_Encoding": "gzip"}, 413, "too-large"),
    "body": (b'{"s": "' + b"x" * 400_000 + b'"}', {}, 413, "too-large"),
    "row": (b'{"s": "' + b"x" * 2000 + b'"}', {}, 413, "too-large"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, hook: Callable[..., Hook]) -> None:
    body, headers, status, code = BAD[name]
    one = hook(max_body="300KiB", max_message="1000B")
    found, answer, _ = post(one.port, body, **headers)
    assert (found, answer["error"]) == (status, code), answer
    assert answer["message"]
    assert post(one.port, b'{"n": 7}')[0] == 202
    assert [r["n"] for r in one.read(1).rows] == [7]
    assert one.ctx.metrics[f"requests_refused_{status}"] == 1


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    tracemalloc.start()
    with pytest.raises(Refused, match="1000 bytes"):
        unpacked(bomb, "gzip", 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_what_is_no_json_may_be_kept_as_a_bad_row(hook: Callable[..., Hook]) -> None:
    one = hook(on_bad="keep")
    assert post(one.port, b'{"n": 1}\nno json\n{"n": "x"}\n[2]\n')[0] == 202
    one.read(4)
    assert one.rows == [{"n": 1, "s": None}]
    assert [(r.code, r.raw) for r in one.rejected] == [
        ("data.bad-json", "no json"),
        ("data.bad-value", '{"n": "x"}'),
        ("data.bad-json", "[2]"),
    ]


def test_methods_paths_and_what_is_no_http(hook: Callable[..., Hook]) -> None:
    one = hook(path="/in")
    assert post(one.port, b"", method="GET", path="/in")[0] == 405
    assert post(one.port, b"{}", path="/")[0] == 404
    assert post(one.port, b"{}", path="/in?x=1")[0] == 202
    assert raw(one.port, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    smuggled = b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}"
    assert raw(one.port, smuggled).startswith(b"HTTP/1.1 400 ")
    assert raw(one.port, b"POST /in HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert raw(one.port, b"POST /in HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", shut=True)[:13] in (b"", b"HTTP/1.1 413 ")


def test_requests_on_one_connection_are_answered_in_their_order(hook: Callable[..., Hook]) -> None:
    one = hook()
    many = b"".join(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), b"Connection: close\r\n" if last else b"", body)
        for body, last in [(b'{"n": 0}', False), (b"no", False), (b'[{"n": 1}, {"n": 2}]', False), (b'{"n": 3}', True)]
    )
    answers = raw(one.port, many)
    assert [int(x[:3]) for x in answers.split(b"HTTP/1.1 ")[1:]] == [202, 400, 202, 202]
    assert [r["n"] for r in one.read(4).rows] == [0, 1, 2, 3]


def test_a_client_that_sends_no_more_still_reads_its_answers(hook: Callable[..., Hook]) -> None:
    one = hook()
    request = b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n{"n": 1}'
    assert raw(one.port, request * 3, shut=True).count(b"HTTP/1.1 202") == 3
    assert len(one.read(3).rows) == 3


def test_chunked_and_byte_by_byte(hook: Callable[..., Hook]) -> None:
    one = hook()
    request = b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\n{"n"\r\n4\r\n: 5}\r\n0\r\n\r\n'
    with socket.create_connection(("127.0.0.1", one.port)) as sock:
        for byte in request:
            sock.sendall(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 202")
    assert [r["n"] for r in one.read(1).rows] == [5]


def test_a_client_that_goes_away_in_mid_request_leaves_nothing(hook: Callable[..., Hook]) -> None:
    one = hook()
    with socket.create_connection(("127.0.0.1", one.port)) as sock:
        sock.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"n": 1}')
    assert post(one.port, b'{"n": 2}')[0] == 202
    assert [r["n"] for r in one.read(1).rows] == [2]


def test_bearer(hook: Callable[..., Hook]) -> None:
    one = hook(bearer="s3cret", path="/in")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3cret2"}):
        status, answer, more = post(one.port, b"{}", path="/in", **headers)
        assert (status, answer["error"], more["www-authenticate"]) == (401, "token", "Bearer")
        assert "s3cret" not in json.dumps(answer)
    assert post(one.port, b"{}", path="/in", Authorization="Bearer s3cret")[0] == 202


def test_signature_over_the_body_as_it_is_sent(hook: Callable[..., Hook]) -> None:
    one = hook(signature={"secret": "k", "header": "X-Sig", "prefix": "v1=", "algorithm": "sha512"})
    body = gzip.compress(b'{"n": 1}')
    good = "v1=" + hmac.new(b"k", body, hashlib.sha512).hexdigest()
    assert post(one.port, body, Content_Encoding="gzip", X_Sig=good)[0] == 202
    assert post(one.port, body, Content_Encoding="gzip")[0] == 401
    assert post(one.port, body + b" ", Content_Encoding="gzip", X_Sig=good)[1]["error"] == "signature"
    assert post(one.port, b"no gzip", Content_Encoding="gzip", X_Sig=good)[0] == 401, "what nobody has signed was looked at"


def test_a_repeated_request_is_taken_once(hook: Callable[..., Hook]) -> None:
    one = hook()
    for _ in range(3):
        status, answer, _ = post(one.port, b'[{"n": 1}, {"n": 2}]', Idempotency_Key="k1")
        assert (status, answer["accepted"]) == (202, 2)
    assert answer["repeated"] is True
    assert post(one.port, b'[{"n": 9}]', Idempotency_Key="k1")[0] == 422
    assert post(one.port, b'{"n": 3}', Idempotency_Key="k2")[1] == {"accepted": 1}
    event = {"ce_id": "1", "ce_source": "/a", "ce_type": "t", "ce_specversion": "1.0"}
    for _ in range(2):
        post(one.port, b'{"n": 4}', **event)
    post(one.port, b'{"n": 5}', **{**event, "ce_source": "/b"})
    assert [r["n"] for r in one.read(5).rows] == [1, 2, 3, 4, 5]


def test_keys_outlive_the_run_the_log_and_a_lost_file(hook: Callable[..., Hook], tmp_path: Path) -> None:
    one = hook()
    post(one.port, b'{"n": 1}', Idempotency_Key="trimmed")
    one.read(1).ack()
    post(one.port, b'{"n": 2}', Idempotency_Key="in-the-log")
    kept = one.offset
    one.close()
    again = hook(offset=kept)
    assert post(again.port, b'{"n": 1}', Idempotency_Key="trimmed")[1] == {"accepted": 1, "repeated": True}
    assert post(again.port, b'{"n": 2}', Idempotency_Key="in-the-log")[1] == {"accepted": 1, "repeated": True}
    again.close()
    for path in (tmp_path / ".dataflare" / "staging" / "hook").glob("keys.db*"):
        path.unlink()
    last = hook(offset=kept)
    assert post(last.port, b'{"n": 2}', Idempotency_Key="in-the-log")[1] == {"accepted": 1, "repeated": True}
    assert [r["n"] for r in last.read(1).rows] == [2]


def test_the_same_key_at_the_same_time(hook: Callable[..., Hook]) -> None:
    one = hook()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(post(one.port, b'{"n": 1}', Idempotency_Key="k")[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.get("repeated", False) for a in answers) == [False] + [True] * 7
    post(one.port, b'{"n": 2}')
    assert [r["n"] for r in one.read(2).rows] == [1, 2]


def test_a_full_buffer_puts_requests_off(hook: Callable[..., Hook]) -> None:
    one = hook(buffer="200KiB", max_body="50KiB", wait="50ms")
    body = json.dumps([{"n": i, "s": "x" * 100} for i in range(100)])
    taken = 0
    while (found := post(one.port, body))[0] == 202:
        taken += 1
        assert taken < 50, "the buffer has no end"
    status, answer, headers = found
    assert (status, answer["error"], headers["retry-after"]) == (503, "full", "1")
    assert one.source.log().size <= 200 << 10
    one.read(taken * 100).ack()
    assert post(one.port, body)[0] == 202, "there is room again, and nothing is taken"
    assert len(one.read(100).rows) == (taken + 1) * 100


def test_an_answer_comes_after_the_rows_are_on_the_disk(hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflare_sdk.inflow import durable_log

    gate, reached = threading.Event(), threading.Event()
    real = durable_log.os.fsync

    def slow(handle: int) -> None:
        reached.set()
        assert gate.wait(20)
        real(handle)

    one = hook()
    monkeypatch.setattr(durable_log.os, "fsync", slow)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(post(one.port, b'{"n": 1}')[0]))
    thread.start()
    assert reached.wait(20)
    thread.join(0.2)
    assert found == [], "it was answered before the disk had it"
    gate.set()
    thread.join(20)
    assert found == [202]


def test_a_disk_that_fails_is_answered_503(hook: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch) -> None:
    one = hook()

    def broken(self: Any, frames: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DurableLog, "_write", broken)
    assert post(one.port, b'{"n": 1}')[0] == 503


def test_metadata_and_no_secret_among_it(hook: Callable[..., Hook]) -> None:
    one = hook(metadata=["topic", "key", "time", "headers"], bearer="s3cret", path="/in")
    post(one.port, b"{}", path="/in", Authorization="Bearer s3cret", Cookie="c", X_Shop="7", Idempotency_Key="k")
    [row] = one.read(1).rows
    assert (row["_topic"], row["_key"]) == ("/in", "k")
    assert dict(row["_headers"])["x-shop"] == "7"
    assert not {"authorization", "cookie"} & dict(row["_headers"]).keys()
    assert row["_time"].year >= 2024


def test_text_and_bytes(hook: Callable[..., Hook]) -> None:
    one = hook(format="text")
    post(one.port, "gr\u00fc\u00df\ndich".encode())
    post(one.port, b"\xff")
    one.read(2)
    assert one.rows == [{"value": "gr\u00fc\u00df\ndich"}]
    assert [r.code for r in one.rejected] == ["data.bad-encoding"]


def test_https(hook: Callable[..., Hook], tmp_path: Path) -> None:
    place = certificate(tmp_path)
    one = hook(tls={"certificate": str(place), "key": str(place)})
    trusted = ssl.create_default_context(cafile=str(place))
    connection = http.client.HTTPSConnection("127.0.0.1", one.port, context=trusted)
    for n in range(3):
        connection.request("POST", "/", json.dumps({"n": n}))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 202
    connection.close()
    assert [r["n"] for r in one.read(3).rows] == [0, 1, 2]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(hook: Callable[..., Hook], tmp_path: Path) -> None:
    one = hook(bearer="t")
    (tmp_path / "rows.ndjson").write_text("".join(json.dumps({"n": n, "s": "x" * 1000}) + "\n" for n in range(3000)))
    command = [
        "curl",
        "-sS",
        "--fail-with-body",
        "-H",
        "Authorization: Bearer t",
        "-H",
        "Content-Type: application/x-ndjson",
        "-H",
        "Expect: 100-continue",
    ]
    done = subprocess.run(
        [*command, "--data-binary", "@rows.ndjson", f"http://127.0.0.1:{one.port}/"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, '{"accepted":3000}'), done
    assert [r["n"] for r in one.read(3000).rows] == list(range(3000))


def test_many_clients_at_once(hook: Callable[..., Hook]) -> None:
    one = hook()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", one.port)
        for i in range(50):
            connection.request("POST", "/", json.dumps({"n": number * 1000 + i}))
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (202, b'{"accepted":1}')
        connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    found = [r["n"] for r in one.read(800).rows]
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(n * 1000 + i for n in range(16) for i in range(50))
    for n in range(16):
        assert [x for x in found if x // 1000 == n] == [n * 1000 + i for i in range(50)], "the order of one sender is lost"


def test_connections_are_bounded(hook: Callable[..., Hook]) -> None:
    one = hook(connections=2)
    held = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(2)]
    for sock in held:
        sock.sendall(b"POST / HTTP/1.1\r\n")
    while len(one.source._server.connections) < 2:  # type: ignore[union-attr]
        pass
    assert raw(one.port, b"").startswith(b"HTTP/1.1 503")
    for sock in held:
        sock.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_any_objects_come_out_as_they_went_in(rows: list[dict[str, Any]], indent: int | None, ascii: bool, ndjson: bool) -> None:
    if ndjson:
        body = "\n".join(json.dumps(r, ensure_ascii=ascii) for r in rows)
    else:
        body = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    try:
        raw_body = body.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate
    found = objects(raw_body, "application/x-ndjson" if ndjson else "application/json")
    assert [json.loads(x) for x in found] == rows
    assert not any(b"\n" in x for x in found)


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[],:"n1 \n\\e-.'), max_size=30).map(str.encode))
@settings(max_examples=300)
def test_anything_else_is_refused_as_json_itself_refuses_it(body: bytes) -> None:
    try:
        found = [json.loads(x) for x in objects(body, "")]
    except Refused as refused:
        assert refused.status == 400
        return
    assert all(isinstance(x, dict) for x in found)


@pytest.mark.parametrize("beside", ["X_Large", "Idempotency_Key"])
def test_what_is_kept_beside_each_row_counts(beside: str, hook: Callable[..., Hook]) -> None:
    # Ten thousand rows of ten bytes, each with eight kilobytes of the request's headers.
    one = hook(buffer="4MiB", max_body="1MiB", metadata=["headers", "key"])
    body = b"[" + b",".join([b'{"n": 123}'] * 10_000) + b"]"
    status, answer, _ = post(one.port, body, **{beside: "x" * 8_000})
    assert (status, answer["error"]) == (413, "too-large")
    assert post(one.port, b'{"n": 1}', **{beside: "x" * 8_000})[0] == 202
    assert one.source.log().size < 64 << 10


def test_a_state_that_is_older_than_the_log_is_refused(hook: Callable[..., Hook]) -> None:
    one = hook()
    for n in range(3):
        post(one.port, json.dumps({"n": n}))
    one.read(3, rows=1).ack()
    one.close()
    hook(offset=one.batches[-1].offset).close()
    with pytest.raises(DataflareError) as found:
        hook(offset=one.batches[0].offset)
    assert found.value.code == "inflow.trimmed"


def test_a_body_of_very_many_packed_parts_is_refused() -> None:
    """Each part costs a copy of all that follow it: 8 MiB of empty ones held the server up for minutes."""
    assert unpacked(gzip.compress(b"a") * 1000, "gzip", 1 << 20) == b"a" * 1000
    with pytest.raises(Refused, match="parts") as caught:
        unpacked(gzip.compress(b"") * 1001, "gzip", 1 << 20)
    assert (caught.value.status, caught.value.code) == (400, "gzip")


def test_who_reads_no_answers_is_read_no_further(hook: Callable[..., Hook]) -> None:
    """Answers that nobody takes would pile up in memory, as many as a client likes to ask for."""
    one = hook()
    ask = b"GET / HTTP/1.1\r\n\r\n" * 1000
    with socket.create_connection(("127.0.0.1", one.port)) as client:
        client.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            for _ in range(300):
                client.sendall(ask)
        server = one.source._server
        assert server is not None
        [connection] = server.connections
        assert connection._transport.get_write_buffer_size() < 1 << 20
        client.settimeout(20.0)
        answers = client.recv(1 << 20)
        assert answers.startswith(b"HTTP/1.1 405 ")
    assert post(one.port, b'{"n": 1}')[0] == 202


def test_who_reads_no_answers_is_left_in_the_end(hook: Callable[..., Hook]) -> None:
    one = hook()
    with socket.create_connection(("127.0.0.1", one.port)) as client:
        client.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            for _ in range(300):
                client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        server = one.source._server
        assert server is not None
        [connection] = server.connections
        for later in (1000.0, 2000.0):
            server.loop.call_soon_threadsafe(connection.look, server.loop.time() + later)
        until(lambda: not server.connections)
