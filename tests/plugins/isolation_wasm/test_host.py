"""What a guest may call: only what was granted, every hop of a request judged, no secret in its hands."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.loading import component, processed
from tests.plugins.isolation_wasm.server import Server, serving

from dataflare_plugins.isolation_wasm import web
from dataflare_sdk import DataflareError, RetriableError, web_connection
from dataflare_sdk import web as rules
from dataflare_sdk.testing import FakeContext

EVERYTHING = "capabilities:\n  host: [log, metric, clock]\n  state: {max_bytes: 1MiB}\n  net: [%s]\n  secrets: [{ref: token}, {ref: bound, hosts: [other.example]}, {ref: lines}]\n"
LOOPBACK = '{host: 127.0.0.1, port: "*", private: true}'


class Context(FakeContext):
    """Keeps what was logged, and hands out secrets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, secrets={"token": "s3cret-value", "bound": "b0und", "lines": "hush\nhush"})
        self.lines: list[str] = []
        self.log = self

    def info(self, form: str, *arguments: str) -> None:
        self.lines.append(form.format(*arguments))

    def warning(self, form: str, *arguments: str) -> None:
        form.format(*arguments)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def caller(folder: Path, net: str = LOOPBACK) -> Any:
    ctx = Context(folder)
    guest = component(folder, built(GUESTS / "caller.c"), ctx=ctx, features="rowwise, one_to_one", lines=EVERYTHING % net)
    guest.output_schemas({"in": pa.schema([("s", pa.string())])})
    return guest


def calls(guest: Any, *texts: str) -> list[tuple[str, int]]:
    made = processed(guest, pa.record_batch({"s": list(texts)}))
    return [(r["s"], r["code"]) for r in made.to_pylist()]


def asks(guest: Any, how: str, **request: Any) -> tuple[str, int]:
    return calls(guest, how + json.dumps(request))[0]


def refusal(guest: Any, url: str, **request: Any) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        asks(guest, "h", url=url, **request)
    return caught.value


def test_log_metric_clock_and_state(tmp_path: Path) -> None:
    guest = caller(tmp_path)
    found = calls(guest, "lhello {0} \x1b[31m", "mseen", "mNot A Name", "c", "pvalue", "g")
    assert guest.ctx.lines == ["hello {0}  [31m"], "a guest's text is no format and moves no cursor"
    assert guest.ctx.metrics == {"seen": 2.5}
    assert abs(found[3][1] / 1e6 - guest.ctx.clock()) < 600
    assert found[5] == ("value", 5)
    calls(guest, *["lx"] * 1000)
    assert len(guest.ctx.lines) == 101, "one call writes 100 lines at most"
    guest.close()


def test_a_pointer_that_lies_to_the_host_is_refused(tmp_path: Path) -> None:
    guest = caller(tmp_path)
    with pytest.raises(DataflareError) as caught:
        calls(guest, "w")
    assert caught.value.code == "wasm.bad-reply"
    guest.close()


def test_a_wait_is_over_at_once(tmp_path: Path) -> None:
    """Go's runtime waits by WASI while it collects garbage and while it dies of a panic; files are none."""
    lines = "capabilities:\n  host: [wasi]\nlimits: {deadline: 2s}\n"
    guest = component(tmp_path, built(GUESTS / "waits.c"), features="rowwise, one_to_one", lines=lines)
    guest.output_schemas({"in": pa.schema([("n", pa.int64())])})
    found = processed(guest, pa.record_batch({"n": [0, 1, 2, 64, 65]})).to_pylist()
    assert [(r["status"], r["events"]) for r in found] == [(28, 0), (0, 1), (0, 2), (0, 64), (28, 0)]
    assert [r["said"] for r in found] == [0, 100, 100 + 101 + 0x10800, sum(range(100, 164)) + 32 * 0x10800, 0]
    guest.close()


def test_what_the_context_refuses_is_raised_after_the_call(tmp_path: Path) -> None:
    guest = caller(tmp_path)

    def full(key: str, value: bytes) -> None:
        raise PermissionError("no more state")

    guest.ctx.state_put = full
    with pytest.raises(PermissionError, match="no more state"):
        calls(guest, "pvalue")
    guest.close()


def test_a_request_is_made_by_the_host_with_the_secret(tmp_path: Path, server: Server) -> None:
    guest = caller(tmp_path)
    url = f"http://127.0.0.1:{server.port}/a?b=c"
    answer = asks(
        guest, "h", method="POST", url=url, headers={"Authorization": "Bearer ${secret:token}", "X-A": "1"}, body="hi ${secret:token}"
    )
    assert answer == ("hi ${secret:token}", 200), "references in a body are text"
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.headers["Authorization"], asked.headers["X-A"]) == (
        "POST",
        "/a?b=c",
        "Bearer s3cret-value",
        "1",
    )
    assert guest.ctx.audited == [(f"net 127.0.0.1:{server.port}", True)]
    guest.close()


def test_a_server_cannot_hand_the_secret_to_the_guest(tmp_path: Path, server: Server) -> None:
    server.answers["/echo"] = (200, {"X-Note": "you sent s3cret-value"}, b"you sent s3cret-value")
    guest = caller(tmp_path)
    request = {"url": f"http://127.0.0.1:{server.port}/echo", "headers": {"X-Token": "${secret:token}"}}
    assert asks(guest, "h", **request) == ("you sent ***", 200)
    assert asks(guest, "t", **request) == ("you sent ***", 200)
    guest.close()


def test_a_secret_goes_where_it_was_meant_for(tmp_path: Path, server: Server) -> None:
    guest = caller(tmp_path)
    error = refusal(guest, f"http://127.0.0.1:{server.port}/", headers={"X": "${secret:bound}"})
    assert error.code == "wasm.address-refused"
    with serving() as other:
        server.answers["/go"] = (302, {"Location": f"http://127.0.0.1:{other.port}/there"}, b"")
        server.answers["/stay"] = (302, {"Location": "/here"}, b"")
        asks(guest, "h", url=f"http://127.0.0.1:{server.port}/go", headers={"X-Token": "${secret:token}"})
        assert "X-Token" not in other.asked[0].headers, "another origin does not get it"
        asks(guest, "h", url=f"http://127.0.0.1:{server.port}/stay", headers={"X-Token": "${secret:token}"})
        assert server.asked[-1].headers["X-Token"] == "s3cret-value"
    guest.close()


def test_a_body_goes_to_no_other_server(tmp_path: Path, server: Server) -> None:
    guest = caller(tmp_path)
    with serving() as other:
        server.answers["/there"] = (307, {"Location": f"http://127.0.0.1:{other.port}/x"}, b"")
        server.answers["/here"] = (307, {"Location": "/x"}, b"")
        url = f"http://127.0.0.1:{server.port}"
        assert refusal(guest, f"{url}/there", method="POST", body="row").code == "wasm.bad-request"
        assert not other.asked
        assert asks(guest, "h", method="POST", url=f"{url}/here", body="row") == ("row", 200)
    guest.close()


@pytest.mark.parametrize("request_", [{"body_base64": "no base64"}, {"body_base64": "é"}, {"headers": {"X": "${secret:lines}"}}], ids=str)
def test_what_cannot_be_sent_is_a_bad_request(tmp_path: Path, server: Server, request_: dict) -> None:
    guest = caller(tmp_path)
    error = refusal(guest, f"http://127.0.0.1:{server.port}/", method="POST", **request_)
    assert error.code == "wasm.bad-request"
    assert "hush" not in str(error)
    assert not server.asked
    guest.close()


def test_every_hop_is_judged(tmp_path: Path, server: Server) -> None:
    guest = caller(tmp_path, f"{{host: 127.0.0.1, port: {server.port}, private: true}}")
    with serving() as other:
        server.answers["/out"] = (302, {"Location": f"http://127.0.0.1:{other.port}/inside"}, b"")
        server.answers["/meta"] = (302, {"Location": "http://169.254.169.254/latest"}, b"")
        server.answers["/name"] = (307, {"Location": f"http://localhost:{server.port}/inside"}, b"")
        server.answers["/file"] = (302, {"Location": "file:///etc/passwd"}, b"")
        server.answers["/round"] = (302, {"Location": "/round"}, b"")
        base = f"http://127.0.0.1:{server.port}"
        codes = {path: refusal(guest, base + path).code for path in ("/out", "/meta", "/name", "/file", "/round")}
        assert not other.asked
    assert codes == {
        "/out": "wasm.address-refused", "/meta": "wasm.address-refused", "/name": "wasm.address-refused",
        "/file": "wasm.bad-request", "/round": "wasm.bad-request",
    }  # fmt: skip
    assert [a.path for a in server.asked].count("/round") == rules.HOPS + 1
    assert ("net 169.254.169.254:80", False) in guest.ctx.audited
    guest.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "fd00::1",
     "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "192.0.2.1", "240.0.0.1", "::"],
)  # fmt: skip
def test_private_addresses_are_refused_after_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80)), (family, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: both)
    monkeypatch.setattr(web_connection._Line, "connect", lambda self: pytest.fail("it was connected to"))
    guest = caller(tmp_path, '{host: "*"}')
    error = refusal(guest, "http://acme.example/")
    assert (error.code, error.exit_code) == ("wasm.address-refused", 6)
    assert address in str(error)
    guest.close()


def test_a_name_cannot_change_its_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """The name is resolved once; the connection goes to the address that was judged."""
    answers = iter([("127.0.0.1", server.port)])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", next(answers))])
    guest = caller(tmp_path, f"{{host: acme.example, port: {server.port}, private: true}}")
    assert asks(guest, "h", url=f"http://acme.example:{server.port}/x")[1] == 200
    assert server.asked[0].headers["Host"] == f"acme.example:{server.port}"
    guest.close()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://127.0.0.1/", "wasm.bad-request"), ("http://user@127.0.0.1/", "wasm.bad-request"), ("http:///x", "wasm.bad-request"),
        ("http://127.0.0.1:99999/", "wasm.bad-request"), ("http://127.0.0.1/\r\nX: y", "wasm.bad-request"), ("http://127.0.0.1/ x", "wasm.bad-request"),
        ("http://acme.example/", "wasm.address-refused"), ("http://127.1/", "wasm.address-refused"), ("http://2130706433/", "wasm.address-refused"),
        ("http://[::ffff:127.0.0.1]/", "wasm.address-refused"),
    ],
)  # fmt: skip
def test_urls_that_are_none_or_not_meant(tmp_path: Path, url: str, code: str) -> None:
    guest = caller(tmp_path)
    assert refusal(guest, url).code == code
    guest.close()


@pytest.mark.parametrize(
    "headers", [{"Host": "x"}, {"A\r\nB": "x"}, {"A": "x\r\nB: y"}, {"Content-Length": "1"}, {"Transfer-Encoding": "chunked"}]
)
def test_headers_that_would_change_the_request_are_refused(tmp_path: Path, server: Server, headers: dict) -> None:
    guest = caller(tmp_path)
    assert refusal(guest, f"http://127.0.0.1:{server.port}/", headers=headers).code == "wasm.bad-request"
    assert not server.asked
    guest.close()


def test_ports_and_domains_of_grants(tmp_path: Path) -> None:
    allows = lambda grant, host, port: web._allows(grant, host, port)  # noqa: E731
    assert allows({"host": "acme.example"}, "ACME.example.", 443)
    assert not allows({"host": "acme.example"}, "acme.example", 8080), "without a port only those of http and https"
    assert allows({"host": "*.acme.example", "port": "8080"}, "api.acme.example", 8080)
    assert not allows({"host": "*.acme.example"}, "acme.example", 443)
    assert not allows({"host": "*.acme.example"}, "evilacme.example", 443)
    assert not allows({}, "acme.example", 443)


def test_an_answer_that_does_not_come_is_tried_again_and_one_too_long_is_refused(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = caller(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    error = refusal(guest, f"http://127.0.0.1:{port}/")
    assert (error.code, isinstance(error, RetriableError)) == ("wasm.unreachable", True)
    monkeypatch.setattr(web, "MOST", 1000)
    server.answers["/long"] = (200, {}, b"x" * 2000)
    assert refusal(guest, f"http://127.0.0.1:{server.port}/long").code == "wasm.bad-request"
    guest.close()


def test_a_server_that_drips_is_cut_off_at_the_deadline(tmp_path: Path) -> None:
    import threading

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stop.wait(0.02):
                    try:
                        peer.sendall(b"a")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        ctx = Context(tmp_path)
        asking = web.Web(ctx, {"net": [{"host": "127.0.0.1", "port": "*", "private": True}]}, 0.3)
        with pytest.raises(DataflareError) as caught:
            asking.send({"url": f"http://127.0.0.1:{listening.getsockname()[1]}/"})
        stop.set()
        thread.join()
    assert caught.value.code == "wasm.unreachable"


def test_malformed_requests_are_the_plugins_fault(tmp_path: Path) -> None:
    guest = caller(tmp_path)
    for text in (
        "h{",
        "h[]",
        'h{"url": 1}',
        'h{"url": "http://127.0.0.1/", "method": "BREW"}',
        'h{"url": "http://127.0.0.1/", "body_base64": "?"}',
    ):
        with pytest.raises(DataflareError) as caught:
            calls(guest, text)
        assert caught.value.code == "wasm.bad-request", text
    guest.close()
