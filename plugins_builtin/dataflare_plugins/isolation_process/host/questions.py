"""What a worker may ask and tell: the context of its component, as far as it crosses, with rates and sizes bounded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.isolation_process.host.told import clean
from dataflare_sdk import ComponentContext

__all__ = ["Questions"]

_LEVELS = ("debug", "info", "warning", "error")
_A_SECOND, _BURST = 50.0, 500.0
_MOST_NAMES, _MOST_LABELS, _NAME = 200, 8, 120
_KEY = 1_000


class Questions:
    """The host's answers to one worker.

    Args:
        ctx: the component's context, which checks what is granted.
        clock: monotonic seconds.

    Attributes:
        answers: question to what answers it.
        put: keeps a part of a snapshot and returns its reference; only during `snapshot`.
        get: returns it; only during `restore`.
    """

    def __init__(self, ctx: ComponentContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._ctx = ctx
        self._clock = clock
        self._left, self._since = _BURST, clock()
        self._dropped = 0
        self._names: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
        self.put: Callable[[bytes], str] | None = None
        self.get: Callable[[str], bytes] | None = None
        self.answers: Mapping[str, Callable[..., Any]] = {
            "clock": ctx.clock,
            "cancelled": lambda: bool(ctx.cancelled()),
            "secret": lambda ref: ctx.secret(_text(ref)),
            "state_get": lambda key: ctx.state_get(_text(key)),
            "state_put": lambda key, value: ctx.state_put(_text(key), _bytes(value)),
            "failpoint": lambda name: ctx.failpoint(_text(name)),
            "put": self._put,
            "get": self._get,
        }

    def tell(self, told: list[Any]) -> None:
        """Take what a worker tells; what is too much or wrong is left out, and counted in the log."""
        for entry in told:
            if not isinstance(entry, list) or not entry or not self._may():
                self._dropped += 1
                continue
            name, *arguments = entry
            handlers: dict[str, Callable[..., None]] = {"log": self._log, "metric": self._metric, "gauge": self._gauge}
            handler = handlers.get(name) if isinstance(name, str) else None
            try:
                if handler is None:
                    raise ValueError(name)
                handler(*arguments)
            except (TypeError, ValueError):
                self._dropped += 1

    def _may(self) -> bool:
        """Return whether one more may be told now."""
        now = self._clock()
        self._left = min(_BURST, self._left + (now - self._since) * _A_SECOND)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        if self._dropped and self._left > 1:
            self._ctx.log.warning("{} messages of the plugin were left out", self._dropped)
            self._dropped = 0
        return True

    def _log(self, level: str, text: str) -> None:
        if level not in _LEVELS:
            raise ValueError(level)
        getattr(self._ctx.log, level)("{}", clean(text))

    def _metric(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        told = tuple(sorted((clean(k, _NAME), clean(v, _NAME)) for k, v in labels.items()))[:_MOST_LABELS]
        self._known((clean(name, _NAME), told))
        self._ctx.metric(clean(name, _NAME), _number(value), **dict(told))

    def _gauge(self, name: str, value: float) -> None:
        self._known((clean(name, _NAME), ()))
        self._ctx.gauge(clean(name, _NAME), _number(value))

    def _known(self, name: tuple[str, tuple[tuple[str, str], ...]]) -> None:
        if name not in self._names and len(self._names) >= _MOST_NAMES:
            raise ValueError("too many names")
        self._names.add(name)

    def _put(self, data: Any) -> str:
        if self.put is None:
            raise ValueError("nobody takes a snapshot")
        return self.put(_bytes(data))

    def _get(self, ref: Any) -> bytes:
        if self.get is None:
            raise ValueError("nothing is restored")
        return self.get(_text(ref))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _KEY:
        raise TypeError("a name that is none")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("bytes that are none")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError("a number that is none")
    return float(value)
