"""What the tests of `webhook` share: a source that listens, asked by `http.client` and read by hand."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.servers.processes import free_port

from dataflare_plugins.webhook.source import WebhookSource
from dataflare_sdk import Batch, ExtractSpec, Pause
from dataflare_sdk.testing import FakeContext

HOOK = ExtractSpec(mode="incremental")
COLUMNS = {"n": "BIGINT", "s": "VARCHAR"}


class Hook:
    """A webhook that listens on a free port."""

    def __init__(self, folder: Path, offset: Any = None, until: Any = None, **config: Any) -> None:
        self.ctx = FakeContext(folder, "hook", on_record="dead_letter")
        self.ctx.linger = 0.0
        self.port = config.pop("port", None) or free_port()
        settings = {"port": self.port, "columns": COLUMNS, **config}
        if settings.get("format", "json") != "json":
            settings.pop("columns")
        self.source = WebhookSource(WebhookSource.configure(settings), self.ctx)
        stream = self.source.discover(HOOK, offset)[0]
        self.part = self.source.partitions(stream, HOOK)[0]
        self.reader = self.source.open(self.part, HOOK, offset, until)
        self.offset = offset
        self.batches: list[Batch] = []

    def read(self, count: int = 1, rows: int = 1000) -> Hook:
        """Read until there are `count` rows and rejections more, or a pause."""
        end = time.monotonic() + 20
        got = 0
        while got < count:
            assert time.monotonic() < end, f"{got} of {count} came"
            found = self.reader.read(rows, 1 << 20, time.monotonic() + 0.2)
            if isinstance(found, Pause):
                break
            if found is not None:
                self.batches.append(found)
                self.offset = json.loads(json.dumps(found.offset))
                got += found.data.num_rows + len(found.rejected)
        return self

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for b in self.batches for row in b.data.to_pylist()]

    @property
    def rejected(self) -> list[Any]:
        return [r for b in self.batches for r in b.rejected]

    def ack(self) -> None:
        self.source.ack(self.part, self.offset)

    def close(self) -> None:
        self.source.close()


def post(port: int, body: bytes | str, path: str = "/", method: str = "POST", **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Make one request on a connection of its own; return status, answer and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}"), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def raw(port: int, data: bytes, *, shut: bool = False, seconds: float = 10.0) -> bytes:
    """Send bytes as they are and return all that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(data)
        if shut:
            sock.shutdown(socket.SHUT_WR)
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)
