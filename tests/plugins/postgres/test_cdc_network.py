"""The network is cut, again and again, while tables are copied and followed."""

from __future__ import annotations

import random
import threading

import pytest
from tests.plugins.postgres.capturing import Writers, mixed, oracle
from tests.servers.proxy import Proxy

from dataflare_plugins.postgres.replication import snapshot
from dataflare_sdk import RetriableError


@pytest.fixture
def proxy(postgres):
    made = Proxy(postgres.server.port)
    yield made
    made.close()


def test_cut_again_and_again(postgres, made, proxy, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 40)
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int)")
    postgres.execute("INSERT INTO t SELECT i, 'old', NULL, 0 FROM generate_series(1, 400) i")
    url = postgres.url.replace(f":{postgres.server.port}/", f":{proxy.port}/")
    engine = made(postgres, ["t"], {"t": ("id",)}, url=url)
    rng = random.Random(7)
    cuts = 0
    with Writers(postgres, mixed, seed=7):
        while cuts < 15:
            timer = threading.Timer(rng.random() * 0.4, proxy.cut)
            timer.start()
            try:
                engine.start()
                engine.steps(12, seconds=0.05)
            except RetriableError:
                cuts += 1
            finally:
                timer.join()
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
