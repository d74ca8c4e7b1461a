"""Topics of an MQTT broker as a destination: each row is a message."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.mqtt.broker import Connection
from dataflare_plugins.mqtt.errors import BAD_TOPIC, LOST, NOT_ALLOWED, REFUSED
from dataflare_plugins.mqtt.options import BrokerConfig, address
from dataflare_sdk import (
    Batch,
    Destination,
    Opened,
    RetriableError,
    RowRejection,
    Target,
    WriteSpec,
    code,
    config,
    option,
)
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fields import nearest
from dataflare_sdk.outflow import Payloads, Template

declare("mqtt.published")

ROW_TOPIC = code(
    "data.bad-topic", 1, "The topic that a row names cannot be published to.", "Mend the column, or leave it out of the template."
)
ROW_SIZE = code(
    "data.packet-too-large",
    1,
    "A row is larger than a message may be that the broker takes.",
    "Leave large columns out, or raise what the broker takes (Mosquitto: `max_packet_size`).",
)
BESIDE = 32
"""Bytes of a packet beside topic and payload at most: lengths, number, no properties."""
ENDINGS = 5
"""Connections that the broker may end without having taken a message, before that message is what it will not take."""
PATIENCE = 30.0
"""Seconds without a connection after which the attempt is given up."""
WINDOW = 1_000
"""Messages under way at once at most, where the broker takes so many."""


@config
class MqttDestinationConfig(BrokerConfig):
    """What is published."""

    topic: str = option("The topic; `{column}` is a value of the row.", example="plant/{site}/temperature")
    qos: Literal[0, 1, 2] = option("Quality of service: with 0 nobody knows what arrived.", default=1)
    retain: bool = option("The broker keeps the newest message of each topic for who subscribes later.", default=False)
    value: str | None = option("Column that is the message as it stands; by default the row as one JSON object.", default=None)


class MqttDestination(Destination[MqttDestinationConfig]):
    """Publishes rows as they come; an epoch is prepared when the broker has acknowledged all of them.

    A message cannot be taken back, nor told from the same one published again: after a crash rows of the last epoch
    come twice.
    """

    Config = MqttDestinationConfig
    features = frozenset({"append", "overwrite"})

    def __init__(self, config: MqttDestinationConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        address(config)
        try:
            self._topic = Template(config.topic)
        except ValueError as error:
            raise BAD_TOPIC.error(str(error), path="topic") from None
        if not self._topic.columns and not _publishable(config.topic):
            raise BAD_TOPIC.error(f"'{config.topic}' cannot be published to", path="topic")
        self._connection: Connection | None = None
        self._payloads: Payloads | None = None
        self._under_way: deque[Any] = deque()
        self._refused: Any = None
        self._ended = 0

    def check(self) -> None:
        """Connect, and leave."""
        connection = Connection(self.config, "", Path(self.ctx.base_dir))
        try:
            connection.connect()
        finally:
            connection.close()

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse upsert, and columns that are not there."""
        reasons = ["messages cannot be upserted"] if write.mode == "upsert" else []
        for name in (*self._topic.columns, *([self.config.value] if self.config.value is not None else [])):
            if name not in schema.names:
                near = nearest(name, schema.names)
                reasons.append(f"there is no column '{name}'" + (f"; did you mean '{near}'?" if near else ""))
        return reasons

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Tell what quality 0 means."""
        return ["qos: 0: what the broker does not get is lost"] if self.config.qos == 0 else []

    def commit_scope(self) -> str:
        """Return the node: nothing of a broker is shared by a transaction."""
        return f"mqtt:{self.ctx.node}"

    def open(self, target: Target) -> Opened:
        """Connect. A broker holds nothing of a run."""
        self._payloads = Payloads(target.schema, self.config.value)
        self._connect(target)
        return Opened()

    def _connect(self, target: Target) -> None:
        name = hashlib.sha256(f"{target.workflow_id}/{target.node}".encode()).hexdigest()[:12]
        self._connection = Connection(self.config, self.config.client_id or f"dataflare-{name}", Path(self.ctx.base_dir), window=WINDOW)
        client = self._connection.client
        client.max_inflight_messages_set(WINDOW)
        client.on_publish = self._published
        self._connection.connect()

    def _published(self, _client: Any, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = reason

    # -- rows ----------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Publish the rows, and return those that name no topic."""
        assert self._payloads is not None
        self._look()
        refused = self._topic.refused(batch.data)
        topics = self._topic.texts(batch.data)
        if self._topic.columns:
            refused += [
                RowRejection(ROW_TOPIC.name, f"'{topic}' cannot be published to", index=i)
                for i, topic in enumerate(topics)
                if topic is not None and not _publishable(topic)
            ]
        out = {r.index for r in refused}
        assert self._connection is not None
        for i, (topic, payload) in enumerate(zip(topics, self._payloads.encode(batch.data), strict=True)):
            if i in out:
                continue
            size = len((topic or "").encode()) + len(payload or b"") + BESIDE
            if size > self._connection.largest:
                told = f"the message has {size} bytes, the broker takes {self._connection.largest}"
                refused.append(RowRejection(ROW_SIZE.name, told, index=i))
                continue
            self._publish(topic, payload)
        return sorted(refused, key=lambda r: r.index or 0)

    def _publish(self, topic: str | None, payload: bytes | None) -> None:
        assert self._connection is not None
        self._settle(self._most - 1)
        info = self._connection.client.publish(topic, payload, qos=self.config.qos, retain=self.config.retain)
        self._under_way.append((info, topic, payload))

    @property
    def _most(self) -> int:
        assert self._connection is not None
        return max(1, min(WINDOW, self._connection.allowed))

    def _settle(self, left: int) -> None:
        """Wait until at most `left` messages are not acknowledged.

        Raises:
            DataflareError: `mqtt.not-allowed`; retriable `mqtt.connection-lost`.
        """
        connection = self._connection
        assert connection is not None
        while True:
            while self._under_way and self._arrived(self._under_way[0][0]):
                self._under_way.popleft()
                self._ended, connection.client.careful = 0, False
            if self._refused is not None:
                raise NOT_ALLOWED.error(f"{connection.place}: it refuses a message: {self._refused}", path="topic")
            if len(self._under_way) <= left:
                return
            self._look(0.1)

    def _look(self, seconds: float = 0.0) -> None:
        """Send and receive for a while; connect again when the broker is gone, which it is too when nothing was said for long."""
        connection = self._connection
        assert connection is not None
        if not connection.loop(seconds) or not connection.connected:
            self._again(connection)

    def _arrived(self, info: Any) -> bool:
        try:
            return bool(info.is_published())
        except (ValueError, RuntimeError):  # paho had no connection for it; it holds what is of quality 1 and 2
            return self.config.qos == 0

    def _again(self, connection: Connection) -> None:
        """Connect again; the client sends again what was not acknowledged.

        Raises:
            RetriableError: `mqtt.connection-lost`; `mqtt.refused` where it is taken up again and again, and never a message.
        """
        self._ended += 1
        if self._ended > ENDINGS and self._under_way:
            _, topic, payload = self._under_way[0]
            told = f"it ends every connection at a message of {len(payload or b'')} bytes to '{topic}', which may be too large for it"
            raise RetriableError(REFUSED.problem(f"{connection.place}: {told}"))
        # One message first: what is sent behind one that the broker will not have meets an end that takes its answer along.
        connection.client.careful = self._ended > 1
        stop, wait = time.monotonic() + PATIENCE, 0.1
        while True:
            try:
                connection.connect()
            except RetriableError as error:
                if time.monotonic() > stop or self.ctx.cancelled():
                    raise RetriableError(LOST.problem(error.problems[0].message, path="url")) from error
                time.sleep(wait)
                wait = min(wait * 2, 2.0)
            else:
                break
        self.ctx.metric("mqtt_reconnects", 1)
        if self.config.qos == 0:  # nobody else holds what was not sent
            lost, self._under_way = self._under_way, deque()
            for _, topic, payload in lost:
                self._publish(topic, payload)

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Wait until the broker has acknowledged everything."""
        self._look()
        self._settle(0)
        failpoint("mqtt.published")

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Nothing is left to do: what is published is there."""

    def abort(self) -> None:
        """Forget what is under way; what arrived stays."""
        self._under_way.clear()

    def close(self) -> None:
        """Leave the broker."""
        if self._connection is not None:
            self._connection.close()
        if self._payloads is not None:
            self._payloads.close()


def _publishable(topic: str) -> bool:
    return bool(topic) and not any(c in topic for c in "+#\0") and len(topic.encode()) <= 65_535
