"""One transaction with a producer of its own.

A producer is made for each transaction, although one could make many: the brokers then raise its epoch in between, so that a
request of the one before, late on the network, can neither end this transaction nor put rows into it (what KIP-890 has newer clients
do by themselves; see the analysis of such transactions by Jepsen, 2024).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from dataflare_plugins.kafka.connection import Brokers
from dataflare_plugins.kafka.errors import UNREACHABLE, driver, reason

TRIES = 5
"""How often a call that the client says to repeat is repeated."""


class Sender:
    """Hands messages to a producer and finds out what became of them.

    Args:
        brokers: where they are.
        properties: of the producer.
        patience: seconds all that was handed over may take to be kept by the brokers.
    """

    def __init__(self, brokers: Brokers, properties: dict[str, Any], patience: float) -> None:
        self._brokers = brokers
        self._patience = patience
        self._failed: Any = None
        self.producer = brokers.producer({"on_delivery": self._delivered, **properties})

    def _delivered(self, error: Any, message: Any) -> None:  # noqa: ARG002
        self._failed = self._failed or error

    def send(self, topic: str, messages: Iterator[dict[str, Any]], what: str) -> None:
        """Hand messages over, waiting where the producer holds all it may."""
        produce, poll = self.producer.produce, self.producer.poll
        with self._brokers.errors(what):
            for message in messages:
                while True:
                    try:
                        produce(topic, **message)
                        break
                    except BufferError:
                        poll(0.05)
                        self._check(what)

    def flush(self, what: str) -> None:
        """Wait until everything is kept.

        Raises:
            DataflareError: the first failure of a message.
        """
        give_up = time.monotonic() + self._patience
        with self._brokers.errors(what):
            while self.producer.flush(0.2) and self._failed is None:
                if time.monotonic() > give_up:
                    raise UNREACHABLE.retriable(f"{what}: the brokers did not take everything in {self._patience:g} s", path="brokers")
        self._check(what)

    def _check(self, what: str) -> None:
        if self._failed is not None:
            raise self._brokers.explained(self._failed, what)

    def close(self) -> None:
        """Drop what is not sent, and the connections."""
        with contextlib.suppress(Exception):
            self.producer.purge()
            self.producer.flush(1)


class Transaction(Sender):
    """Messages that become visible all at once.

    Args:
        brokers: where they are.
        name: the transactional id. Beginning a transaction of a name ends any other one of it, and its producer with it.
        properties: of the producer.
        patience: seconds after which the brokers give it up.
    """

    def __init__(self, brokers: Brokers, name: str, properties: dict[str, Any], patience: float) -> None:
        super().__init__(brokers, {**properties, "transactional.id": name, "transaction.timeout.ms": int(patience * 1000)}, patience)
        self._what = f"the transaction '{name}'"
        self._open = False

    def begin(self) -> None:
        """Fence every other producer of this name, and begin.

        Raises:
            DataflareError: `kafka.unreachable`, `kafka.permission` and the like.
        """
        wait = self._brokers.timeout
        self._repeated(lambda: self.producer.init_transactions(wait))
        self._repeated(self.producer.begin_transaction)
        self._open = True

    def commit(self) -> None:
        """Make everything visible. After a failure whether it did is known only to who begins the next one of this name.

        Raises:
            DataflareError: `state.fenced`, `kafka.unreachable` and the like.
        """
        self._repeated(lambda: self.producer.commit_transaction(self._brokers.timeout))
        self._open = False

    def _repeated(self, call: Callable[[], None]) -> None:
        with self._brokers.errors(self._what, None, self.producer):
            for left in reversed(range(TRIES)):
                try:
                    call()
                    return
                except driver().KafkaException as error:
                    found = reason(error)
                    if not left or not found.retriable() or found.txn_requires_abort():
                        raise

    def close(self) -> None:
        """Give it up, if it is not committed."""
        if self._open:
            self._open = False
            with contextlib.suppress(Exception):
                self.producer.purge()
                self.producer.abort_transaction(self._brokers.timeout)
        super().close()
