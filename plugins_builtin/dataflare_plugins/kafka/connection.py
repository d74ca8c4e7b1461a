"""Clients of one set of brokers: made the one way that everything here relies on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dataflare_plugins.kafka.errors import BAD_OPTION, BUSY, NO_TOPIC, administration, driver, explained, named, reason
from dataflare_plugins.kafka.options import Security
from dataflare_sdk import DataflareError

OURS = named(
    "bootstrap.servers metadata.broker.list transactional.id enable.idempotence isolation.level enable.auto.commit "
    "enable.auto.offset.store auto.offset.reset enable.partition.eof group.id acks request.required.acks"
)
"""Properties that what is promised rests on; `client` may not change them."""
_SECURITY = {
    "mechanism": "sasl.mechanisms",
    "username": "sasl.username",
    "password": "sasl.password",
    "ca": "ssl.ca.location",
    "certificate": "ssl.certificate.location",
    "key": "ssl.key.location",
    "key_password": "ssl.key.password",
}
_FILES = ("ca", "certificate", "key")
SEVERE = 40
"""Level of Python's logging from which a line of the client's is a warning of ours."""


QUIET = 10.0
"""Seconds after a warning in which there is no other one."""


class Reach(Protocol):
    """What of a `with:` block says how to reach the brokers."""

    @property
    def brokers(self) -> str:
        """Where to begin."""
        ...

    @property
    def security(self) -> Security | None:
        """How connections are secured."""
        ...

    @property
    def client(self) -> Mapping[str, Any]:
        """More properties of the client."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds an answer may take."""
        ...


class _ClientLog:
    """Takes what librdkafka logs, which would go to standard error otherwise: without a broker that is a line for every try."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._warned = -QUIET

    def log(self, level: int, text: str, *arguments: Any) -> None:
        line = text % arguments if arguments else text
        severe = level >= SEVERE and time.monotonic() - self._warned >= QUIET
        if severe:
            self._warned = time.monotonic()
        (self._log.warning if severe else self._log.debug)("kafka: {}", line)


class Brokers:
    """Makes clients and asks the brokers about topics.

    Args:
        reach: the `with:` block.
        ctx: the component's context: log, base folder.
        looking: properties of the client that looks.
    """

    def __init__(self, reach: Reach, ctx: Any, looking: Mapping[str, Any] | None = None) -> None:
        self.timeout = reach.timeout
        self.name = reach.brokers
        self._log = _ClientLog(ctx.log)
        self._last: Any = None
        self._looking: Any = None
        self._looks_as = {"group.id": "dataflare-looking", **(looking or {})}
        self._properties = _properties(reach, Path(ctx.base_dir))

    # -- clients -------------------------------------------------------------------------------------------

    def consumer(self, properties: Mapping[str, Any]) -> Any:
        """Return a consumer that never commits or resets an offset by itself."""
        fixed = {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
        }
        return self._made(driver().Consumer, {**fixed, **properties})

    def producer(self, properties: Mapping[str, Any]) -> Any:
        """Return an idempotent producer."""
        return self._made(driver().Producer, {"enable.idempotence": True, "delivery.report.only.error": True, **properties})

    def admin(self) -> Any:
        """Return a client that makes and describes topics."""
        return self._made(administration().AdminClient, {})

    def _made(self, kind: Callable[..., Any], properties: Mapping[str, Any]) -> Any:
        whole = {**self._properties, **properties, "error_cb": self._failed}
        try:
            return kind(whole, logger=self._log)
        except (driver().KafkaException, ValueError, TypeError) as error:
            # The client names the property; it repeats the value of none that is secret.
            raise BAD_OPTION.error(f"the client does not take an option: {_told(error)}", path="client") from error

    def _failed(self, error: Any) -> None:
        """Keep what the client says of its connections: what fails for it later fails as a time-out only."""
        self._last = error

    @property
    def down(self) -> bool:
        """Whether the client has said that no broker can be reached, since it was asked last."""
        last, self._last = self._last, None
        return last is not None and last.name() == "_ALL_BROKERS_DOWN"

    def answers(self) -> bool:
        """Ask for an answer, any answer."""
        try:
            self.looking.list_topics("", timeout=self.timeout)
        except driver().KafkaException:
            return False
        return True

    @contextlib.contextmanager
    def errors(self, what: str, path: str | None = None, client: Any = None) -> Iterator[None]:
        """Turn the client's errors into ours.

        Args:
            what: what is being done, for messages.
            path: the key of the `with:` block it is about.
            client: who does it; asked for what it has to say of its connections.
        """
        try:
            yield
        except driver().KafkaException as error:
            if client is not None:
                client.poll(0)
            raise self.explained(error, what, path) from error

    def explained(self, error: Any, what: str, path: str | None = None) -> DataflareError:
        """Return what an error means; behind a time-out often lies a refused login."""
        found, last = reason(error), self._last
        if (
            last is not None
            and found.name() in ("_TRANSPORT", "_TIMED_OUT", "_ALL_BROKERS_DOWN")
            and last.name() in ("_AUTHENTICATION", "_SSL")
        ):
            found = last
        return explained(found, f"{what} ({self.name})", path)

    # -- topics --------------------------------------------------------------------------------------------

    def partitions(self, topic: str, path: str = "topic") -> list[int]:
        """Return the partitions of a topic.

        Raises:
            DataflareError: `kafka.no-topic`, `kafka.permission`, `kafka.unreachable`.
        """
        there = self._found(topic, path)
        if there.error is not None:
            raise self.explained(there.error, f"the topic '{topic}'", path)
        if not there.partitions:
            raise NO_TOPIC.error(f"there is no topic '{topic}' ({self.name})", path=path)
        return sorted(there.partitions)

    def exists(self, topic: str, path: str = "topic") -> bool:
        """Return whether a topic is there."""
        there = self._found(topic, path)
        return there.error is None and bool(there.partitions)

    def _found(self, topic: str, path: str) -> Any:
        with self.errors(f"looking for the topic '{topic}'", path, self.looking):
            return self.looking.list_topics(topic, timeout=self.timeout).topics[topic]

    def identities(self, topics: Sequence[str]) -> dict[str, str]:
        """Return the ids of topics, as far as they can be told: one that is made anew under its old name has another."""
        with self.errors("looking at topics"):
            known = self.looking.list_topics(topics[0], timeout=self.timeout)
        if known.controller_id not in known.brokers:
            return {}  # nobody who could be asked
        admin = self.admin()
        asked = admin.describe_topics(driver().TopicCollection(list(topics)), request_timeout=self.timeout)
        found: dict[str, str] = {}
        for topic, answer in asked.items():
            with contextlib.suppress(driver().KafkaException):
                found[topic] = str(answer.result().topic_id)
        return found

    @property
    def looking(self) -> Any:
        """A client that only looks: brokers that make topics when they are asked for make none for it."""
        if self._looking is None:
            self._looking = self.consumer(self._looks_as)
        return self._looking

    def create(self, client: Any, topic: str, partitions: int, replication: int, settings: Mapping[str, str], path: str) -> None:
        """Make a topic and wait until it can be used; -1 stands for what the brokers do by default.

        Somebody else may make it at the same time.
        """
        with self.errors(f"making the topic '{topic}'", path):
            wanted = administration().NewTopic(topic, num_partitions=partitions, replication_factor=replication, config=dict(settings))
            try:
                client.create_topics([wanted], operation_timeout=self.timeout, request_timeout=self.timeout)[topic].result()
            except driver().KafkaException as error:
                if reason(error).name() != "TOPIC_ALREADY_EXISTS":
                    raise
            give_up = time.monotonic() + self.timeout
            while not self._led(topic, path):
                if time.monotonic() > give_up:
                    raise BUSY.retriable(f"the topic '{topic}' was made and cannot be used yet ({self.name})", path=path)
                time.sleep(0.02)

    def _led(self, topic: str, path: str) -> bool:
        found = self._found(topic, path)
        return found.error is None and bool(found.partitions) and all(p.leader >= 0 for p in found.partitions.values())

    def setting(self, client: Any, topic: str, name: str) -> str | None:
        """Return a setting of a topic, None when it may not be looked at."""
        admin = administration()
        resource = admin.ConfigResource(admin.ResourceType.TOPIC, topic)
        try:
            found = client.describe_configs([resource], request_timeout=self.timeout)[resource].result()
        except driver().KafkaException:
            return None
        return str(found[name].value) if name in found else None

    def close(self) -> None:
        """Let go of what looks."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.close()


def _properties(reach: Reach, base: Path) -> dict[str, Any]:
    properties: dict[str, Any] = {"client.id": "dataflare", "bootstrap.servers": reach.brokers}
    security = reach.security
    if security is not None:
        properties["security.protocol"] = security.protocol
        if not security.verify:
            properties["ssl.endpoint.identification.algorithm"] = "none"
            properties["enable.ssl.certificate.verification"] = False
        for key, name in _SECURITY.items():
            value = getattr(security, key)
            if value is not None:
                properties[name] = str((base / value).absolute()) if key in _FILES else value
        if security.protocol.startswith("sasl") and None in (security.mechanism, security.username, security.password):
            missing = next(k for k in ("mechanism", "username", "password") if getattr(security, k) is None)
            raise BAD_OPTION.error(f"the protocol {security.protocol} needs `{missing}`", path=f"security.{missing}")
    for name, value in reach.client.items():
        if name in OURS:
            raise BAD_OPTION.error(f"'{name}' cannot be set: what the connector promises rests on it", path=f"client.{name}")
        properties[name] = value
    return properties


def _told(error: Exception) -> str:
    found = reason(error)
    return str(found.str()) if hasattr(found, "str") else str(error)
