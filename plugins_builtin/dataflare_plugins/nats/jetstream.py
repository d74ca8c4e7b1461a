"""What is asked of JetStream: streams, consumers, single messages, pages of them."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.nats.connection import PAGES, Frame, Link, expect, header
from dataflare_plugins.nats.errors import NO_CONSUMER, NOT_FOUND, refused
from dataflare_sdk.records import record

GET_AT_ONCE = 256
"""Single messages that are asked for together."""
ALIVE = 5_000_000_000
"""Nanoseconds between the server's signs of life while it has nothing to send."""


@record
class StreamState:
    """What a stream is at a moment.

    Attributes:
        created: when it was made, as the server writes it: another time is another stream.
        first: sequence number of the oldest message; one more than `last` when there is none.
        last: of the newest.
        retention: `limits`, `interest` or `workqueue`.
        replaces: a newer message of a subject replaces older ones.
        largest: bytes of a message with its headers at most, None: as many as the server takes.
    """

    created: str
    first: int
    last: int
    retention: str
    replaces: bool
    largest: int | None = None


def stream_state(link: Link, name: str) -> StreamState:
    """Ask for the state of a stream.

    Raises:
        DataflareError: `nats.no-stream`, `nats.no-jetstream`.
    """
    found = expect(link, link.ask(f"$JS.API.STREAM.INFO.{name}", path="stream"), f"stream '{name}'", "stream")
    state, made = found["state"], found["config"]
    last = int(state["last_seq"])
    return StreamState(
        created=str(found["created"]),
        first=max(int(state["first_seq"]), 1) if int(state["messages"]) else last + 1,
        last=last,
        retention=str(made["retention"]),
        replaces=int(made.get("max_msgs_per_subject", -1)) > 0,
        largest=largest if (largest := int(made.get("max_msg_size", -1))) > 0 else None,
    )


def streams_of(link: Link, subject: str) -> list[str]:
    """Return the names of the streams that take a subject."""
    found = expect(link, link.ask("$JS.API.STREAM.NAMES", {"subject": subject}, path="subject"), f"subject '{subject}'", "subject")
    return [str(name) for name in found.get("streams") or ()]


# -- consumers ---------------------------------------------------------------------------------------------


def consumer_info(link: Link, stream: str, name: str) -> Mapping[str, Any] | None:
    """Return what a consumer is and how far it is, None when there is none."""
    found = link.ask(f"$JS.API.CONSUMER.INFO.{stream}.{name}")
    if found.get("error", {}).get("err_code") == NO_CONSUMER:
        return None
    return expect(link, found, f"consumer '{name}'", "durable")


def make_consumer(link: Link, stream: str, config: Mapping[str, Any], path: str | None = None) -> Mapping[str, Any]:
    """Make a consumer and return what it is."""
    name = config.get("durable_name")
    place = f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}" if name else f"$JS.API.CONSUMER.CREATE.{stream}"
    found = link.ask(place, {"stream_name": stream, "config": config}, path=path)
    return expect(link, found, f"a consumer of '{stream}'", path)


def drop_consumer(link: Link, stream: str, name: str) -> None:
    """Remove a consumer, if it is there."""
    link.ask(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")


def filters(subjects: Sequence[str], version: tuple[int, int]) -> dict[str, Any]:
    """Return the part of a consumer's configuration that names its subjects; before 2.10 it takes one only."""
    if len(subjects) == 1:
        return {"filter_subject": subjects[0]}
    return {"filter_subjects": list(subjects)} if subjects and version >= (2, 10) else {}


def pull(link: Link, stream: str, consumer: str, batch: int, size: int | None, *, wait: float | None) -> None:
    """Ask for a page of a consumer's messages; they come to `link.pages`.

    Args:
        link: the connection.
        stream: the stream.
        consumer: its consumer.
        batch: messages at most.
        size: bytes at most; None: as many as they have.
        wait: seconds the server waits for messages that are not there yet; None: it answers at once.
    """
    wanted: dict[str, Any] = {"batch": batch} if size is None else {"batch": batch, "max_bytes": size}
    if wait is None:
        wanted["no_wait"] = True
    else:
        wanted |= {"expires": int(wait * 1e9), "idle_heartbeat": ALIVE}
    raw = json.dumps(wanted).encode()
    place = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
    link.send(b"PUB %s %s %d\r\n%s\r\n" % (place, link.inbox(PAGES, b"p"), len(raw), raw))


# -- single messages ---------------------------------------------------------------------------------------


def get(link: Link, stream: str, first: int, last: int) -> list[tuple[int, int, Frame]]:
    """Return the messages with these sequence numbers that are there: number, nanoseconds, message."""
    found = []
    for start in range(first, last + 1, GET_AT_ONCE):
        numbers = range(start, min(start + GET_AT_ONCE, last + 1))
        for number, answer in zip(numbers, link.ask_all([(f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": n}) for n in numbers]), strict=True):
            if "error" in answer:
                if answer["error"].get("err_code") == NOT_FOUND or answer["error"].get("code") == 404:
                    continue
                raise refused(f"{link.url}: message {number} of '{stream}'", answer["error"])
            held = answer["message"]
            headers = base64.b64decode(held["hdrs"]) if "hdrs" in held else None
            frame: Frame = (held["subject"].encode(), None, headers, base64.b64decode(held.get("data", "")))
            found.append((number, nanoseconds(held["time"]), frame))
    return found


def nanoseconds(text: str) -> int:
    """Return a time as the server writes it, `2026-01-31T12:00:00.123456789Z`, in nanoseconds since 1970."""
    whole, fraction = re.fullmatch(r"([^.Z+]+)(?:\.(\d+))?.*", text).groups()  # type: ignore[union-attr]
    seconds = int(datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC).timestamp())
    return seconds * 10**9 + int((fraction or "0").ljust(9, "0")[:9])


# -- subjects and places -----------------------------------------------------------------------------------


def place_of(reply: bytes) -> tuple[int, int, int]:
    """Return sequence number in the stream, in the consumer, and nanoseconds, of the subject a message is acked to."""
    parts = reply.split(b".")
    at = 5 if len(parts) == 9 else 7  # since 2.9 there may be domain and account before the stream
    return int(parts[at]), int(parts[at + 1]), int(parts[at + 2])


def pending_of(reply: bytes) -> int:
    """Return how many messages a consumer has left behind the one that is acked to a subject."""
    parts = reply.split(b".")
    return int(parts[8 if len(parts) == 9 else 10])


def matches(subject: bytes, pattern: str) -> bool:
    """Whether a subject is among those of a pattern with `*` and `>`."""
    have, want = subject.decode("utf-8", "replace").split("."), pattern.split(".")
    if want[-1] == ">":
        return len(have) >= len(want) and all(w in ("*", h) for h, w in zip(have, want[:-1], strict=False))
    return len(have) == len(want) and all(w in ("*", h) for h, w in zip(have, want, strict=True))


def headers_of(frame: Frame) -> dict[str, str]:
    """Return the headers of a message."""
    return {} if frame[2] is None else header(frame[2])
