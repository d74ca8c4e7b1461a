"""Every refusal has its code, its place, its mend, and no password in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.messaging import message, reading, values
from tests.servers.nats import NatsServer
from tests.servers.tls import certificate

from dataflare_plugins.nats.connection import parse_url
from dataflare_plugins.nats.source import NatsSource
from dataflare_sdk import DataflareError
from dataflare_sdk.servers import free_port

PASSWORD = "correct-horse"


def caught(act: Callable[[], Any], code: str, exit_code: int, path: str | None = None) -> DataflareError:
    with pytest.raises(DataflareError) as found:
        act()
    problem = found.value.problems[0]
    assert (problem.code, found.value.exit_code) == (code, exit_code), str(found.value)
    assert problem.fix
    assert PASSWORD not in str(found.value)
    if path is not None:
        assert problem.path == path
    return found.value


def source(folder: Path, **options: Any) -> Callable[[], Any]:
    def act() -> None:
        with reading(NatsSource, folder, **{"stream": "S", **options}) as read:
            read.source.check()

    return act


@pytest.mark.parametrize(
    "url", ["http://u:correct-horse@h", "nats://u:correct-horse@h:x", "nats://correct-horse@h/db", "nats://correct-horse@h?verify=no"]
)
def test_urls(url: str, tmp_path: Path) -> None:
    caught(source(tmp_path, url=url), "nats.bad-url", 3, "url")


def test_options(tmp_path: Path) -> None:
    caught(source(tmp_path, url="nats://h", stream="S.x"), "config.invalid", 3, "stream")
    caught(source(tmp_path, url="nats://h", durable="a b"), "config.invalid", 3, "durable")
    caught(source(tmp_path, url="nats://h", subjects=["a b"]), "config.invalid", 3, "subjects")
    caught(source(tmp_path, url="nats://h", start="soon"), "config.invalid", 3, "start")


def test_the_world(nats_server: NatsServer, tmp_path: Path) -> None:
    error = caught(source(tmp_path, url=f"nats://u:{PASSWORD}@127.0.0.1:{free_port()}"), "nats.unreachable", 4, "url")
    assert type(error).__name__ == "RetriableError"
    caught(source(tmp_path, url=nats_server.url), "nats.no-stream", 4, "stream")


def test_a_server_without_jetstream(own_nats: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = own_nats({"jetstream": False})
    caught(source(tmp_path, url=server.url), "nats.no-jetstream", 4, "url")


@pytest.mark.parametrize("how", ["user", "token"])
def test_users_tokens_and_tls(how: str, own_nats: Callable[..., NatsServer], tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    pem.chmod(0o644)
    who = {"user": "app", "password": PASSWORD} if how == "user" else {"token": PASSWORD}
    server = own_nats({"authorization": who, **({"tls": {"cert_file": str(pem), "key_file": str(pem)}} if how == "user" else {})})
    login = f"app:{PASSWORD}" if how == "user" else PASSWORD
    options = ""
    if how == "user":
        import ssl

        context = ssl.create_default_context(cafile=str(pem))
        context.check_hostname = False
        server.login = {"user": "app", "password": PASSWORD, "tls": context}
        options = f"?ca={pem}&verify=off"
        caught(source(tmp_path, url=f"nats://{login}@localhost:{server.port}"), "nats.unreachable", 4, "url")  # nobody vouches for it
    else:
        server.login = {"token": PASSWORD}
    server.stream("S", ["s.>"])
    server.publish("s.a", [message(7)])
    caught(source(tmp_path, url=f"nats://wrong-{login}@localhost:{server.port}{options}"), "nats.denied", 4, "url")
    with reading(NatsSource, tmp_path, url=f"nats://{login}@localhost:{server.port}{options}", stream="S") as read:
        assert values(read.batches()) == [7]


@pytest.mark.parametrize("url", ["nats://app:12/secret@broker:4222", "nats://app:12#secret@broker", "nats://app:se/cret@b?secret=1"])
def test_a_password_that_is_not_escaped_is_shown_nowhere(url: str) -> None:
    with pytest.raises(DataflareError) as found:
        parse_url(url)
    assert found.value.code == "nats.bad-url"
    assert "secret" not in str(found.value).replace("secret=", "")
