"""The rules of HTTP that every client shares, and the connection that all of them use."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare_sdk import web
from dataflare_sdk.web_connection import WebConnection, failure


@pytest.mark.parametrize(
    "text",
    [
        "", "/a", "ftp://h/", "http://", "http:///a", "http://u@h/", "http://u:p@h/", "http://:p@h/", "http://h:99999/", "http://h:x/", "http://h:0/",
        "http://h/a b", "http://h/é", "http://h/?q=é", "http://h/a\tb", "http://h/a\nb", "http://h/\x7f", "http://h/\x01", " http://h/", "http://[::1/", "http://h\u2100/",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port 0") as caught:
        web.address(text)
    assert len(text) < 8 or text not in str(caught.value)


def test_an_address_names_its_server() -> None:
    assert web.origin(web.address("HTTPS://Shop.Example/a?b#c")) == ("https", "shop.example", 443)
    assert web.origin(web.address("https://shop.example:443")) == web.origin(web.address("https://shop.example/x"))
    assert web.target(web.address("http://h?a=b#c")) == "/?a=b"
    assert web.shown(web.address("http://[::1]:80/key?token=1")) == "http://[::1]:80"
    assert web.origin(web.address("http://bücher.example/"))[1] == "bücher.example"


@pytest.mark.parametrize(
    ("path", "climbs"),
    [
        ("/a/../b", True),
        ("/..", True),
        ("/.", True),
        ("/a/.", True),
        ("/a/./b", True),
        ("/...", False),
        ("/a..b", False),
        ("/a/..b?x=/../", False),
    ],
)
def test_a_path_that_climbs(path: str, climbs: bool) -> None:
    assert web.climbs(path) is climbs


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [("X-A", "a b\tc", True), ("X A", "a", False), ("", "a", False), ("X\n", "a", False), ("Host", "a", False), ("hOsT", "a", False),
     ("X", "a\r\nB: c", False), ("X", "\u20ac", False), ("X", "é", False), ("X", "\x00", False)],
)  # fmt: skip
def test_headers(name: str, value: str, good: bool) -> None:
    wrong = web.bad_header(name, value)
    assert (wrong is None) is good
    assert wrong is None or (wrong.isprintable() and (len(value) < 2 or value not in wrong))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), (" 7 ", 7.0), ("9" * 400, web.LONGEST), ("Thu, 01 Jan 1970 00:02:10 GMT", 30.0), ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", web.LONGEST), ("", None), ("-1", None), ("1.5", None), ("soon", None), ("\xb2", None), ("Thu, 01 Jan 99999 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_how_long_a_server_wants_to_be_left_alone(text: str, seconds: float | None) -> None:
    assert web.asked_pause({"retry-after": text}, now=100.0) == seconds
    assert web.asked_pause({}) is None


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40))
def test_no_text_of_a_server_is_a_bug_of_ours(text: str) -> None:
    found = web.asked_pause({"retry-after": text}, now=0.0)
    assert found is None or 0 <= found <= web.LONGEST
    with contextlib.suppress(ValueError):
        there = web.onward(web.address("http://h/a"), 302, text, "GET", None)
        assert there is not None
        assert web.address(there[0].geturl()) == there[0]


@pytest.mark.parametrize(
    ("url", "status", "place", "method", "body", "wanted"),
    [
        ("http://h/a", 200, "/b", "GET", None, None),
        ("http://h/a", 302, None, "GET", None, None),
        ("http://h/a", 302, "/b", "GET", None, ("http://h/b", "GET", None)),
        ("http://h/a", 302, "/b", "POST", b"x", ("http://h/b", "GET", None)),
        ("http://h/a", 302, "http://other/b", "POST", b"x", ("http://other/b", "GET", None)),
        ("http://h/a", 303, "/b", "PUT", b"x", ("http://h/b", "GET", None)),
        ("http://h/a", 303, "/b", "HEAD", None, ("http://h/b", "HEAD", None)),
        ("http://h/a", 307, "b?c=d", "POST", b"x", ("http://h/b?c=d", "POST", b"x")),
        ("http://h/a", 308, "http://h:80/b", "PUT", b"x", ("http://h:80/b", "PUT", b"x")),
        ("http://h/a", 302, "https://h/b", "PUT", b"x", "another server"),
        ("http://h/a", 307, "http://h:81/b", "POST", b"x", "another server"),
        ("https://h/a", 302, "http://h/b", "GET", None, "not encrypted"),
        ("http://h/a", 302, "file:///etc/passwd", "GET", None, "begins with"),
        ("http://h/a", 302, "http://u:p@h/b", "GET", None, "no user"),
        ("http://h/a", 302, "/\xc3\xa9 x", "GET", None, ("http://h/%C3%A9%20x", "GET", None)),
    ],
)  # fmt: skip
def test_where_a_redirect_may_lead(url: str, status: int, place: str | None, method: str, body: bytes | None, wanted: Any) -> None:
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            web.onward(web.address(url), status, place, method, body)
    else:
        found = web.onward(web.address(url), status, place, method, body)
        assert (found and (found[0].geturl(), *found[1:])) == wanted


def test_secrets_are_hidden_and_words_are_not() -> None:
    secrets = web.secrets_of({"A": "Bearer abcdef", "B": "hush ", "C": "text/html; q=1", "D": ""})
    assert web.hidden("abcdef is no Bearer abcdef, hush", secrets) == "*** is no ***, ***"
    assert web.hidden("a page of words", secrets) == "a page of words"


Peer = Callable[[socket.socket, int], None]


@contextlib.contextmanager
def peer(act: Peer) -> Iterator[str]:
    """A server that does as it is told with each connection, numbered from 0."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for number in range(100):
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                with one, contextlib.suppress(OSError):
                    act(one, number)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def heard(one: socket.socket) -> bytes:
    """Return a request without a body."""
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        part = one.recv(65536)
        if not part:
            raise OSError
        text += part
    return text


def asked(url: str, most: int = 100, until: float | None = None, **headers: str) -> Any:
    connection = WebConnection(30.0, most)
    try:
        return connection.ask("GET", web.address(url), None, headers, until=until)
    finally:
        connection.close()


def test_nothing_packed_is_asked_for_and_a_header_is_sent_once() -> None:
    """Nothing is unpacked, so nothing can swell."""
    seen = list[bytes]()

    def act(one: socket.socket, _: int) -> None:
        seen.append(heard(one))
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08")

    with peer(act) as url:
        answer = asked(url, **{"accept-ENCODING": "gzip", "X-A": "1", "x-a": "2"})
    assert answer.body == b"\x1f\x8b\x08"
    lines = [line.lower() for line in seen[0].split(b"\r\n")]
    assert [line for line in lines if line.startswith((b"accept-encoding", b"x-a"))] == [b"accept-encoding: identity", b"x-a: 2"]


@pytest.mark.parametrize("head", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked", b"X: no length"])
def test_an_answer_without_end_is_cut(head: bytes) -> None:
    sent = [0]

    def act(one: socket.socket, _: int) -> None:
        heard(one)
        one.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        piece = b"x" * 1000
        while True:
            one.sendall(b"3e8\r\n" + piece + b"\r\n" if b"chunked" in head else piece)
            sent[0] += len(piece)

    with peer(act) as url:
        answer = asked(url)
    assert (answer.whole, len(answer.body)) == (False, 100)


def test_an_answer_that_breaks_off_is_none() -> None:
    def act(one: socket.socket, _: int) -> None:
        heard(one)
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[1, 2")

    with peer(act) as url, pytest.raises(http.client.IncompleteRead):
        asked(url)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 2"], ids=["headers", "body", "status"])
def test_an_answer_that_drips_meets_its_deadline(head: bytes) -> None:
    """Each byte comes within the time that one read may take."""
    over = threading.Event()

    def act(one: socket.socket, _: int) -> None:
        heard(one)
        one.sendall(head)
        while not over.wait(0.01):
            one.sendall(b"a")

    with peer(act) as url:
        try:
            with pytest.raises(TimeoutError):
                asked(url, 1 << 20, until=time.monotonic() + 0.2)
        finally:
            over.set()


def test_a_kept_connection_that_the_server_closed_is_made_once_more_and_a_new_one_is_not() -> None:
    count = [0]

    def act(one: socket.socket, number: int) -> None:
        count[0] += 1
        if number >= 2:
            return
        heard(one)
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with peer(act) as url:
        connection = WebConnection(30.0, 100)
        for _ in range(2):
            assert connection.ask("GET", web.address(url), None, {}).body == b"ok"
        with pytest.raises(ConnectionError):
            connection.ask("GET", web.address(url), None, {})
        with pytest.raises(ConnectionError):
            connection.ask("GET", web.address(url), None, {})
        connection.close()
    assert count[0] == 4


def test_a_failure_shows_nothing_that_was_sent() -> None:
    with pytest.raises(ValueError, match="hush") as caught:
        WebConnection(30.0, 100).ask("GET", web.address("http://127.0.0.1:9/"), None, {"X": "hush\r\nY: z"})
    assert "hush" not in failure(caught.value)[0]
