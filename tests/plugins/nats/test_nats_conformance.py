"""The destination passes the suite of its kind, against a real server; the oracle is nats-py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.servers.nats import NatsServer

from dataflare_plugins.nats.destination import NatsDestination
from dataflare_sdk.testing import DestinationSuite


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
