"""`observe: {metrics: prometheus}`: an endpoint on loopback, a text file, or both."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_plugins.monitor_prometheus.exposition import text
from dataflare_sdk import Duration, Monitor, Plan, RunEvent, Workflow, code, config, option
from dataflare_sdk.atomic import explained, hidden, make_folder
from dataflare_sdk.run_metrics import RunMetrics

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

PORT = 9464
CANNOT_LISTEN = code(
    "prometheus.cannot-listen",
    4,
    "The port for metrics cannot be listened on.",
    "Give another `port`; `port: 0` takes a free one and logs it.",
)


@config
class PrometheusConfig:
    """Where the metrics are to be found."""

    port: int | None = option(
        "Port of the endpoint `/metrics`; 0 takes a free one and logs it. By default 9464, and none where `textfile` is given.",
        default=None, minimum=0, maximum=65535,
    )  # fmt: skip
    host: str = option("Address it listens on.", default="127.0.0.1")
    textfile: str | None = option(
        "File for the textfile collector of node_exporter, relative to the workflow; it stays when the run has ended.",
        default=None, example="metrics/orders.prom",
    )  # fmt: skip
    every: Duration = option("How often the file is written while a run goes on.", default=5.0, example="5s")


class PrometheusMonitor(Monitor[PrometheusConfig]):
    """Serves the metrics while the run goes on, and leaves the file behind."""

    Config = PrometheusConfig
    features = frozenset({"metrics"})

    def __init__(self, config: PrometheusConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._file = None if config.textfile is None else Path(ctx.base_dir) / config.textfile
        self._port = PORT if config.port is None and config.textfile is None else config.port
        self._server: ThreadingHTTPServer | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def begin(self, run_id: str, workflow: Workflow) -> None:
        """Listen, and write the file for the first time.

        Raises:
            DataflareError: `prometheus.cannot-listen`, `world.*` of the file.
        """
        self._metrics = RunMetrics(workflow.name, run_id)
        if self._file is not None:
            self._write()
            threading.Thread(target=self._write_on, name="dataflare-prometheus-file", daemon=True).start()
        if self._port is not None:
            self._listen(self._port)

    def planned(self, plan: Plan) -> None:
        """Have every node there from the beginning."""
        self._metrics.planned(plan)

    def hear(self, event: RunEvent) -> None:
        """Take note of an event."""
        self._metrics.hear(event)

    def end(self, document: Mapping[str, Any]) -> None:
        """Write the file for the last time."""
        self._metrics.end(document)
        self._ended.set()
        if self._file is not None:
            self._write()

    def close(self) -> None:
        """Stop listening."""
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _page(self) -> bytes:
        return text(self._metrics.samples()).encode()

    def _write(self) -> None:
        assert self._file is not None
        staged = hidden(self._file, "new")
        with self._writing, explained(self._file):
            make_folder(self._file.parent)
            staged.write_bytes(self._page())
            staged.replace(self._file)

    def _write_on(self) -> None:
        while not self._ended.wait(self.config.every):
            try:
                self._write()
            except Exception as error:
                self.ctx.log.warning("the metrics cannot be written: {}", repr(error))

    def _listen(self, port: int) -> None:
        from dataflare_plugins.monitor_prometheus.endpoint import endpoint

        try:
            server = endpoint(self.config.host, port, self._page)
        except OSError as error:
            raise CANNOT_LISTEN.error(f"{self.config.host}:{port} cannot be listened on: {error.strerror}", path="port") from error
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.1,), name="dataflare-prometheus-http", daemon=True).start()
        self.ctx.log.info("metrics are served", url=f"http://{self.config.host}:{server.server_port}/metrics")
