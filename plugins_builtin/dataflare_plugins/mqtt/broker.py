"""A client of a broker: made one way from the options, connected, and told what a refusal means.

Messages of quality 2 are taken in two steps: PUBLISH and PUBREC hand a message over, PUBREL and PUBCOMP forget its number. paho
sends PUBREC by itself before anybody has the message, and holds it in memory: a crash would lose it. `Client` leaves
both answers to its owner, who gives them when the message, or that its number is free, is on the disk.
"""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataflare_plugins.mqtt.errors import UNREACHABLE, client_module, of_connack, of_socket
from dataflare_plugins.mqtt.options import BrokerConfig, TlsConfig, address
from dataflare_sdk import RetriableError

CONNECT_TIMEOUT = 10.0
LARGEST = 268_435_455
"""Bytes of a packet behind its first ones at most, by the protocol."""


class Connection:
    """A client and what it says; used from one thread, which calls `loop`.

    Args:
        config: the broker, and as whom.
        client_id: name of the client.
        base: folder that the paths of `tls` start from.
        clean: forget at the broker what an earlier connection of this client left.
        expiry: seconds for which the broker keeps what this client subscribed to after it left (MQTT 5).
        window: messages that may be under way to us at once (MQTT 5).
        on_message: called with each message; of quality 2 when its PUBLISH came.
        on_release: called with the number of a message of quality 2 that the broker has done with.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        base: Path,
        *,
        clean: bool = True,
        expiry: float = 0.0,
        window: int = 1000,
        on_message: Callable[[Any], None] | None = None,
        on_release: Callable[[int], None] | None = None,
    ) -> None:
        self._mqtt = client_module()
        self.host, self.port, secure = address(config)
        self.place = f"{config.url}"
        self._v5 = config.protocol == "v5"
        self._clean, self._expiry, self._window, self._keepalive = clean, expiry, window, max(1, round(config.keepalive))
        self.session_present = False
        self.connected = False
        self._welcomed = False
        self.allowed = 20
        """Messages that may be under way to the broker at once; more, and it ends the connection."""
        self.largest = LARGEST
        """Bytes of a packet that the broker takes, as far as it says so (MQTT 5); a larger one, and it ends the connection."""
        self._refused: Any = None
        self._granted: dict[int, list[Any]] = {}
        self.client = _client_class(self._mqtt)(
            self._mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._v5 else clean,
            protocol=self._mqtt.MQTTv5 if self._v5 else self._mqtt.MQTTv311,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        self.client.on_release = on_release
        self.client.on_publish_two = on_message
        self.client.connect_timeout = CONNECT_TIMEOUT
        if config.username is not None or config.password is not None:
            self.client.username_pw_set(config.username or "", config.password)
        self._tls = (config.tls or TlsConfig()) if secure else None
        self._base = base
        if on_message is not None:
            self.client.on_message = lambda _c, _u, message: on_message(message)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = lambda _c, _u, mid, codes, _p: self._granted.update({mid: codes})

    # -- coming and going ----------------------------------------------------------------------------------

    def connect(self, deadline: float | None = None) -> None:
        """Connect and wait for the broker's answer; it may end the connection right behind it, see `connected`.

        Raises:
            DataflareError: `mqtt.tls`, `mqtt.denied`, `mqtt.refused`; retriable `mqtt.unreachable`.
        """
        end = deadline if deadline is not None else time.monotonic() + CONNECT_TIMEOUT
        options: dict[str, Any] = {"keepalive": self._keepalive}
        if self._v5:
            options |= {"clean_start": self._clean, "properties": self._properties()}
        self._refused, self._welcomed = None, False
        try:
            if self._tls is not None and self.client._ssl_context is None:
                self.client.tls_set_context(_context(self._tls, self._base))
            self.client.connect(self.host, self.port, **options)
        except OSError as error:
            raise of_socket(error, self.place) from error
        # One turn of the loop may hear the answer, send what waits for it, and see the broker end the connection over that.
        while not self._welcomed:
            if self._refused is not None:
                raise of_connack(self._refused, self.place)
            if time.monotonic() > end or (not self.loop(0.1) and self._refused is None and not self._welcomed):
                raise RetriableError(UNREACHABLE.problem(f"{self.place}: it does not answer", path="url"))

    def loop(self, seconds: float) -> bool:
        """Read and write for up to `seconds`; False: the connection is gone."""
        try:
            return bool(self.client.loop(seconds) == self._mqtt.MQTT_ERR_SUCCESS)
        except (OSError, ValueError):  # paho closed the socket under its own select
            return False

    def close(self) -> None:
        """Leave, with a word to the broker if it is there."""
        if self.connected:
            self.client.disconnect()
            self.loop(0.0)
        self.client._sock_close()
        self.connected = False

    def subscribe(self, filters: dict[str, int], *, retained: bool) -> list[str]:
        """Subscribe, and return the filters that the broker refuses.

        Raises:
            RetriableError: `mqtt.unreachable`.
        """
        if self._v5:
            options = self._mqtt.SubscribeOptions
            wanted: list[Any] = [(f, options(qos=q, retainHandling=1 if retained else 2)) for f, q in filters.items()]
        else:
            wanted = list(filters.items())
        _, mid = self.client.subscribe(wanted)
        end = time.monotonic() + CONNECT_TIMEOUT
        while mid not in self._granted:
            if time.monotonic() > end or not self.loop(0.1):
                raise RetriableError(UNREACHABLE.problem(f"{self.place}: it does not answer", path="url"))
        return [f for f, answer in zip(filters, self._granted.pop(mid), strict=False) if answer.value >= 0x80]

    # -- what paho says ------------------------------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused = reason
            return
        self.connected, self._welcomed, self.session_present = True, True, bool(flags.session_present)
        self.allowed = getattr(properties, "ReceiveMaximum", None) or 20
        self.largest = getattr(properties, "MaximumPacketSize", None) or LARGEST

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self.connected = False

    def _properties(self) -> Any:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        made: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call,unused-ignore]
        made.SessionExpiryInterval = min(round(self._expiry), 0xFFFFFFFF)
        made.ReceiveMaximum = self._window
        return made


def _context(tls: TlsConfig, base: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if tls.ca is None else str(base / tls.ca))
    if tls.cert is not None:
        context.load_cert_chain(str(base / tls.cert), None if tls.key is None else str(base / tls.key))
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _client_class(mqtt: Any) -> Any:
    """Return paho's client with the answers to messages of quality 2 left to its owner.

    It reaches into paho where paho has no door: `pyproject.toml` holds the versions that this was tried with.
    """

    class Client(mqtt.Client):  # type: ignore[misc,unused-ignore]
        on_publish_two: Callable[[Any], None] | None = None
        on_release: Callable[[int], None] | None = None
        careful = False  # connected again, it sends one of its messages, and the others when that one is acknowledged

        def _messages_reconnect_reset_out(self) -> None:
            super()._messages_reconnect_reset_out()
            if self.careful:
                with self._out_message_mutex:
                    again = [m for m in self._out_messages.values() if m.state == mqtt.mqtt_ms_publish]
                    for message in again[1:]:
                        message.state = mqtt.mqtt_ms_queued

        def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
            # As paho does it, and closed when it fails.
            wrapped = self._ssl_context.wrap_socket(tcp_sock, server_hostname=self._host, do_handshake_on_connect=False)
            try:
                wrapped.settimeout(self._connect_timeout)
                wrapped.do_handshake()
            except BaseException:
                wrapped.close()
                raise
            return wrapped

        def _handle_publish(self) -> Any:
            answer = super()._handle_publish()
            for mid in list(self._in_messages):
                message = self._in_messages.pop(mid)
                if self.on_publish_two is not None:
                    self.on_publish_two(message)
            return answer

        def _send_pubrec(self, mid: int) -> Any:  # noqa: ARG002
            return mqtt.MQTT_ERR_SUCCESS

        def received(self, mid: int) -> None:
            """Tell the broker that a message of quality 2 is on the disk."""
            super()._send_pubrec(mid)

        def _handle_pubrel(self) -> Any:
            (mid,) = struct.unpack("!H", bytes(self._in_packet["packet"][:2]))
            answer = super()._handle_pubrel()
            if self.on_release is not None:
                self.on_release(mid)
            return answer

    return Client
