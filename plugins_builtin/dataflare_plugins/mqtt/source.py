"""Topics of an MQTT broker as a source."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from dataflare_plugins.mqtt.broker import Connection
from dataflare_plugins.mqtt.intake import Intake
from dataflare_plugins.mqtt.options import BrokerConfig, address, check_filter
from dataflare_plugins.mqtt.session import Session
from dataflare_sdk import Duration, ExtractSpec, Offset, Partition, Reader, Size, config, option
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.inflow.options import MessageConfig
from dataflare_sdk.inflow.reader import MessageReader
from dataflare_sdk.inflow.source import MessageSource

SAMPLE_SECONDS = 5.0
"""How long is listened at most for messages to learn the columns from."""
PATIENCE = 2.0
"""Seconds for what has come to get into the log when a run ends; what does not is not acknowledged."""
SAMPLE_QUIET = 0.5
"""Seconds without a further message after which what came is enough."""


@config
class MqttConfig(MessageConfig, BrokerConfig):
    """What is subscribed to."""

    topics: list[str] | str = option("Topic filters, with `+` and `#`.", example=["plant/+/temperature", "alarms/#"])
    qos: Literal[0, 1, 2] = option("Quality of service: 0 may lose messages, 1 may give one twice, 2 gives each once.", default=1)
    session: Literal["persistent", "clean"] = option(
        "`persistent`: the broker keeps what comes while no run is there; `clean`: only what comes during a run is read.",
        default="persistent",
    )
    session_expiry: Duration = option("How long the broker keeps it after a run left (MQTT 5).", default=7 * 86_400.0, example="7d")
    retained: Literal["keep", "ignore"] = option("Messages that the broker kept from before the subscription.", default="keep")
    buffer: Size = option("How much may wait in the durable log for slow destinations.", default=1 << 30, example="1GiB")


class MqttSource(MessageSource[MqttConfig]):
    """Takes messages into a durable log, acknowledges them, and reads the log.

    Between broker and log a message of quality 2 comes once, of quality 1 at least once: as long as the broker keeps what it was
    told. One that is killed and did not save sends again what it had our answer for.
    """

    Config = MqttConfig

    def __init__(self, config: MqttConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        address(config)
        names = [config.topics] if isinstance(config.topics, str) else config.topics
        for i, name in enumerate(names):
            check_filter(name, "topics" if isinstance(config.topics, str) else f"topics[{i}]")
        self._filters = dict.fromkeys(names, int(config.qos))
        if config.qos < 2 or config.session == "clean":
            # The broker may deliver one again that is in the log already, or not at all what came meanwhile.
            self.features = self.features - {"replayable"}
        self._log: DurableLog | None = None
        self._intake: Intake | None = None
        self._session: Session | None = None

    # -- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Connect under another name, and leave."""
        connection = self._visitor(None)
        try:
            connection.connect()
        finally:
            connection.close()

    def sample(self, count: int) -> Sequence[bytes]:
        """Listen for a while, under another name, to what is retained and what comes."""
        found: list[bytes] = []
        connection = self._visitor(lambda message: found.append(bytes(message.payload)))
        try:
            connection.connect()
            connection.subscribe(dict.fromkeys(self._filters, 0), retained=True)
            end = time.monotonic() + SAMPLE_SECONDS
            while len(found) < count and time.monotonic() < end and connection.loop(0.1):
                if found:
                    end = min(end, time.monotonic() + SAMPLE_QUIET)
        finally:
            connection.close()
        return found[:count]

    def _visitor(self, on_message: Callable[[Any], None] | None) -> Connection:
        return Connection(self.config, "", Path(self.ctx.base_dir), on_message=on_message)

    # -- reading -------------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read the log after `offset`, to `until` if given, while messages come into it."""
        log, intake = self._begun()
        return LogReader(self, log, intake, partition, extract, offset, until)

    def _begun(self) -> tuple[DurableLog, Intake]:
        if self._log is None or self._intake is None:
            folder = Path(self.ctx.staging_dir) / "log"
            self._log = DurableLog(folder, max_bytes=self.config.buffer, log=self.ctx.log, count=self.ctx.metric)
            self._session = Session(folder, self._log)
            self._intake = Intake(
                self._connection,
                self.client_id,
                self._filters,
                self._log,
                self._session,
                retained=self.config.retained == "keep",
                persistent=self.config.session == "persistent",
                ctx=self.ctx,
            )
        return self._log, self._intake

    @property
    def client_id(self) -> str:
        """The name under which the broker knows this source, the same in every run."""
        if self.config.client_id is not None:
            return self.config.client_id
        workflow = self.ctx.run.workflow_id if self.ctx.run is not None else str(self.ctx.base_dir)
        return "dataflare-" + hashlib.sha256(f"{workflow}/{self.ctx.node}".encode()).hexdigest()[:12]

    def _connection(self, on_message: Callable[[Any], None], on_release: Callable[[int], None]) -> Connection:
        persistent = self.config.session == "persistent"
        return Connection(
            self.config,
            self.client_id,
            Path(self.ctx.base_dir),
            clean=not persistent,
            expiry=self.config.session_expiry if persistent else 0.0,
            on_message=on_message,
            on_release=on_release,
        )

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset:  # noqa: ARG002
        """Return where the log stands once it holds all that the broker has for us now."""
        log, intake = self._begun()
        end = intake.drained(self._leaves)
        return {"v": 1, "parts": {"": max(end, log.start) - 1}}

    def _leaves(self) -> bool:
        return self.cancelled.is_set() or self.ctx.cancelled()

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Forget what every destination holds."""
        if self._log is not None and self._session is not None:
            to = int(offset["parts"][""]) + 1
            self._log.trim(self._session.before_trim(to))

    def close(self) -> None:
        """Leave the broker; what came is in the log."""
        if self._intake is not None:
            self._intake.leave(PATIENCE)
        if self._log is not None:
            self._log.close()
        if self._intake is not None:
            self._intake.leave()


class LogReader(MessageReader):
    """Reads the durable log; a message's position is its number there."""

    def __init__(
        self,
        source: MqttSource,
        log: DurableLog,
        intake: Intake,
        partition: Partition,
        extract: ExtractSpec,
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        super().__init__(source, partition, extract, offset, until)
        self._log, self._intake = log, intake
        self._next = int(self.positions.setdefault("", log.start - 1)) + 1
        log.resume(self._next)
        intake.start()

    def fetch(self, max_rows: int, max_bytes: int, deadline: float) -> Messages | None:
        """Return what came next in the log."""
        page = self._log.read(self._next, max_rows, max_bytes, deadline)
        if page is None:
            if self._intake.error is not None:
                raise self._intake.error
            return None
        self._next = page.next
        return page.messages
