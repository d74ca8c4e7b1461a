"""P5: a web service as a lookup, over a real server on this machine that can fail in every way."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pytest
from tests.plugins.enrich.enriching import by_duckdb, same
from tests.servers.tls import certificate

from dataflare_plugins.enrich import asking
from dataflare_sdk import DataflareError, RetriableError
from dataflare_sdk.testing import LookupSuite

LOOKUP = pa.table(
    {"id": pa.array([1, 2, 3, 3], pa.int64()), "name": ["one", "two", "three", "drei"], "tags": [["a"], [], None, ["b", "c"]]}
)
GIVEN = pa.table({"i": pa.array(range(6), pa.int64()), "k": pa.array([1, 2, 3, None, 9, 1], pa.int64())})
ON, SELECT = {"k": "id"}, {"name": "name", "tags": "tags"}
COLUMNS = {"id": "BIGINT", "name": "VARCHAR", "tags": "VARCHAR[]"}


class Shop:
    """A service of customers that notes what it is asked.

    Attributes:
        seen: method, path with query, headers and body of each request.
        act: called first; what it returns (status, headers, body) is the answer, None: the service's own.
        url: where it is.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.act: Callable[[str], tuple[int, dict[str, str], bytes] | None] = lambda _path: None
        shop = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def answer(self, body: bytes) -> None:
                shop.seen.append((self.command, self.path, dict(self.headers), body))
                status, headers, data = shop.act(self.path) or shop.answered(self.path, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that do not trust it

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def answered(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        rows = LOOKUP.to_pylist()
        parts = urlsplit(path)
        if parts.path.startswith("/one/"):
            key = unquote(parts.path.removeprefix("/one/"))
            found = [{"name": r["name"], "tags": r["tags"]} for r in rows if str(r["id"]) == key]
            return (200, {}, json.dumps(found[0] if len(found) == 1 else found).encode()) if found else (404, {}, b"<html>none</html>")
        wanted = parse_qs(parts.query).get("ids", [""])[0].split(",") if not body else [str(k) for k in json.loads(body)["filter"]["ids"]]
        return 200, {}, json.dumps({"data": {"a/b~c": [r for r in rows if str(r["id"]) in wanted]}, "more": False}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(name="shop")
def _shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


def step(enriching, **config):
    block = {"columns": COLUMNS, **config.pop("block")}
    defaults = {"on": ON, "select": SELECT, "on_many": "all", "retry": {"attempts": 2, "initial": "1ms"}}
    return enriching.step(GIVEN.schema, lookup={"use": "http_lookup", "with": block}, **{**defaults, **config})


def test_one_request_for_a_key(enriching, shop) -> None:
    made = step(enriching, block={"url": shop.url + "/one/{key}"}, concurrency=2)
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
    assert sorted(path for _, path, _, _ in shop.seen) == ["/one/1", "/one/2", "/one/3", "/one/9"]
    assert enriching.context.metrics["lookup_requests"] == 4
    assert "can only be asked" in made.notes()[0]


@pytest.mark.parametrize(
    "block", [{"url": "/many?ids={keys}"}, {"url": "/many", "body": {"filter": {"ids": "{keys}"}, "v": 1}}], ids=["get", "post"]
)
def test_many_keys_in_a_request(enriching, shop, block) -> None:
    made = step(enriching, block={**block, "url": shop.url + block["url"], "rows": "/data/a~1b~0c"}, keys=3)
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
    assert len(shop.seen) == 2


@pytest.mark.parametrize("url", ["/one/{key}", "/many?ids={keys}"])
def test_it_conforms(enriching, shop, url) -> None:
    factory = enriching.runtime.host.factory("lookup", "http_lookup")
    config = factory.configure({"url": shop.url + url, "columns": COLUMNS, "rows": "" if "key}" in url else "/data/a~1b~0c"})
    LookupSuite(lambda ctx: factory(config, ctx), rows=LOOKUP, keys=["id"], folder=enriching.folder).assert_conforms()


def test_keys_are_escaped_in_the_address(enriching, shop) -> None:
    texts = ["a/b", "a?b=c&d", "é 漢", "../secret", "{key}", "%2F", "a,b", "#"]
    shop.act = lambda path: (200, {}, json.dumps({"name": unquote(path.split("/one/")[1])}).encode())
    given = pa.table({"k": texts})
    columns = {"id": "VARCHAR", "name": "VARCHAR"}
    made = enriching.step(
        given.schema,
        lookup={"use": "http_lookup", "with": {"url": shop.url + "/one/{key}", "columns": columns}},
        on=ON,
        select={"name": "name"},
    )
    assert [r["name"] for r in enriching.over(made, given)[0]] == texts


def test_keys_of_several_columns(enriching, shop) -> None:
    shop.act = lambda path: (200, {}, json.dumps({"at": path}).encode())
    given = pa.table({"c": ["de", "fr"], "n": pa.array([1, 2], pa.int64())})
    block = {"url": shop.url + "/{country}/{number}", "columns": {"country": "VARCHAR", "number": "BIGINT", "at": "VARCHAR"}}
    made = enriching.step(
        given.schema, lookup={"use": "http_lookup", "with": block}, on={"c": "country", "n": "number"}, select={"at": "at"}
    )
    assert [r["at"] for r in enriching.over(made, given)[0]] == ["/de/1", "/fr/2"]


def test_headers_go_to_the_service_and_nowhere_else(enriching, shop) -> None:
    other = Shop()
    try:
        shop.act = lambda path: (302, {"Location": f"{other.url}{path}"}, b"") if path == "/one/2" else None
        made = step(enriching, block={"url": shop.url + "/one/{key}", "headers": {"Authorization": "Bearer hush"}})
        same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
        assert {h.get("Authorization") for _, _, h, _ in shop.seen} == {"Bearer hush"}
        assert [(path, "Authorization" in h) for _, path, h, _ in other.seen] == [("/one/2", False)]
    finally:
        other.close()


def test_what_a_request_carries_goes_to_no_other_server(enriching, shop) -> None:
    """A redirect that keeps the body would hand over a token in it, and the keys."""
    other = Shop()
    try:
        shop.act = lambda path: (307, {"Location": f"{other.url}{path}"}, b"")
        made = step(enriching, block={"url": shop.url + "/many", "body": {"token": "hush", "ids": "{keys}"}})
        with pytest.raises(DataflareError) as caught:
            enriching.over(made, GIVEN)
        assert (caught.value.code, other.seen) == ("http_lookup.refused", [])
        assert "hush" not in str(caught.value)
    finally:
        other.close()


def test_a_key_that_is_another_place_is_not_asked_for(enriching, shop) -> None:
    shop.act = lambda path: (200, {}, json.dumps({"name": path}).encode())
    given = pa.table({"k": ["..", "a", ".", "..."]})
    block = {"url": shop.url + "/one/{key}", "columns": {"id": "VARCHAR", "name": "VARCHAR"}}
    made = enriching.step(given.schema, lookup={"use": "http_lookup", "with": block}, on=ON, select={"name": "name"})
    assert [r["name"] for r in enriching.over(made, given)[0]] == [None, "/one/a", None, "/one/..."]


def test_a_service_says_when_to_ask_again(enriching, shop, monkeypatch) -> None:
    """And it is asked then, not by the pauses of `retry`, which would have used up all attempts long before."""
    due = list[float]()
    shop.act = lambda _path: (429, {"Retry-After": "30"}, b"") if not due else None
    made = step(enriching, block={"url": shop.url + "/many?ids={keys}", "rows": "/data/a~1b~0c"})

    def sleep(seconds: float) -> None:
        due.append(seconds)
        now[0] += 1

    now = [0.0]
    real = time.monotonic
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: real() + now[0]))
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
    assert len(shop.seen) == 2
    assert len(due) > 20, "each looked a second further"


def test_an_answer_that_breaks_off_is_asked_for_again(enriching, shop) -> None:
    cut = list[str]()

    def act(path: str):
        if not cut:
            cut.append(path)
            return 200, {"Content-Length": "500", "Connection": "close"}, b'[{"id": 1,'
        return None

    shop.act = act
    made = step(enriching, block={"url": shop.url + "/many?ids={keys}", "rows": "/data/a~1b~0c"})
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))


def test_a_certificate_that_nobody_vouches_for_stays_one(enriching, tmp_path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    shop = Shop(context)
    try:
        with pytest.raises(DataflareError) as caught:
            enriching.over(step(enriching, block={"url": shop.url + "/one/{key}", "headers": {"X": "hush"}}), GIVEN)
        assert (caught.value.code, isinstance(caught.value, RetriableError)) == ("http_lookup.refused", False)
    finally:
        shop.close()


def test_a_redirect_within_the_service_is_followed_and_one_for_ever_is_not(enriching, shop) -> None:
    shop.act = lambda path: (307, {"Location": path.replace("/old", "/one")}, b"") if path.startswith("/old") else None
    made = step(enriching, block={"url": shop.url + "/old/{key}", "headers": {"X-Key": "k"}})
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
    assert all(h["X-Key"] == "k" for _, _, h, _ in shop.seen)
    shop.act = lambda path: (302, {"Location": path}, b"")
    with pytest.raises(DataflareError) as caught:
        enriching.over(step(enriching, block={"url": shop.url + "/one/{key}"}), GIVEN)
    assert caught.value.code == "http_lookup.refused"


@pytest.mark.parametrize("status", [425, 429, 500, 503, 507, 520])
def test_a_status_that_may_pass_is_tried_again(enriching, shop, status) -> None:
    failed: set[str] = set()

    def act(path: str):
        if path in failed:
            return None
        failed.add(path)
        return status, {}, b"busy"

    shop.act = act
    same(
        enriching.over(step(enriching, block={"url": shop.url + "/many?ids={keys}", "rows": "/data/a~1b~0c"}), GIVEN)[0],
        by_duckdb(GIVEN, LOOKUP, ON, SELECT),
    )
    assert len(shop.seen) == 2
    shop.act = lambda _path: (status, {}, b"")
    with pytest.raises(RetriableError) as caught:
        enriching.over(step(enriching, block={"url": shop.url + "/one/{key}"}), GIVEN)
    assert caught.value.code == "http_lookup.unavailable"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_an_error(enriching, shop, status) -> None:
    shop.act = lambda _path: (status, {}, b"no")
    with pytest.raises(DataflareError) as caught:
        enriching.over(step(enriching, block={"url": shop.url + "/many?token=hush&ids={keys}"}, on_outage="keep"), GIVEN)
    assert caught.value.code == "http_lookup.refused"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"{", b"\xff\xfe", b'{"id": "x", "name": "n"}', b"[1, 2]x"])
def test_an_answer_that_is_none_is_an_error(enriching, shop, body) -> None:
    shop.act = lambda _path: (200, {}, body)
    with pytest.raises(DataflareError) as caught:
        enriching.over(step(enriching, block={"url": shop.url + "/one/{key}"}), GIVEN)
    assert caught.value.code == "http_lookup.bad-answer"


@pytest.mark.parametrize("body", [b"[]", b"null", b"{}", b'{"other": 1}', b"7", b'"text"'])
def test_an_answer_without_rows_is_a_miss(enriching, shop, body) -> None:
    shop.act = lambda _path: (200, {}, body)
    made = step(enriching, block={"url": shop.url + "/one/{key}"}, on_miss="keep", select={"name": "name"})
    assert {r["name"] for r in enriching.over(made, GIVEN)[0]} == {None}


def test_an_answer_has_a_size(enriching, shop) -> None:
    shop.act = lambda _path: (200, {}, b" " * 5_000 + b"{}")
    with pytest.raises(DataflareError, match="larger than 4096 bytes"):
        enriching.over(step(enriching, block={"url": shop.url + "/one/{key}", "max_bytes": "4KiB"}), GIVEN)


def test_a_service_that_is_slow_or_gone_is_an_outage(enriching, shop) -> None:
    go = threading.Event()
    shop.act = lambda _path: go.wait(30) and None
    made = step(enriching, block={"url": shop.url + "/many?ids={keys}", "rows": "/data/a~1b~0c"}, timeout="100ms", on_outage="dead_letter")
    rows, rejected = enriching.over(made, GIVEN)
    assert [r["k"] for r in rows] == [None]
    assert {r.code for r in rejected} == {"data.lookup-outage"}
    go.set()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(RetriableError) as caught:
        enriching.over(step(enriching, block={"url": f"http://127.0.0.1:{port}/{{key}}"}), GIVEN)
    assert caught.value.code == "http_lookup.unavailable"


def test_a_connection_is_kept_and_made_anew_when_the_service_closed_it(enriching, shop) -> None:
    """The service closes without a word after each answer: that is no failure."""
    made = step(enriching, block={"url": shop.url + "/one/{key}"}, concurrency=1, retry={"attempts": 1})
    enriching.over(made, GIVEN)
    connection = made._keyed._asker._idle[0]._lookup._service._connection
    kept = connection._line
    assert kept.sock is not None
    kept.sock.shutdown(socket.SHUT_RDWR)
    same(enriching.over(made, GIVEN)[0], by_duckdb(GIVEN, LOOKUP, ON, SELECT))
    assert connection._line is not kept


def test_no_more_requests_at_once_than_allowed(enriching, shop) -> None:
    running, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(3)

    def act(_path: str):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait(30)
        with lock:
            running[0] -= 1
        return 404, {}, b""

    shop.act = act
    given = pa.table({"i": range(9), "k": pa.array(range(9), pa.int64())})
    enriching.over(step(enriching, block={"url": shop.url + "/one/{key}"}, concurrency=3), given)
    assert most[0] == 3


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"url": "ftp://x/{key}"}, "url"), ({"url": "http://u:p@x/{key}"}, "url"), ({"url": "http://x/"}, "url"), ({"url": "http://x/{key"}, "url"),
        ({"url": "http://x/{key}", "rows": "data"}, "rows"), ({"url": "http://x/{key}", "columns": {"id": "NONSENSE"}}, "columns.id"),
        ({"url": "http://x/a b/{key}?t=hush"}, "url"), ({"url": "http://x/é/{key}"}, "url"), ({"url": "http://{key}.x/"}, "url"),
        ({"url": "http://x/{key}", "headers": {"A": "hush\nB: c"}}, "headers.A"), ({"url": "http://x/{key}", "headers": {"A": "\u20ac"}}, "headers.A"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_asked(enriching, block, path) -> None:
    with pytest.raises(DataflareError) as caught:
        step(enriching, block=block)
    assert caught.value.problems[0].path == f"lookup.with.{path}"
    assert "hush" not in str(caught.value)


def test_an_address_without_a_place_for_the_key_is_refused(enriching) -> None:
    with pytest.raises(DataflareError, match="none of the keys id"):
        step(enriching, block={"url": "http://127.0.0.1:1/{customer}"})
