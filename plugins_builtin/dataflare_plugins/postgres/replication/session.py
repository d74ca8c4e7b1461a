"""What one capture holds open: a connection to ask with, one that streams, and what it found out when it began."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.replication import slot as slots
from dataflare_plugins.postgres.replication.feed import Feed
from dataflare_plugins.postgres.replication.options import CaptureOptions
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import ComponentContext

RESNAPSHOT = "resnapshot"
"""Key of the plugin's state under which a person's wish stands: a JSON list of streams (`stream` or `node.stream`) to be read anew."""
HIGH = "high"
"""Beginning of the key under which `raise_high` remembers; the node's id follows."""
LOOK_EVERY = 10.0
WISH_EVERY = 1.0


@dataclass
class Session:
    """The connections and facts a reader works with.

    Attributes:
        ctx: the runtime's side.
        server: the database.
        slot: the slot's name.
        owner: what the server is told who reads.
        options: what the workflow says about the capture.
        publication: the publication's name.
        captured: stream to its table as it is now, of the streams that are read.
        planned: stream to the columns that were planned.
        replanned: stream to the columns it got while it was read.
        used: stream to the columns that are handed out.
        keys: stream to the columns that identify a row.
        oldest: no change that is still to be streamed stands in the log before it.
        feed: the replication connection while it streams.
        snapshot: name of the snapshot that the slot exported, while `holder` lives.
        holder: the connection that keeps that snapshot.
        confirmed: what is known to be durable.
    """

    ctx: ComponentContext
    server: Server
    slot: str
    owner: str
    options: CaptureOptions
    publication: str = ""
    captured: dict[str, Table] = field(default_factory=dict)
    planned: dict[str, pa.Schema] = field(default_factory=dict)
    replanned: dict[str, pa.Schema] = field(default_factory=dict)
    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    oldest: int = 0
    feed: Feed | None = None
    snapshot: str | None = None
    holder: Any = None
    confirmed: int = 0
    _side: Any = None
    _reading: Any = None
    _looked: float = 0.0
    _wished: float = 0.0
    _beat: float = 0.0

    def side(self) -> Any:
        """Return the connection for short questions."""
        if self._side is None or self._side.closed:
            self._side = self.server.connect(application_name=f"{self.owner[:55]}:ask")
        return self._side

    def reading(self) -> Any:
        """Return the connection that chunks are read over: one is in the midst of a transaction while others are asked."""
        if self._reading is None or self._reading.closed:
            self._reading = self.server.connect(application_name=f"{self.owner[:54]}:copy")
        return self._reading

    def binary(self) -> bool:
        """Return whether the stream can be in binary: the server knows how, and no column travels as text."""
        able = self.side().info.server_version >= 140000
        return able and not any(t.text for t in self.captured.values())

    def start(self, lsn: int) -> Feed:
        """Begin to stream at `lsn`, taking the slot from whoever of our own still holds it."""
        self.stop()
        self.release()
        with self.server.explained():
            slots.free(self.side(), self.slot, self.owner)
        self.feed = Feed(self.server, self.owner, self.slot, self.publication, lsn, binary=self.binary())
        self.feed.confirm(self.confirmed)
        return self.feed

    def confirm(self, lsn: int) -> None:
        """What commits before `lsn` is durable at every destination."""
        self.confirmed = max(self.confirmed, lsn)
        if self.feed is not None:
            self.feed.confirm(self.confirmed)

    def stop(self) -> None:
        """End the stream."""
        if self.feed is not None:
            self.feed.close()
            self.feed = None

    def release(self) -> None:
        """Let the exported snapshot go."""
        self.snapshot = None
        if self.holder is not None:
            self.holder.close()
            self.holder = None

    def wishes(self) -> list[str]:
        """Return the captured streams that a person wants read anew; asked once a second."""
        now = time.monotonic()
        if now - self._wished < WISH_EVERY:
            return []
        self._wished = now
        names = {**{f"{self.ctx.node}.{n}": n for n in self.captured}, **{n: n for n in self.captured}}
        return [names[s] for s in self._wish_list() if s in names]

    def fulfilled(self, streams: Sequence[str]) -> None:
        """Strike wishes off the list: from now on a checkpoint remembers them."""
        struck = {*streams, *(f"{self.ctx.node}.{s}" for s in streams)}
        left = [s for s in self._wish_list() if s not in struck]
        self.ctx.state_put(RESNAPSHOT, json.dumps(left).encode())

    def _wish_list(self) -> list[str]:
        raw = self.ctx.state_get(RESNAPSHOT)
        found = json.loads(raw) if raw else []
        return [str(s) for s in found] if isinstance(found, list) else []

    def raise_high(self, high: int) -> None:
        """Remember that something was read as of a later moment than a checkpoint says."""
        self.ctx.state_put(f"{HIGH}:{self.ctx.node}", json.dumps(high).encode())

    def high(self) -> int:
        """Return the moment that was remembered, 0 when none was."""
        raw = self.ctx.state_get(f"{HIGH}:{self.ctx.node}")
        return int(json.loads(raw)) if raw else 0

    def replan(self, table: Table) -> None:
        """Take a table's new columns for those that are planned from now on."""
        self.replanned[table.stream] = table.arrow

    def watch(self, position: int) -> None:
        """Look at the slot now and then: tell what it holds back, and stop when that is too much.

        Raises:
            DataflareError: `postgres.slot-lag`, `postgres.slot-lost`.
        """
        now = time.monotonic()
        if self.options.heartbeat is not None and now - self._beat > self.options.heartbeat:
            self.beat()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        with self.server.explained():
            state = slots.look(self.side(), self.slot)
            end = slots.now(self.side())
        slots.verify(state, self.slot, max(position, self.confirmed))
        assert state is not None
        self.ctx.gauge("slot_wal_bytes", state.lag)
        self.ctx.gauge("lag_bytes", max(0, end - position))
        limit = self.options.max_slot_lag
        if limit is not None and state.lag > limit:
            raise slots.SLOT_LAG.error(f"the replication slot '{self.slot}' holds back {state.lag} bytes, {limit} are allowed")

    def beat(self) -> None:
        """Write a message into the log, which makes the server flush it. A standby cannot, and its log is that of its primary."""
        self._beat = time.monotonic()
        with self.server.explained():
            self.side().execute("SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_logical_emit_message(false, 'dataflare', '') END")

    def close(self) -> None:
        """Close everything. The slot stays."""
        self.stop()
        self.release()
        for connection in (self._side, self._reading):
            if connection is not None:
                with contextlib.suppress(Exception):  # closing must not hide why we close
                    connection.close()
