"""JSON messages of a broker → filter → Parquet, beside the loop one would write by hand with the broker's library."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import ours, same_rows
from tests.benchmarks.measure import Case, Contestant, python
from tests.servers import nats, redis

MESSAGES = 1_000_000
COLUMNS = {"id": "BIGINT", "device": "VARCHAR", "at": "VARCHAR", "temperature": "DOUBLE", "ok": "BOOLEAN"}
WHERE = "ok and temperature > 20"
REDIS, NATS = "JSON of Redis → filter → Parquet", "JSON of NATS → filter → Parquet"
LIMIT = 0.2
"""A fifth of the time of the loop."""

END = """
import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq
def write(rows):
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.filter(pc.and_(table['ok'], pc.greater(table['temperature'], 20))), {out!r})
"""
REDIS_LOOP = """
import asyncio, json, redis.asyncio
async def main():
    client, rows, last = redis.asyncio.Redis(port={port}), [], '0'
    while len(rows) < {count}:
        for _, entries in await client.xread({{'s': last}}, count=10000):
            for id, fields in entries:
                rows.append(json.loads(fields[b'data']))
            last = id
    await client.aclose()
    write(rows)
asyncio.run(main())
"""
NATS_LOOP = """
import asyncio, json, nats
async def main():
    client, rows = await nats.connect('nats://127.0.0.1:{port}'), []
    config = nats.js.api.ConsumerConfig(ack_policy='none')
    taken = await client.jetstream().pull_subscribe('s.>', stream='S', config=config)
    while len(rows) < {count}:
        for message in await taken.fetch(min(1000, {count} - len(rows))):
            rows.append(json.loads(message.data))
    await client.close()
    write(rows)
asyncio.run(main())
"""


def payloads(count: int) -> Iterator[bytes]:
    """Make the messages."""
    for i in range(count):
        made = {"id": i, "device": f"device-{i % 997}", "at": f"2026-01-31T12:00:{i % 60:02}Z", "temperature": i % 400 / 8, "ok": i % 3 > 0}
        yield json.dumps(made).encode()


@contextlib.contextmanager
def brokers(folder: Path, count: int = MESSAGES) -> Iterator[list[Case]]:
    """Start the brokers that are installed, fill them, and give the cases over them."""
    cases, servers = [], []
    try:
        if redis.installed():
            servers.append(redis.RedisServer(["--appendfsync", "no"]).start())
            _sent(servers[-1].port, b"".join(_entry(p) for p in payloads(count)) + b"PING\r\n", b"+PONG\r\n")
            options = {"url": servers[-1].url, "streams": ["s"]}
            cases.append(_case(folder, REDIS, "redis", options, REDIS_LOOP.format(port=servers[-1].port, count=count)))
        if nats.installed():
            servers.append(nats.NatsServer().start())
            servers[-1].stream("S", ["s.>"])
            connect = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
            _sent(
                servers[-1].port, connect + b"".join(b"PUB s.a %d\r\n%s\r\n" % (len(p), p) for p in payloads(count)) + b"PING\r\n", b"PONG"
            )
            stored: Any = None
            while stored != count:
                stored = servers[-1].run(lambda _, js: js.stream_info("S")).state.messages
            options = {"url": servers[-1].url, "stream": "S"}
            cases.append(_case(folder, NATS, "nats", options, NATS_LOOP.format(port=servers[-1].port, count=count)))
        yield cases
    finally:
        for server in servers:
            server.remove()


def _entry(payload: bytes) -> bytes:
    return b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$4\r\ndata\r\n$%d\r\n%s\r\n" % (len(payload), payload)


def _sent(port: int, data: bytes, answer: bytes) -> None:
    """Send everything and read until the answer to the last of it."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for start in range(0, len(data), 1 << 16):
            sock.sendall(data[start : start + (1 << 16)])
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 20):
                    pass
            sock.setblocking(True)
        sock.settimeout(60)
        got = b""
        while answer not in got:
            got = got[-64:] + sock.recv(1 << 20)


def _case(folder: Path, name: str, use: str, options: dict[str, Any], loop: str) -> Case:
    document = {
        "sources": {"in": {"use": use, "with": {**options, "columns": COLUMNS}}},
        "processors": [{"id": "good", "use": "filter", "with": {"where": WHERE}}],
        "destinations": {"out": {"use": "parquet", "with": {"path": "out/"}, "write": {"mode": "append"}}},
    }
    mine = ours(folder, f"messages-{use}", document, "out", "--once")
    place = folder / f"messages-{use}-loop"
    place.mkdir(parents=True, exist_ok=True)
    out = place / "out.parquet"
    theirs = Contestant("asyncio loop", python(END.format(out=str(out)) + loop), place, out)
    # By CPU: the broker is on this machine too, and both wait for it.
    return Case(name, f"{MESSAGES:,} messages of 100 bytes, with --once", mine, theirs, LIMIT, by="cpu", check=same_rows("parquet"))
