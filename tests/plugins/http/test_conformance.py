"""The destination passes the suite of its kind, against a server that takes every key once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.http.receiver import Receiver

from dataflare_plugins.http.destination import HttpDestination
from dataflare_sdk.testing import DestinationSuite


@pytest.mark.parametrize("config", [{}, {"body": "ndjson", "compress": True}, {"method": "PUT", "body": "object", "url": "/{id}"}], ids=str)
def test_suite(config: dict[str, Any], receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    servers: dict[Path, Receiver] = {}

    def server(folder: Path) -> Receiver:
        if folder not in servers:
            servers[folder] = receiver()
        return servers[folder]

    def make(ctx: Any) -> HttpDestination:
        raw = {**config, "url": server(ctx.base_dir).url + config.get("url", "/rows")}
        return HttpDestination(HttpDestination.configure(raw), ctx)

    def read(folder: Path) -> list[tuple[Any, ...]]:
        by_key = {row["id"]: row["name"] for row in server(folder).once_per_key()}
        return sorted(by_key.items())

    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()
