"""Takes requests in: judged, gathered, written to the log together, and only then answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dataflare_plugins.webhook.bodies import Refused, objects, pieces, unpacked
from dataflare_plugins.webhook.guard import Guard
from dataflare_plugins.webhook.keys import Key, KeyStore, digest
from dataflare_plugins.webhook.options import IdempotencyConfig, WebhookConfig
from dataflare_sdk import DataflareError
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages

PER_MESSAGE, PER_HEADER = 64, 12
"""Bytes that a message takes in the log beside its payload, topic and key, and each header beside its name and value; never more."""
GROUP = 4096
"""Requests that are written together at most."""


@dataclass(slots=True)
class Request:
    """A request whose body is whole."""

    path: str
    headers: Mapping[bytes, bytes]
    body: bytes
    time: int = 0
    payloads: list[bytes] = field(default_factory=list)
    key: Key | None = None
    key_text: bytes | None = None
    kept: dict[str, str] | None = None
    size: int = 0


@dataclass(slots=True)
class Taken:
    """What a request brought: durable now, or before."""

    rows: int
    repeated: bool = False


class Intake:
    """The way from requests to the log. All methods are called in the server's loop.

    Args:
        config: the source's.
        log: where messages are kept.
        keys: what came already.
        ctx: takes metrics and what is to be told.
    """

    def __init__(self, config: WebhookConfig, log: DurableLog, keys: KeyStore, ctx: Any) -> None:
        self._config = config
        self._log = log
        self._keys = keys
        self._ctx = ctx
        self.guard = Guard(config.bearer, config.signature)
        self._key_header = (config.idempotency or IdempotencyConfig()).header.lower().encode()
        self._wants_headers = "headers" in config.metadata
        self._waiting: list[tuple[Request, asyncio.Future[Taken]]] = []
        self._held = 0
        self._most_held = max(4 * config.max_body, 32 << 20)
        # What is written at once has to fit into the log: it is one frame, which a crash leaves whole or not at all.
        self._most = min(self._most_held, log.max_bytes // 2)
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "dataflare-webhook-log")

    def judge(self, request: Request) -> None:
        """Look at a request and cut it into messages.

        Raises:
            Refused: it is not taken.
        """
        config, headers = self._config, request.headers
        self.guard.body(headers, request.body)
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        body = unpacked(request.body, headers.get(b"content-encoding", b"").decode("latin-1").strip().lower(), config.max_body)
        if config.format != "json":
            request.payloads = [body]
        elif config.on_bad == "keep":
            request.payloads = pieces(body, kind)
        else:
            request.payloads = objects(body, kind)
            for one in request.payloads:
                if len(one) > config.max_message:
                    raise Refused(413, "too-large", f"a row has {len(one)} bytes, {config.max_message} are allowed")
        request.time = time.time_ns() // 1000
        self._name(request)
        if self._wants_headers:
            secret = self.guard.secret_headers
            request.kept = {k.decode("latin-1"): v.decode("latin-1") for k, v in headers.items() if k not in secret}
        beside = PER_MESSAGE + len(request.path.encode()) + len(request.key_text or b"")
        if request.kept:
            # Latin-1 becomes UTF-8 there, which is at most twice as long.
            beside += sum(2 * len(k) + 2 * len(v) + PER_HEADER for k, v in request.kept.items())
        noted = PER_MESSAGE if request.key is not None else 0
        request.size = sum(map(len, request.payloads)) + len(request.payloads) * beside + noted
        if request.size > self._most:
            told = f"its {len(request.payloads)} rows take {request.size} bytes with what is kept beside each, {self._most} are allowed"
            raise Refused(413, "too-large", told)

    def _name(self, request: Request) -> None:
        """Find the key by which a repeated request is known: its header, or the id of a CloudEvent and who it is from."""
        headers = request.headers
        text = headers.get(self._key_header)
        name = (b"key", text)
        if text is None and b"ce-id" in headers:
            text = headers[b"ce-id"]
            name = (b"event", headers.get(b"ce-source", b"") + b"\0" + text)
        if text is None or name[1] is None:
            return
        request.key_text = text
        key = digest(name[0], request.path.encode(), name[1])
        request.key = Key(key, digest(request.body), request.time, len(request.payloads))

    async def take(self, request: Request) -> Taken:
        """Return when everything of a request is durable.

        Raises:
            Refused: 422, 503.
        """
        if self._held and self._held + request.size > self._most_held:
            raise self._full()
        future: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._held += request.size
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())
        try:
            return await future
        finally:
            self._held -= request.size

    def _full(self) -> Refused:
        self._ctx.metric("requests_put_off", 1)
        return Refused(503, "full", "the buffer is full; send it again later")

    async def _write(self) -> None:
        """Write what waits, group after group: one fsync serves all that came during the last one."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group = self._group()
                try:
                    found = await loop.run_in_executor(self._thread, self._write_group, [r for r, _ in group])
                except Exception as error:
                    failed = error if isinstance(error, DataflareError) else None
                    self._ctx.log.error(f"requests could not be kept: {failed or type(error).__name__}")
                    found = [Refused(503, "storage", "what was sent could not be kept")] * len(group)
                for (_, future), answer in zip(group, found, strict=True):
                    if future.done():
                        continue  # who sent it has gone
                    if isinstance(answer, Refused):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._writer = None

    def _group(self) -> list[tuple[Request, asyncio.Future[Taken]]]:
        """Take requests that are written together: the first that wait, as many as go into one frame."""
        size = count = 0
        for request, _ in self._waiting[:GROUP]:
            size += request.size
            if count and size > self._most:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    def _write_group(self, requests: list[Request]) -> list[Taken | Refused]:
        """Append the messages of several requests in one piece; on the log's thread."""
        known = self._keys.find([r.key.key for r in requests if r.key is not None], requests[-1].time)
        answers: list[Taken | Refused] = []
        fresh: list[Request] = []
        for request in requests:
            before = known.get(request.key.key) if request.key is not None else None
            if before is None:
                fresh.append(request)
                answers.append(Taken(len(request.payloads)))
                if request.key is not None:
                    known[request.key.key] = request.key
            elif request.key is not None and before.body != request.key.body:
                answers.append(Refused(422, "key-used", "the key came before with another body"))
            else:
                answers.append(Taken(before.rows, repeated=True))
        need = sum(r.size for r in fresh) + 4096
        if fresh and not self._log.wait_for_room(need, time.monotonic() + self._config.wait):
            return [self._full()] * len(requests)
        if fresh:
            self._append(fresh)
            self._keys.add([r.key for r in fresh if r.key is not None])
        return answers

    def _append(self, requests: list[Request]) -> None:
        payloads: list[bytes] = []
        topics: list[str] = []
        keys: list[bytes | None] = []
        times: list[int] = []
        headers: list[dict[str, str] | None] = []
        notes: list[bytes | None] = []
        for request in requests:
            count = len(request.payloads)
            if not count:
                continue
            payloads += request.payloads
            topics += [request.path] * count
            keys += [request.key_text] * count
            times += [request.time] * count
            headers += [request.kept] * count
            notes += [None if request.key is None else request.key.note(), *[None] * (count - 1)]
        if payloads:
            noted = notes if any(n is not None for n in notes) else None
            kept = headers if self._wants_headers else None
            self._log.append(Messages(payloads, range(len(payloads)), topic=topics, key=keys, time=times, headers=kept), noted)
        self._ctx.metric("requests", len(requests))

    async def close(self) -> None:
        """Finish what waits."""
        while self._writer is not None:
            await asyncio.wait([self._writer])
        self._thread.shutdown()
