"""The intake: a thread that takes what the broker sends into the durable log, and tells the broker only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dataflare_plugins.mqtt.broker import Connection
from dataflare_plugins.mqtt.errors import LOST, NOT_ALLOWED
from dataflare_plugins.mqtt.session import Session, note
from dataflare_sdk import RetriableError
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages

declare("mqtt.received", "mqtt.logged", "mqtt.acknowledged")

PATIENCE = 30.0
"""Seconds without a connection after which the run is told."""
STEADY = 5.0
"""Seconds that a connection without messages must have held to count as one."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between attempts to connect again."""
GATHER = 1_000
"""Messages that share one write to the log at most."""
OVERHEAD = 256
"""Bytes in the log beside a payload, allowed for when room is made."""
QUIET = 2.0
"""Seconds without any message after which a broker that does not hand our own marker back is taken to have no more."""


class Intake:
    """Receives in the background, from `start` to `leave`.

    Messages of quality 1 and 2 are acknowledged when they are on the disk; while the log is full nothing is, and the broker keeps
    what follows. One of quality 2 that comes again is known by its number and dropped; one of quality 1 cannot be told
    from a new one with the same content, and is kept.

    Args:
        connect: makes a connection for the two callbacks it is given: of messages, and of numbers that are free again.
        client_id: this client's name.
        filters: topic filter to quality.
        log: the log.
        session: what is remembered of the broker.
        retained: take what the broker kept from before the subscription.
        persistent: the broker keeps the session.
        ctx: for the log of the run and for metrics.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Any], None], Callable[[int], None]], Connection],
        client_id: str,
        filters: dict[str, int],
        log: DurableLog,
        session: Session,
        *,
        retained: bool,
        persistent: bool,
        ctx: Any,
    ) -> None:
        self._connect = connect
        self._client_id, self._filters = client_id, filters
        self._log, self._session, self._ctx = log, session, ctx
        self._retained, self._persistent = retained, persistent
        self._marker_topic = f"dataflare/{client_id}/marker"
        self._got: list[tuple[Any, int]] = []
        """Messages that are not in the log yet, with the time they came."""
        self._known: list[Any] = []
        """Messages to be acknowledged that are not to be put there."""
        self._free: list[int] = []
        """Numbers of messages of quality 2 that the broker has done with."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._drain: threading.Event | None = None
        self._marked = self._unmarked = False
        self._came = 0
        """Messages that came so far."""
        self.error: BaseException | None = None
        """Why it ended, or why it cannot connect; for whoever reads the log."""

    def start(self) -> None:
        """Begin, if it has not."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
            self._thread.start()

    def leave(self, seconds: float | None = None) -> None:
        """Leave the broker and wait for the end of the thread, for so long; it may wait for room in the log."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def drained(self, cancelled: Callable[[], bool]) -> int:
        """Wait until all that the broker has for us at this moment is in the log, and return the position behind it.

        We publish a marker to a topic of our own: what comes before it was there. A broker that does not let us is taken to have
        no more when it sent nothing for a while.

        Raises:
            DataflareError: why the broker cannot be reached.
        """
        done = threading.Event()
        self._marked = self._unmarked = False
        self._drain = done
        self.start()
        while not done.wait(0.05):
            if self.error is not None:
                raise self.error
            if cancelled():
                break
        self._drain = None
        return self._log.end

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait, since = FIRST_WAIT, time.monotonic()
        connected_once = False
        while not self._stop.is_set():
            came = self._came
            # What was not acknowledged on an earlier connection comes again.
            self._got, self._known, self._free = [], [], []
            connection: Connection | None = None
            try:
                connection = self._connect(self._take, lambda mid: self._free.append(mid))
                connection.connect()
                connected_once = True
                began = time.monotonic()
                self._serve(connection)
                if self._came > came or time.monotonic() - began > STEADY:
                    wait, since = FIRST_WAIT, time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    self.error = RetriableError(
                        LOST.problem(f"{connection.place}: it ends every connection; is another client '{self._client_id}'?")
                    )
            except RetriableError as error:
                if not connected_once:
                    self.error = error
                elif time.monotonic() - since > PATIENCE:
                    self.error = RetriableError(LOST.problem(error.problems[0].message))
            except BaseException as error:
                self.error = error
            finally:
                if connection is not None:
                    connection.close()
            if self.error is not None:
                self._log.wake()
                return
            if not self._stop.is_set():
                self._ctx.metric("mqtt_reconnects", 1)
                self._stop.wait(wait)
                wait = min(wait * 2, LONGEST_WAIT)

    def _serve(self, connection: Connection) -> None:
        """Receive until the connection is gone or we are told to stop."""
        self._subscribe(connection)
        asked = quiet = 0.0
        while True:
            alive = connection.loop(0.0 if self._got or self._known else 0.1)
            while alive and 0 < (before := len(self._got)) < GATHER and connection.loop(0.0) and len(self._got) > before:
                pass
            if self._got:
                quiet = time.monotonic()
            if not self._flush(connection):
                return
            if self._stop.is_set():
                return
            if self._drain is None:
                asked = 0.0
            elif not asked:
                asked = quiet = time.monotonic()
                self._mark(connection)
            elif self._marked or time.monotonic() - quiet > (QUIET if self._unmarked else 5 * QUIET):
                connection.client.unsubscribe(self._marker_topic)
                self._drain.set()
                self._drain = None

    def _mark(self, connection: Connection) -> None:
        """Publish the marker to ourselves; what the broker has for us stands before it."""
        self._marked = False
        if self._unmarked:  # refused before: Mosquitto 2.0 ends the connection at that
            return
        self._unmarked = bool(connection.subscribe({self._marker_topic: 1}, retained=False))
        if not self._unmarked:
            connection.client.on_publish = self._published
            connection.client.publish(self._marker_topic, b"", qos=1)

    def _published(self, _client: Any, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        self._unmarked = bool(reason.is_failure)

    def _subscribe(self, connection: Connection) -> None:
        known = self._session.filters
        if not connection.session_present:
            if known is not None and self._persistent and self._session.client_id == self._client_id:
                self._ctx.metric("mqtt_sessions_lost", 1)
                self._ctx.log.warning(
                    "{}: the broker has forgotten this client's session; what was published since it left is lost", connection.place
                )
            self._session.begun_anew()
            known = None
        elif known is None or self._session.client_id != self._client_id:
            known = None
        gone = [f for f in known or {} if f not in self._filters]
        if gone:
            connection.client.unsubscribe(gone)
        new = {f: q for f, q in self._filters.items() if (known or {}).get(f) != q}
        if new:
            refused = connection.subscribe(new, retained=self._retained)
            if refused:
                raise NOT_ALLOWED.error(f"{connection.place}: it does not let this client read '{refused[0]}'", path="topics")
        if self._persistent:
            self._session.subscribed(self._client_id, self._filters)

    def _take(self, message: Any) -> None:
        """Judge a message that came; its answer waits for `_flush`."""
        self._came += 1
        if message.topic == self._marker_topic:
            self._marked = True
            self._known.append(message)
        elif message.retain and not self._retained:
            self._known.append(message)
        elif message.qos == 2 and self._session.holds(message.mid):
            self._ctx.metric("mqtt_delivered_again", 1)
            self._known.append(message)
        else:
            if message.dup:
                self._ctx.metric("mqtt_perhaps_doubled", 1)
            self._got.append((message, round(time.time() * 1e6)))

    def _flush(self, connection: Connection) -> bool:
        """Put what came into the log, then tell the broker; False when the connection is gone."""
        while self._got:
            count = self._some()
            if not self._make_room(connection, count):
                self._got = [(m, t) for m, t in self._got if m.qos == 0 or not self._persistent]
                self._write(len(self._got))
                return False
            for message in self._write(count):
                _answer(connection, message)
            failpoint("mqtt.acknowledged")
        for message in self._known:
            _answer(connection, message)
        self._known = []
        if self._free:
            free, self._free = self._free, []
            self._session.released(free)
            for mid in free:
                connection.client.ack(mid, 2)
        return connection.connected

    def _some(self) -> int:
        """Return how many of the messages that came go into the log at once: a part of it, so that there will be room."""
        size = count = 0
        for message, _ in self._got:
            size += len(message.payload) + OVERHEAD
            if count and size > self._log.max_bytes // 8:
                break
            count += 1
        return count

    def _make_room(self, connection: Connection, count: int) -> bool:
        """Wait until the first messages that came fit into the log; False when the connection is gone, or we are to end."""
        need = sum(len(m.payload) + OVERHEAD for m, _ in self._got[:count])
        while connection.connected:
            if self._log.wait_for_room(need, time.monotonic() + 0.5):
                return True
            if self._stop.is_set():
                return False
            # The broker wants to hear of us. Only so many more may come as it sends without an answer; without answers
            # there is no end to it, and it has to wait.
            if 0 not in self._filters.values():
                connection.loop(0.0)
        return False

    def _write(self, count: int) -> list[Any]:
        """Append the first messages that came to the log, and return them."""
        got, self._got = self._got[:count], self._got[count:]
        if not got:
            return []
        failpoint("mqtt.received")
        messages = [m for m, _ in got]
        page = Messages(
            [bytes(m.payload) for m in messages],
            range(len(got)),
            topic=[m.topic for m in messages],
            time=[t for _, t in got],
            headers=[_headers(m) for m in messages],
        )
        end = self._log.append(page, [note(m.mid) if m.qos == 2 else None for m in messages])
        self._session.took((m.mid for m in messages if m.qos == 2), end)
        failpoint("mqtt.logged")
        return messages


def _answer(connection: Connection, message: Any) -> None:
    if message.qos == 2:
        connection.client.received(message.mid)
    else:
        connection.client.ack(message.mid, message.qos)


def _headers(message: Any) -> dict[str, str] | None:
    """Return the user properties of a message of MQTT 5."""
    properties = getattr(message.properties, "UserProperty", None)
    return None if properties is None else dict(properties)
