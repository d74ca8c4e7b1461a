"""Source and destination pass the suites of their kinds, against a real server; the oracle is nats-py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.plugins.messaging import COLUMNS, message
from tests.servers.nats import NatsServer

from dataflare_plugins.nats.destination import NatsDestination
from dataflare_plugins.nats.source import NatsSource
from dataflare_sdk import ExtractSpec
from dataflare_sdk.testing import DestinationSuite, SourceSuite


def test_source(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("s", ["s.*"])
    nats_server.publish("s.rows", [message(i) for i in range(25)])
    parsed = NatsSource.configure({"url": nats_server.url, "stream": "s", "columns": COLUMNS})

    class Once(NatsSource):
        """Stops where the stream ends: the suite waits for an end."""

        def open(self, partition: Any, extract: Any, offset: Any, until: Any = None) -> Any:
            return super().open(partition, extract, offset, until or self.position(partition, extract))

    SourceSuite(lambda ctx: Once(parsed, ctx), folder=tmp_path, extract=ExtractSpec(mode="incremental")).assert_conforms()


def test_destination(nats_server: NatsServer, tmp_path: Path) -> None:
    made: list[str] = []

    def make(ctx: Any) -> NatsDestination:
        name = ctx.base_dir.name
        if name not in made:
            nats_server.stream(name, [f"{name}.*"])
            made.append(name)
        return NatsDestination(NatsDestination.configure({"url": nats_server.url, "subject": f"{name}.rows"}), ctx)

    def read(folder: Path) -> list[tuple[Any, ...]] | None:
        rows = [json.loads(m.data) for m in nats_server.messages(folder.name)]
        return sorted((r["id"], r["name"]) for r in rows)

    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()
