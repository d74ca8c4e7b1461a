"""A NATS server with JetStream for tests: loopback, a folder of its own."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_sdk.servers import ServerProcess

PROGRAM = shutil.which("nats-server")


def installed() -> bool:
    """Whether NATS is here."""
    return PROGRAM is not None


class NatsServer(ServerProcess):
    """One server; `kill` and `start` again is a crash.

    Args:
        settings: more of its configuration (JSON is some of its format).
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__("nats")
        self.settings = dict(settings or {})

    @property
    def url(self) -> str:
        """Return the URL."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> NatsServer:
        """Start it and wait until it answers."""
        written = {"listen": f"127.0.0.1:{self.port}", "jetstream": {"store_dir": str(self.folder / "js")}, **self.settings}
        file = self.folder / "server.conf"
        file.write_text(json.dumps(written))
        file.chmod(0o644)
        self.begin([str(PROGRAM), "-c", str(file)], self._answers)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as knock:
                return knock.recv(5) == b"INFO " and "Server is ready" in self.log.read_text()
        except OSError:
            return False

    # -- by the library nats-py, which shares no code with the plugin ------------------------------------------

    def run(self, act: Any) -> Any:
        """Run `act(client, jetstream)`, a coroutine function, and return its result."""
        import asyncio

        import nats

        async def whole() -> Any:
            client = await nats.connect(self.url, **self.login)
            try:
                return await act(client, client.jetstream())
            finally:
                await client.close()

        return asyncio.run(whole())

    login: Mapping[str, Any] = {}
    """How the oracle connects."""

    def stream(self, name: str, subjects: Sequence[str], **more: Any) -> None:
        """Make a stream."""
        self.run(lambda _, js: js.add_stream(name=name, subjects=list(subjects), **more))

    def publish(self, subject: str, payloads: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
        """Publish messages and wait until all are stored."""

        async def act(client: Any, js: Any) -> None:
            import asyncio

            for start in range(0, len(payloads), 500):
                await asyncio.gather(*(js.publish(subject, p, headers=headers) for p in payloads[start : start + 500]))

        self.run(act)

    def messages(self, stream: str) -> list[Any]:
        """Return every message of a stream, in its order."""

        async def act(client: Any, js: Any) -> list[Any]:
            state = (await js.stream_info(stream)).state
            found: list[Any] = []
            if state.messages:
                taken = await js.pull_subscribe(">", stream=stream, config=_all())
                while len(found) < state.messages:
                    found += await taken.fetch(min(500, state.messages - len(found)), timeout=10)
            return found

        return list(self.run(act))

    def messages_by_number(self, stream: str, first: int, last: int) -> list[int]:
        """Return which of these sequence numbers a stream holds; of a work queue, too, which takes no second consumer."""

        async def act(_: Any, js: Any) -> list[int]:
            from nats.js.errors import NotFoundError

            found = []
            for number in range(first, last + 1):
                try:
                    found.append((await js.get_msg(stream, number)).seq)
                except NotFoundError:
                    continue
            return found

        return list(self.run(act))

    def consumer(self, stream: str, name: str) -> Any:
        """Return what the server says of a consumer."""
        return self.run(lambda _, js: js.consumer_info(stream, name))


def _all() -> Any:
    from nats.js.api import AckPolicy, ConsumerConfig

    return ConsumerConfig(ack_policy=AckPolicy.NONE)
