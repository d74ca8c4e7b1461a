"""Every refusal has its code, its place, its mend, and no password in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.messaging import message, reading, values
from tests.servers.redis import RedisServer
from tests.servers.tls import certificate

from dataflare_plugins.redis.source import RedisSource
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
        with reading(RedisSource, folder, **{"streams": ["a"], **options}) as read:
            read.source.check()

    return act


@pytest.mark.parametrize(
    "url", ["http://u:correct-horse@h", "redis://u:correct-horse@h:x/0", "redis://:correct-horse@h/one", "redis://:correct-horse@h/0?db=1"]
)
def test_urls(url: str, tmp_path: Path) -> None:
    caught(source(tmp_path, url=url), "redis.bad-url", 3, "url")


def test_options(tmp_path: Path) -> None:
    caught(source(tmp_path, url="redis://h", streams=["a", "a"]), "config.invalid", 3, "streams")
    caught(source(tmp_path, url="redis://h", start="soon"), "config.invalid", 3, "start")
    caught(source(tmp_path, url="redis://h", fields=True, field="x"), "config.invalid", 3, "fields")


def test_the_world(redis_server: RedisServer, tmp_path: Path) -> None:
    error = caught(source(tmp_path, url=f"redis://:{PASSWORD}@127.0.0.1:{free_port()}"), "redis.unreachable", 4, "url")
    assert type(error).__name__ == "RetriableError"
    caught(source(tmp_path, url=redis_server.url), "redis.no-stream", 4, "streams[0]")
    redis_server.cli("SET", "a", "x")
    caught(source(tmp_path, url=redis_server.url), "redis.not-a-stream", 4, "streams[0]")


def test_the_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    error = caught(source(tmp_path, url="redis://h"), "redis.no-driver", 4)
    assert error.problems[0].fix == "pip install 'dataflare[redis]'"


def test_users_and_tls(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    port = free_port()
    pem = certificate(tmp_path)
    tmp_path.chmod(0o755)
    pem.chmod(0o644)
    for folder in tmp_path.parents:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    tls = ["--tls-port", str(port), "--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(pem)]
    server = own_redis([*tls, "--tls-auth-clients", "no"])
    server.cli("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~a", "+@stream", "-xadd", "+multi", "+exec", "+client", "+ping", "+select")
    server.cli("XADD", "a", "*", "data", message(7).decode())
    place = f"127.0.0.1:{server.port}/0"
    caught(source(tmp_path, url=f"redis://app:wrong-{PASSWORD}@{place}"), "redis.denied", 4, "url")
    caught(source(tmp_path, url=f"redis://app:{PASSWORD}@{place}", streams=["b"]), "redis.permission", 4)
    secure = f"rediss://app:{PASSWORD}@localhost:{port}/0"
    caught(source(tmp_path, url=secure), "redis.unreachable", 4, "url")  # nobody vouches for the certificate
    with reading(RedisSource, tmp_path, url=f"{secure}?ssl_ca_certs={pem}&ssl_check_hostname=false", streams=["a"]) as read:
        assert values(read.batches()) == [7]
