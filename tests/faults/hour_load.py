"""Producers of the soak of an hour: numbered JSON lines at a fixed rate into NATS JetStream and a Redis stream.

Each row is drawn from the seed: its event time goes on with its number (not with the clock, so that a server that was
away changes nothing but when rows come), up to `DISORDER` out of order, and one row in a hundred far beyond the lateness. One line
in a thousand is cut off in its midst. What a broker has acknowledged is written to a CSV file, with the place it has in its stream;
what it has not is sent again under the same id, which both brokers store once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

STREAM = "EVENTS"
"""The stream in both brokers."""
BASE = datetime(2026, 1, 1)
DISORDER, LATE = 4.0, (8.0, 20.0)
"""Seconds: how far rows stand out of order, and how much more those do that are to be late."""
CLOSING = timedelta(hours=1)
"""The last row of each stream lies so far ahead that every window before it closes."""
AT_ONCE = 500
"""Most rows that are sent before their acknowledgements are waited for."""

Row = tuple[int, bool, datetime, int, int]
"""Number, whether its line is whole, event time, key, value."""


class Producer(threading.Thread):
    """Sends every second number, from `first` on, until it is finished.

    Args:
        port: of the broker.
        acked: the file that gets what was acknowledged: `stream,place,n,good,t,k,v`.
        rate: rows per second of this producer.
        seed: of what is sent.
        first: 1 or 2.

    Attributes:
        count: rows acknowledged so far.
        error: what it ended with, if not in order.
    """

    name_of_stream: str

    def __init__(self, port: int, acked: Path, *, rate: float, seed: int, first: int) -> None:
        super().__init__(daemon=True)
        self._port, self._acked, self._rate = port, acked, rate
        self._chance = random.Random(f"{seed} {first}")
        self._number = first
        self._finished = threading.Event()
        self.count = 0
        self.error: BaseException | None = None

    def finish(self, seconds: float = 60.0) -> None:
        """Send the closing row, wait until everything is acknowledged; raises what went wrong."""
        self._finished.set()
        self.join(seconds)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), f"the producer of {self.name_of_stream} still waits for acknowledgements"

    def run(self) -> None:
        """Send until finished."""
        try:
            with self._acked.open("w", encoding="utf-8") as out:
                self._send_all(out)
        except BaseException as error:
            self.error = error

    def _send_all(self, out: IO[str]) -> None:
        raise NotImplementedError

    def _wrote(self, out: IO[str], places: dict[int, int], rows: list[Row]) -> None:
        """Note rows that are acknowledged."""
        for n, good, t, k, v in rows:
            out.write(f"{self.name_of_stream},{places[n]},{n},{good},{t.isoformat()},{k},{v}\n")
        self.count += len(rows)

    def _batches(self) -> Iterator[list[Row]]:
        """Give the rows that are due, and nothing while nothing is."""
        began, made = time.monotonic(), 0
        while not self._finished.is_set():
            due = min(int((time.monotonic() - began) * self._rate) - made, AT_ONCE)
            made += due
            yield [self._row() for _ in range(due)]
        n, _, t, _, _ = self._row()
        yield [(n, True, t + CLOSING, 0, 0)]

    def _row(self) -> Row:
        n, chance = self._number, self._chance
        self._number += 2
        behind = chance.uniform(0.0, DISORDER) + (chance.uniform(*LATE) if chance.random() < 0.01 else 0.0)
        t = BASE + timedelta(microseconds=round((n / (2 * self._rate) - behind) * 1_000_000))
        return n, chance.random() >= 0.001, t, n % 20, chance.randrange(1000)


def line(row: Row) -> bytes:
    """Return what is sent for a row."""
    n, good, t, k, v = row
    whole = json.dumps({"n": n, "t": t.isoformat(), "k": k, "v": v}).encode()
    return whole if good else whole[:-4]


class NatsProducer(Producer):
    """Into JetStream, by nats-py; a row's number is its message id."""

    name_of_stream = "nats"

    def _send_all(self, out: IO[str]) -> None:
        asyncio.run(self._sending(out))

    async def _sending(self, out: IO[str]) -> None:
        client: Any = None
        for rows in self._batches():
            places: dict[int, int] = {}
            while len(places) < len(rows):
                try:
                    client = client or await self._connected()
                    await self._send(client, [r for r in rows if r[0] not in places], places)
                except Exception:  # the server is away: what was not acknowledged is sent again
                    if client is not None:
                        with contextlib.suppress(Exception):
                            await client.close()
                    client = None
                    await asyncio.sleep(0.1)
            self._wrote(out, places, rows)
            await asyncio.sleep(0.05)
        await client.close()

    async def _connected(self) -> Any:
        import nats

        async def quiet(_error: Exception) -> None:
            pass

        return await nats.connect(f"nats://127.0.0.1:{self._port}", allow_reconnect=False, connect_timeout=2, error_cb=quiet)

    async def _send(self, client: Any, rows: list[Row], places: dict[int, int]) -> None:
        js = client.jetstream()

        async def one(row: Row) -> None:
            ack = await js.publish("events", line(row), timeout=5.0, headers={"Nats-Msg-Id": str(row[0])})
            places[row[0]] = ack.seq

        results = await asyncio.gather(*(one(r) for r in rows), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


class RedisProducer(Producer):
    """Into a Redis stream, by redis-py; a row's number is its entry's id."""

    name_of_stream = "redis"

    def _send_all(self, out: IO[str]) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis(port=self._port, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        for rows in self._batches():
            places: dict[int, int] = {}
            while len(places) < len(rows):
                try:
                    self._send(client, [r for r in rows if r[0] not in places], places)
                except (redis.ConnectionError, redis.TimeoutError, OSError):
                    time.sleep(0.1)
            self._wrote(out, places, rows)
            time.sleep(0.05)
        client.close()

    def _send(self, client: Any, rows: list[Row], places: dict[int, int]) -> None:
        import redis

        pipe = client.pipeline(transaction=False)
        for row in rows:
            pipe.xadd(STREAM, {"data": line(row)}, id=f"{row[0]}-0")
        for row, told in zip(rows, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(told, redis.ResponseError) and "equal or smaller" in str(told):
                told = b"stored before"
            if isinstance(told, BaseException):
                raise redis.ConnectionError(str(told))
            places[row[0]] = row[0]
