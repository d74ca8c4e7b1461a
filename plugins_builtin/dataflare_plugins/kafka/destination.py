"""A topic as a destination: an epoch is staged outside, sent in one transaction, and visible with its checkpoint record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.kafka.connection import Brokers
from dataflare_plugins.kafka.options import BROKERS, CLIENT, SECURITY, TIMEOUT, Security
from dataflare_sdk import Batch, Destination, Duration, Opened, RowRejection, Size, Target, WriteSpec, config, option
from dataflare_sdk.atomic import make_folder, read_record, write_record
from dataflare_sdk.failpoints import declare, failpoint

STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
QUEUED = 64 << 20
"""Bytes that wait in the client to be sent."""
declare("kafka.staged", "kafka.sent", "kafka.commit.begun", "kafka.commit.recorded", "kafka.commit.done")


@config
class KafkaTarget:
    """Where rows are published; the topic is made when it is missing."""

    brokers: str = BROKERS
    topic: str = option("The topic.", example="orders")
    key: str | list[str] | None = option(
        "Column whose text is the key, or several, as one JSON object; by default the key of an upsert.", default=None, example="order_id"
    )
    value: str | None = option("Column whose text or bytes are the value; by default all columns, as one JSON object.", default=None)
    headers: dict[str, str] = option("Name of a header to the column it is of.", default_factory=dict, example={"source": "origin"})
    partitioner: Literal["murmur2_random", "murmur2", "consistent_random", "consistent", "fnv1a_random", "fnv1a", "random"] = option(
        "How a key finds its partition; by default as the clients in Java do.", default="murmur2_random"
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = option("How messages are packed.", default="lz4")
    transactions: bool = option("Whether an epoch is one transaction; without one it may be published twice after a crash.", default=True)
    checkpoints: str = option("Compacted topic for the checkpoint records of transactions.", default="_dataflare_checkpoints")
    transaction_timeout: Duration = option(
        "How long sending an epoch may take before the brokers give its transaction up.", default=60.0, example="1m"
    )
    partitions: int | None = option("Partitions of a topic that is made; by default what the brokers do.", default=None, minimum=1)
    replication: int | None = option("Copies of a topic that is made; by default what the brokers do.", default=None, minimum=1)
    max_message: Size = option("A row whose message would be larger is a bad row.", default=1_000_000, example="1MB")
    security: Security | None = SECURITY
    client: dict[str, str | int | float | bool] = CLIENT
    timeout: Duration = TIMEOUT


class KafkaDestination(Destination[KafkaTarget]):
    """Rows and checkpoint record in one transaction."""

    Config = KafkaTarget
    features = frozenset({"transactional", "append", "upsert", "delete", "partial_update"})

    def __init__(self, config: KafkaTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        if not config.transactions:
            self.features = self.features - {"transactional"}
        self._brokers = Brokers(config, ctx)
        self._target: Target | None = None
        self._ledger: Any = None
        self._encoder: Any = None
        self._staged: Any = None
        self._sending: Any = None
        self._sender: Any = None

    # -- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Reach the brokers.

        Raises:
            DataflareError: `kafka.unreachable`, `kafka.denied`.
        """
        self._brokers.exists(self.config.topic)

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse what a topic cannot do, and columns that are not there."""
        reasons = []
        if write.mode == "overwrite":
            reasons.append("a topic cannot be overwritten; set `write: {mode: append}` or `upsert`")
        if write.mode == "upsert" and write.deletes == "soft":
            reasons.append("a deletion is a message without a value; set `deletes: hard` or `ignore`")
        if write.pos_column is not None:
            reasons.append("a topic keeps the last message of a key, whatever is in it: `pos_column` has no effect there")
        if write.mode == "upsert" and self.config.key is not None and set(self._named_key()) != set(write.key):
            reasons.append(f"`key` names ({', '.join(self._named_key())}) and the upsert ({', '.join(write.key)}): leave one out")
        wanted = [*self._named_key(), *([self.config.value] if self.config.value else []), *self.config.headers.values()]
        reasons += [f"there is no column '{n}'" for n in dict.fromkeys(wanted) if n not in schema.names]
        return reasons

    def guarantee(self, write: WriteSpec) -> str:
        """Return what is promised: without transactions an epoch may be published again, which a keyed topic does not show."""
        if self.config.transactions:
            return "exactly_once"
        return "effectively_once" if write.mode == "upsert" else "at_least_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Return what a person should know before relying on it."""
        if not self.config.transactions:
            return ["without transactions the last epoch may be published again after a crash"]
        return [
            "rows appear exactly once to consumers that read what is committed (`isolation.level=read_committed`), on brokers with KIP-890"
        ]

    def commit_scope(self) -> str:
        """Return the topic."""
        return f"kafka:{self.config.brokers}/{self.config.topic}"

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Return that the topic would be made."""
        there = self._brokers.exists(self.config.topic)
        return () if there else (f"create the topic '{self.config.topic}'",)

    def _named_key(self) -> list[str]:
        key = self.config.key
        return [] if key is None else [key] if isinstance(key, str) else list(key)

    # -- opening -------------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the topic: end what an earlier process left open, raise the fence in the checkpoint record.

        Raises:
            DataflareError: `state.fenced`, `kafka.no-topic`, `kafka.unreachable` and the like.
        """
        from dataflare_plugins.kafka.encoding import Encoder
        from dataflare_sdk.fold import Staging

        self._target, write, options = target, target.write, self.config
        keyed = write.mode == "upsert"
        key = write.key if keyed else self._named_key()
        self._encoder = Encoder(
            target.schema, key, options.value, options.headers, options.max_message, keyed=keyed, ignores=write.deletes == "ignore"
        )
        self._staged = Staging(Path(self.ctx.staging_dir), self._encoder.schema, memory=min(STAGED, self.ctx.memory // 4))
        self._staged.sweep()
        self._make_topic(compacted=keyed)
        return self._claimed(target) if options.transactions else self._noted(target)

    def _make_topic(self, *, compacted: bool) -> None:
        options = self.config
        if not self._brokers.exists(options.topic):
            settings = {"cleanup.policy": "compact"} if compacted else {}
            self._brokers.create(
                self._brokers.admin(), options.topic, options.partitions or -1, options.replication or -1, settings, "topic"
            )

    def _claimed(self, target: Target) -> Opened:
        from dataflare_plugins.kafka.ledger import Ledger

        self._ledger = ledger = Ledger(self._brokers, self.config.checkpoints, target)
        ledger.prepare()
        ledger.look()  # first of all: an older run must not end the transaction of a newer one
        claim = self._transaction()
        try:
            claim.begin()
            held = ledger.claimable()
            claim.send(ledger.topic, iter([self._record(held)]), "claiming the topic")
            claim.flush("claiming the topic")
            claim.commit()
        finally:
            claim.close()
        return Opened(held.epoch, target.run_id if held.epoch else None, held.offsets)

    def _noted(self, target: Target) -> Opened:
        """Return what a note beside the staged rows says of this run: without transactions the brokers cannot keep it."""
        folder = Path(self.ctx.staging_dir)
        make_folder(folder)
        self._note = folder / "sent.json"
        held = read_record(self._note) or {}
        if held.get("run") != target.run_id:
            return Opened()
        return Opened(held["epoch"], target.run_id, held["offsets"])

    def _record(self, held: Any) -> dict[str, Any]:
        return {"value": self._ledger.written(held), "key": self._ledger.key, "partition": 0}

    def _properties(self) -> dict[str, Any]:
        return {
            "compression.type": self.config.compression,
            "partitioner": self.config.partitioner,
            "message.max.bytes": self.config.max_message + (1 << 20),
            "queue.buffering.max.kbytes": QUEUED >> 10,
            "queue.buffering.max.messages": 200_000,
            "linger.ms": 20,
        }

    def _transaction(self) -> Any:
        from dataflare_plugins.kafka.transaction import Transaction

        assert self._target is not None
        name = f"dataflare-{self._target.workflow_id}-{self._target.node}"
        return Transaction(self._brokers, name, self._properties(), self.config.transaction_timeout)

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch as messages; rows without a key (upsert), too large, or not sent whole are refused."""
        data, refused = self._encoder.encode(batch)
        self._staged.add(Batch(batch.stream, data))
        return list(refused)

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Send the epoch within a transaction. Nothing is promised: after a crash the brokers drop it, and it is read again.

        Raises:
            DataflareError: `state.fenced`, `kafka.unreachable`, `kafka.too-large` and the like.
        """
        failpoint("kafka.staged")
        if not self.config.transactions:
            return
        self._ledger.look()
        self._sending = self._transaction()
        self._sending.begin()
        self._ledger.check(epoch)  # nobody has claimed it up to here, and who does from here on ends this transaction
        self._send(self._sending)
        failpoint("kafka.sent")

    def _send(self, sender: Any) -> None:
        what = f"publishing to '{self.config.topic}'"
        for data in self._staged.batches():
            sender.send(self.config.topic, self._encoder.messages(data), what)
        sender.flush(what)

    # -- committing ----------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Commit this node's transaction, then those of others that write to the same topic."""
        for node in (self, *together):
            node.commit_own(epoch, offsets)

    def commit_own(self, epoch: int, offsets: Mapping[str, Any]) -> None:
        """Make the epoch visible, with its checkpoint record in the same transaction."""
        failpoint("kafka.commit.begun")
        if self.config.transactions:
            self._commit_transaction(epoch, offsets)
        else:
            self._publish(epoch, offsets)
        failpoint("kafka.commit.done")
        self._staged.clear()

    def _commit_transaction(self, epoch: int, offsets: Mapping[str, Any]) -> None:
        from dataflare_plugins.kafka.ledger import Held

        assert self._target is not None
        assert self._sending is not None
        held = Held(self._target.run_id, epoch, self._target.fence, offsets)
        what = "writing the checkpoint record"
        # Last of all: while it is undecided, nobody reads past it.
        self._sending.send(self._ledger.topic, iter([self._record(held)]), what)
        self._sending.flush(what)
        failpoint("kafka.commit.recorded")
        self._sending.commit()
        self._drop_transaction()

    def _publish(self, epoch: int, offsets: Mapping[str, Any]) -> None:
        from dataflare_plugins.kafka.transaction import Sender

        assert self._target is not None
        held = read_record(self._note) or {}
        if held.get("run") == self._target.run_id and held["epoch"] >= epoch:
            return
        if self._sender is None:
            self._sender = Sender(self._brokers, self._properties(), self.config.transaction_timeout)
        self._send(self._sender)
        failpoint("kafka.commit.recorded")
        write_record(self._note, {"run": self._target.run_id, "epoch": epoch, "offsets": dict(offsets)})

    def abort(self) -> None:
        """Drop what is staged, and the transaction."""
        self._drop_transaction()
        if self._staged is not None:
            self._staged.clear()

    def _drop_transaction(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.close()

    def close(self) -> None:
        """Give up what is not committed, and the connections."""
        self.abort()
        for part in (self._sender, self._ledger, self._encoder, self._brokers):
            if part is not None:
                part.close()
