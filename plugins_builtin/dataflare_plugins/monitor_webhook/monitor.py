"""`observe: {webhook: {url: …}}`: events of a run, posted as JSON, tried again when nobody answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from dataflare_sdk import Duration, Monitor, RunEvent, Workflow, config, option
from dataflare_sdk.posting import Poster

STARTED, ENDED, PROGRESS = "run.started", "run.ended", "progress"


@config
class WebhookConfig:
    """Where events go, and which."""

    url: str = option("Address, http or https.", example="https://hooks.example/dataflare")
    headers: dict[str, str] = option(
        "Headers that are sent along; their values are shown nowhere.", default_factory=dict,
        example={"Authorization": "Bearer ${secret:HOOK_TOKEN}"},
    )  # fmt: skip
    events: list[str] = option(
        "Names of events that are posted; `*` is all.", default_factory=lambda: [STARTED, "run.retried", ENDED], example=["run.ended"]
    )
    every: Duration = option("Shortest time between two posts of `progress`, which is posted when `events` names it.", default=10.0)
    timeout: Duration = option("Longest wait for an answer.", default=5.0, example="5s")
    attempts: int = option("How often a post is tried.", default=5, minimum=1, maximum=100)


class WebhookMonitor(Monitor[WebhookConfig]):
    """Posts one event after the other; what waits is bounded by the queue before every monitor."""

    Config = WebhookConfig
    features = frozenset({"webhook"})

    def __init__(self, config: WebhookConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        headers = {"Content-Type": "application/json", **config.headers}
        self._poster = Poster(config.url, headers, timeout=config.timeout, attempts=config.attempts)
        self._workflow = ""
        self._sent = 0
        self._ended: RunEvent | None = None
        self._progress_at = float("-inf")

    def begin(self, run_id: str, workflow: Workflow) -> None:  # noqa: ARG002 - every event bears the id
        """Remember whose run it is."""
        self._workflow = workflow.name

    def hear(self, event: RunEvent) -> None:
        """Post an event that is asked for; the end waits for its document.

        Raises:
            DataflareError: `monitor.not-taken`.
        """
        if event.event == ENDED:
            self._ended = event
            return
        if event.event == PROGRESS:
            now = time.monotonic()
            if now - self._progress_at < self.config.every:
                return
            self._progress_at = now
        self._post(event, event.data)

    def end(self, document: Mapping[str, Any]) -> None:
        """Post how the run ended, with its counts and its error."""
        event = self._ended or RunEvent(time.time(), str(document.get("run_id")), "clean_up", ENDED)
        kept = ("status", "lane", "resumed", "rows", "guarantee", "error")
        self._post(event, {name: document.get(name) for name in kept})

    def _post(self, event: RunEvent, data: Mapping[str, Any]) -> None:
        if not {"*", event.event} & set(self.config.events):
            return
        self._sent += 1
        message = {"dataflare": 1, "workflow": self._workflow, **event.to_json(), "data": dict(data)}
        # The same id for every attempt: who gets it twice, because an answer was lost, can tell.
        more = {"X-Dataflare-Event": event.event, "X-Dataflare-Delivery": f"{event.run_id}-{self._sent}"}
        self._poster.post(json.dumps(message, default=str).encode(), more)
