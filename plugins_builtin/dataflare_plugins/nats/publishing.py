"""Messages on their way to JetStream: packed a page at a time, counted until the server has stored all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.nats import jetstream
from dataflare_plugins.nats.connection import ACKS, PATIENCE, Link, header, status
from dataflare_plugins.nats.errors import LOST, NO_STREAM, refused
from dataflare_sdk.compute import pc
from dataflare_sdk.failpoints import declare, failpoint

SCHEMA = pa.schema([("subject", pa.string()), ("payload", pa.string())])
"""Messages as they are kept until their epoch commits."""
ROWS = 4_096
BYTES = 4 << 20
"""Messages and bytes that are sent before the server's answers to those before them are waited for."""
MESSAGE_ID = "Nats-Msg-Id"
declare("nats.commit.page")


def packed(page: pa.RecordBatch, first: int, prefix: str, inbox: bytes) -> bytes:
    """Return messages in the protocol, each with an id of its own.

    Args:
        page: of `SCHEMA`.
        first: number of its first message within the epoch.
        prefix: what the ids begin with.
        inbox: where the server answers to.
    """
    head = f"NATS/1.0\r\n{MESSAGE_ID}: {prefix}"
    numbers = pa.array(range(first, first + page.num_rows), pa.int64()).cast(pa.string())
    before = pc.add(pc.binary_length(numbers), len(head.encode()) + 4)
    whole = pc.add(before, pc.binary_length(page.column(1)))
    parts = ["HPUB ", page.column(0), f" {inbox.decode()} ", before.cast(pa.string()), " ", whole.cast(pa.string()), "\r\n"]
    lines = pc.binary_join_element_wise(*parts, head, numbers, "\r\n\r\n", page.column(1), "\r\n", "")
    return _body(lines)


def _body(lines: pa.Array) -> bytes:
    """Return texts one behind the other: as they lie in memory."""
    if not len(lines):
        return b""
    _, offsets, values = lines.buffers()
    last = int.from_bytes(offsets[4 * len(lines) : 4 * len(lines) + 4].to_pybytes(), "little")
    return bytes(memoryview(values)[:last])


class Publisher:
    """Publishes pages of messages.

    Args:
        link: the connection.
        prefix: what the ids of an epoch's messages begin with.
    """

    def __init__(self, link: Link, prefix: str) -> None:
        self._link = link
        self._prefix = prefix
        self._owed = 0

    def publish(self, batches: Iterator[pa.RecordBatch], seen: set[int]) -> None:
        """Publish everything but the messages whose number was `seen`, and wait until the server has stored it.

        Raises:
            DataflareError: `nats.no-stream`, `nats.full` and others of this plugin.
        """
        self._link.open()
        self._link.acks.clear()
        inbox, number = self._link.inbox(ACKS, b"a"), 0
        for batch in batches:
            rows = max(1, min(ROWS, BYTES * batch.num_rows // max(batch.nbytes, 1)))
            for start in range(0, batch.num_rows, rows):
                page = batch.slice(start, rows)
                self._settle(rows)
                for piece, first in _runs(page, number, seen):
                    self._link.send(packed(piece, first, self._prefix, inbox))
                    self._owed += piece.num_rows
                failpoint("nats.commit.page")
                number += page.num_rows
        self._settle(0)

    def _settle(self, left: int) -> None:
        """Wait until at most `left` messages have no answer."""
        until = time.monotonic() + PATIENCE
        while self._owed > left:
            if not self._link.acks and not self._link.receive(until):
                self._link.close()
                raise LOST.retriable(f"{self._link.url} has not said of {self._owed} messages whether they are stored")
            acks = self._link.acks
            while acks:
                _, _, headers, payload = acks.popleft()
                if headers is not None and status(headers) == 503:
                    raise NO_STREAM.error(f"{self._link.url}: no stream takes the subject", path="subject")
                if b'"error"' in payload:
                    raise refused(str(self._link.url), json.loads(payload)["error"])
                self._owed -= 1
                until = time.monotonic() + PATIENCE


def _runs(page: pa.RecordBatch, first: int, seen: set[int]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Give the stretches of a page that were not seen, with the number of their first message."""
    if not seen:
        yield page, first
        return
    start = 0
    for i in range(page.num_rows + 1):
        if i == page.num_rows or first + i in seen:
            if i > start:
                yield page.slice(start, i - start), first + start
            start = i + 1


def stored(link: Link, streams: Sequence[tuple[str, int]], prefix: str) -> set[int]:
    """Return the numbers of an epoch's messages that streams hold.

    Args:
        link: the connection.
        streams: each with the sequence number it ended at when nothing of the epoch was published.
        prefix: what the ids begin with.
    """
    found = set[int]()
    for name, since in streams:
        state = jetstream.stream_state(link, name)
        for headers in _headers(link, name, state, since):
            id = header(headers).get(MESSAGE_ID, "")
            if id.startswith(prefix) and id[len(prefix) :].isdigit():
                found.add(int(id[len(prefix) :]))
    return found


def _headers(link: Link, name: str, state: jetstream.StreamState, since: int) -> Iterator[bytes]:
    if state.retention == "workqueue":  # takes no second consumer
        for _, _, frame in jetstream.get(link, name, max(since + 1, state.first), state.last):
            if frame[2] is not None:
                yield frame[2]
        return
    if state.last <= since:
        return
    config: dict[str, Any] = {"ack_policy": "none", "deliver_policy": "by_start_sequence", "opt_start_seq": since + 1}
    consumer = str(jetstream.make_consumer(link, name, {**config, "headers_only": True, "mem_storage": True})["name"])
    try:
        left = state.last - since
        while left > 0:
            jetstream.pull(link, name, consumer, ROWS, BYTES, wait=None)
            came = 0
            while came < ROWS:
                while not link.pages:
                    if not link.receive(float("inf")):
                        raise LOST.retriable(f"{link.url} does not answer")
                _, reply, headers, _ = link.pages.popleft()
                if reply is None:
                    if headers is not None and status(headers) >= 400:
                        break
                    continue
                came += 1
                if headers is not None:
                    yield headers
            left = left - came if came else 0
    finally:
        link.pages.clear()
        jetstream.drop_consumer(link, name, consumer)
