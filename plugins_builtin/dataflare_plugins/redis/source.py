"""Redis Streams as a source: entries are read by their ids, so that a stretch can be read again exactly."""

from __future__ import annotations

import contextlib
import datetime
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dataflare_plugins.redis import fields, groups
from dataflare_plugins.redis.connection import Session, parse_url
from dataflare_plugins.redis.ids import Position, before, order
from dataflare_plugins.redis.looking import EMPTY, end_of, gone, look
from dataflare_sdk import CODES, ExtractSpec, Offset, Partition, Reader, RetriableError, code, config, option
from dataflare_sdk.inflow.options import MessageConfig
from dataflare_sdk.inflow.source import MessageSource

NO_STREAM = code("redis.no-stream", 4, "The stream does not exist.", "Check `streams`; a stream appears with its first entry.")
ID = re.compile(r"(\d+)-(\d+)")
PING_EVERY = 5.0
"""Seconds."""


@config
class RedisStreams(MessageConfig):
    """What is read."""

    url: str = option("The server; `rediss://` for TLS.", example="redis://app:${secret:redis}@cache:6379/0")
    streams: list[str] = option("The streams, keys of the server.", min_items=1, example=["orders"])
    field: str | None = option("The field that holds the message; by default the only one of the entry.", default=None, example="data")
    fields: bool = option("Every field of an entry is a column by itself, read as text and cast to its type in `columns`.", default=False)
    start: str = option(
        "Where the first run begins: `earliest`, `latest`, an id (that entry and what follows) or a time.",
        default="earliest",
        example="2026-01-31T00:00:00Z",
    )
    group: str | None = option(
        "A consumer group that is told how far everything is durable. A first run begins where it stands; it is made when it is missing.",
        default=None,
    )
    trim: Literal["never", "acked"] = option(
        "`acked`: entries are removed from the stream once they are durable in every destination, and read by every group.",
        default="never",
    )
    on_lost: Literal["fail", "skip"] = option("Entries were trimmed before they were read.", default="fail")


class RedisSource(MessageSource[RedisStreams]):
    """Reads streams together, each a part of its own with its own order."""

    Config = RedisStreams

    def __init__(self, config: RedisStreams, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.url = parse_url(config.url)
        twice = next((s for s in config.streams if config.streams.count(s) > 1), None)
        if twice is not None:
            raise CODES["config.invalid"].error(f"the stream '{twice}' is named twice", path="streams")
        if config.fields and (config.field is not None or config.format != "json"):
            raise CODES["config.invalid"].error(
                "`fields: true` reads all fields as columns: give neither `field` nor `format`", path="fields"
            )
        parse_start(config.start)
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._own: Session | None = None
        self._pinged = 0.0

    # -- looking -------------------------------------------------------------------------------------------

    def session(self) -> Session:
        """Return a connection of its own, closed with the source."""
        made = Session(self.url)
        with self._lock:
            self._sessions.append(made)
        return made

    @property
    def _session(self) -> Session:
        """The connection for everything that is no reading."""
        if self._own is None:
            self._own = self.session()
        return self._own

    def check(self) -> None:
        """Connect and find every stream.

        Raises:
            DataflareError: `redis.no-stream` and others of this plugin.
        """
        for i, stream in enumerate(self.config.streams):
            if look(self._session, stream, f"streams[{i}]") is EMPTY:
                raise NO_STREAM.error(f"there is no stream '{stream}'", path=f"streams[{i}]")

    def sample(self, count: int) -> Sequence[bytes]:
        """Return the newest messages of every stream."""
        found: list[bytes] = []
        for stream in self.config.streams:
            entries = self._session.call("XREVRANGE", stream, "+", "-", "COUNT", count)
            payloads = fields.Page(stream, entries[::-1], self.config).payloads
            found += payloads if isinstance(payloads, list) else payloads.to_pylist()
        return found[-count:]

    # -- reading -------------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read all streams after `offset`, to `until` exactly if given."""
        from dataflare_plugins.redis.reader import StreamsReader

        return StreamsReader(self, partition, extract, offset, until)

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where every stream ends now."""
        return {"v": 1, "parts": {s: str(end_of(look(self._session, s))) for s in self.config.streams}}

    def first(self, stream: str, info: dict[str, Any]) -> Position:
        """Return where the first run begins to read a stream of which `info` is known."""
        wanted = parse_start(self.config.start)
        held = groups.stands(self._session, self.config.group, stream) if self.config.group is not None else None
        if held is not None:
            return held
        if wanted == "latest":
            return end_of(info)
        if wanted == "earliest":
            # Whatever is gone by now was never ours to read.
            return Position("0-0", gone(info))
        return end_of(info) if order(wanted) >= order(end_of(info).id) else Position(wanted)

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Tell the group how far everything is durable, and trim what nobody needs any more.

        Where the server is away just now it is told with the next epoch: nothing depends on it.
        """
        parts = offset.get("parts") or {}
        try:
            self._told(parts)
        except RetriableError:
            self._session.close()  # it may have been lost long since: nobody used it
            try:
                self._told(parts)
            except RetriableError as error:
                self.ctx.log.warning(f"the server was not told how far '{self.ctx.node}' is: {error}")

    def _told(self, parts: Mapping[str, str]) -> None:
        if self.config.group is not None:
            groups.tell(self._session, self.config.group, parts)
        if self.config.trim == "acked":
            self.ctx.metric("trimmed", groups.trim(self._session, parts))

    def idle(self) -> None:
        """Ping the server, so that nothing between here and there forgets the connection."""
        now = time.monotonic()
        if now - self._pinged >= PING_EVERY:
            self._pinged = now
            with contextlib.suppress(RetriableError):  # whoever needs it next opens another one
                self._session.call("PING")

    def cancel(self) -> None:
        """Interrupt every connection."""
        super().cancel()
        with self._lock:
            for session in self._sessions:
                session.interrupt()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions = []


def parse_start(text: str) -> str:
    """Return `earliest`, `latest` or the id after which to read.

    Raises:
        DataflareError: `config.invalid`.
    """
    if text in ("earliest", "latest"):
        return text
    found = ID.fullmatch(text)
    if found is not None:
        return before(int(found[1]), int(found[2]))
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise CODES["config.invalid"].error(
            f"'{text}' is none of earliest, latest, an id like 1526919030474-0, a time", path="start"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return before(max(0, -int(-moment.timestamp() * 1000 // 1)), 0)
