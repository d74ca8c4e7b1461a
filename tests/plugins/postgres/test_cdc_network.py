"""The network is cut, again and again, while tables are copied and followed."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

import pytest
from tests.plugins.postgres.capturing import Writers, mixed, oracle

from dataflare_plugins.postgres.replication import snapshot
from dataflare_sdk import RetriableError


class Proxy:
    """A loopback proxy whose connections can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
        for side in (a, b):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Reset every connection, in the midst of whatever it carries."""
        pairs, self._pairs = self._pairs, []
        for side in pairs:
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


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
