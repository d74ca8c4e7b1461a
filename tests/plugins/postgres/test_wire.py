"""The bytes off the socket and, where it is encrypted, libpq's messages: the same rows and changes."""

from __future__ import annotations

import json

import pytest
from tests.plugins.postgres.capturing import Writers, mixed, oracle
from tests.servers.tls import TlsFront

import dataflare


@pytest.fixture
def front(postgres, tmp_path):
    made = TlsFront(postgres.server.port, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["socket", "tcp", "tls"])
def url(request, postgres, front):
    """The database's URL, over each transport."""
    if request.param == "socket":
        return postgres.socket_url
    if request.param == "tcp":
        return postgres.url + "?sslmode=disable"
    return postgres.url.replace(f":{postgres.server.port}/", f":{front.port}/") + "?sslmode=require"


def test_changes(postgres, made, url, front):
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int)")
    postgres.execute("INSERT INTO t SELECT i, 'old', NULL, 0 FROM generate_series(1, 400) i")
    engine = made(postgres, ["t"], {"t": ("id",)}, url=url)
    engine.start()
    with Writers(postgres, mixed, seed=3):
        engine.steps(40, seconds=0.05)
        postgres.execute("INSERT INTO t SELECT i, repeat('x', 3000000), repeat('y', i), 1 FROM generate_series(100001, 100008) i")
        engine.steps(20, seconds=0.05)
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert bool(front.taken) == ("sslmode=require" in url)


def test_the_server_says_why_it_ends_a_stream(postgres, made, url):
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY)")
    engine = made(postgres, ["t"], {"t": ("id",)}, url=url)
    engine.start()
    engine.steps(10, seconds=0.05)
    postgres.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    with pytest.raises(dataflare.DataflareError, match="administrator command") as caught:
        engine.steps(100, seconds=0.1)
    assert caught.value.code == "postgres.connection-lost"


def test_rows_handed_over(postgres, url, front, tmp_path):
    postgres.execute("CREATE TABLE src AS SELECT i AS id, repeat('x', i % 5000) AS v FROM generate_series(1, 5000) i")
    workflow = {
        "name": "copy",
        "sources": {"s": {"use": "postgres", "with": {"url": url, "table": "public.src"}}},
        "destinations": {"t": {"use": "postgres", "with": {"url": url, "table": "public.dst"}}},
    }
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    dataflare.run(tmp_path / "w.json", check=True)
    assert postgres.psql("SELECT * FROM dst ORDER BY id") == postgres.psql("SELECT * FROM src ORDER BY id")
    assert bool(front.taken) == ("sslmode=require" in url)


@pytest.mark.parametrize("state", ["22012", "ZZ123"])
def test_a_query_that_the_server_refuses_on_the_way(postgres, url, tmp_path, state):
    postgres.execute(
        f"CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF i > 900 THEN RAISE 'enough of it' USING ERRCODE = '{state}'; "
        "END IF; RETURN i; END $$"
    )
    workflow = {
        "name": "refused",
        "sources": {"s": {"use": "postgres", "with": {"url": url, "query": "SELECT f(i) AS n FROM generate_series(1, 1000) i"}}},
        "destinations": {"t": {"use": "postgres", "with": {"url": url, "table": "public.dst"}}},
    }
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    with pytest.raises(dataflare.DataflareError, match="enough of it") as caught:
        dataflare.run(tmp_path / "w.json", check=True)
    assert caught.value.code == "postgres.bad-query"
    assert postgres.execute("SELECT count(*) FROM pg_class WHERE relname = 'dst'") == [(0,)]
