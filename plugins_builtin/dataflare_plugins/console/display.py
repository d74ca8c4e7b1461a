"""Rows, rows per second and bytes of every node, while a run goes on."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dataflare_sdk import Component, RunHandle, config, option

INTERVAL = 0.25


@config
class ConsoleConfig:
    """How it is shown."""

    color: bool = option("Use colours.", default=True)


class ConsoleDisplay(Component[ConsoleConfig]):
    """Reads the run's counters four times a second on a thread of its own; it never touches a row."""

    Config = ConsoleConfig

    def __init__(self, config: ConsoleConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handle: RunHandle) -> None:
        """Begin to show a run."""
        self._thread = threading.Thread(target=self._show, args=(handle,), name="dataflare-console", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the display."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _show(self, handle: RunHandle) -> None:
        console = Console(stderr=True, no_color=not self.config.color)
        began = time.monotonic()
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while not self._ended.wait(INTERVAL):
                live.update(picture(handle.snapshot(), time.monotonic() - began))


def picture(snapshot: Any, seconds: float) -> Table:
    """Return the counters as a table."""
    table = Table(box=None, header_style="dim", title=f"{seconds:.0f} s, epoch {snapshot.get('epoch', 0)}", title_justify="left")
    for name in ("node", "kind", "rows", "rows/s", "bytes", "bad"):
        table.add_column(name, justify="left" if name in ("node", "kind") else "right")
    for node in snapshot.get("nodes", ()):
        rows = int(node.get("rows_in", 0))
        rate = rows / seconds if seconds else 0.0
        bad = int(node.get("skipped", 0)) + int(node.get("dead_lettered", 0))
        size = f"{node['bytes'] / 2**20:,.1f} MiB" if node.get("bytes") else ""
        table.add_row(node["id"], node["kind"], f"{rows:,}", f"{rate:,.0f}", size, f"{bad:,}" if bad else "")
    return table
