"""What a durable consumer is told: how far everything is durable in every destination."""

from __future__ import annotations

import itertools
from collections import deque

from dataflare_plugins.nats.connection import Link

PIECE = 4_096
"""Acks that are sent together."""
MOST_LEFT = 1_000_000
"""Messages that acks are sent again for when a run begins, at most."""


class Acker:
    """Remembers what was handed on and can be acked, and acks it when it is durable.

    Rows are told apart by their sequence number, so a message that the server delivers again is acked and dropped.

    Args:
        link: the connection.
        stream: the stream.
        consumer: its consumer.
        each: the consumer wants an ack for every message; else one stands for all before it.

    Attributes:
        durable: everything up to this sequence number is durable.
    """

    def __init__(self, link: Link, stream: str, consumer: str, *, each: bool) -> None:
        self._link = link
        self._prefix = f"$JS.ACK.{stream}.{consumer}.1.".encode()
        self._each = each
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._again: list[tuple[int, bytes]] = []
        self.durable = 0

    def subject(self, number: int, in_consumer: int) -> bytes:
        """Return where to ack a message that came by another way than the consumer's."""
        return b"%s%d.%d.0.0" % (self._prefix, number, in_consumer)

    def came(self, messages: list[tuple[int, bytes]]) -> None:
        """Note messages in the order they are handed on: sequence number, and where to ack."""
        self._waiting.extend(messages if self._each else messages[-1:])

    def came_again(self, messages: list[tuple[int, bytes]]) -> None:
        """Note messages that were delivered again; those that are durable are acked at once."""
        self._again += messages
        self._ack_again()

    def ack(self, number: int) -> None:
        """Ack all messages up to a sequence number: they are durable everywhere. What could not be sent waits for the next time.

        Raises:
            RetriableError: the connection is gone.
        """
        self.durable = max(self.durable, number)
        due = [reply for at, reply in self._waiting if at <= number] if self._each else []
        if not self._each:
            while len(self._waiting) > 1 and self._waiting[1][0] <= number:
                self._waiting.popleft()  # the one behind it stands for it too
            due = [reply for at, reply in itertools.islice(self._waiting, 1) if at <= number]
        self._send(due)
        while self._waiting and self._waiting[0][0] <= number:
            self._waiting.popleft()
        self._ack_again()

    def left(self, first: int, last: int, durable: int) -> None:
        """Ack messages that an earlier run made durable, where their acks may not have arrived.

        Args:
            first: sequence number of the oldest that is not acked.
            last: of the newest that was delivered.
            durable: everything up to here is durable; what is older than `MOST_LEFT` messages is acked when it is delivered again.

        Raises:
            RetriableError: the connection is gone.
        """
        self.durable = max(self.durable, durable)
        for start in range(max(first, last - MOST_LEFT + 1), last + 1, PIECE):
            # The server knows them by their number in the stream; one that it does not wait for does no harm.
            self._send([self.subject(number, 0) for number in range(start, min(start + PIECE, last + 1))])

    def _ack_again(self) -> None:
        due = [message for message in self._again if message[0] <= self.durable]
        if due:
            self._send([reply for _, reply in due] if self._each else [max(due)[1]])
            self._again = [message for message in self._again if message[0] > self.durable]

    def _send(self, replies: list[bytes]) -> None:
        if not replies:
            return
        for start in range(0, len(replies) - 1, PIECE):
            self._link.send(b"".join(b"PUB %s 4\r\n+ACK\r\n" % reply for reply in replies[start : min(start + PIECE, len(replies) - 1)]))
        self._link.confirm(replies[-1], b"+ACK")
