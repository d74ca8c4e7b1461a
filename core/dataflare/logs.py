"""Logs: loguru behind a lazy front, with secrets redacted and repeats held back.

loguru is imported at the first record that passes the level. Used as a library, DataFlare installs no sink and
says nothing; the command line gives one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from dataflare.text import shown

__all__ = ["LEVELS", "Logger", "Logs", "Redactor"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}

_HIDDEN = "***"


class Redactor:
    """Hides registered secrets in any text: as they are, and as JSON, `repr` and URLs write them.

    Secrets of fewer than 4 characters are not hidden: replacing them would garble everything.
    """

    def __init__(self) -> None:
        self._forms: list[str] = []
        self.ask: Callable[[str], Sequence[str]] | None = None
        """Names further substrings to hide in a text (the `redact` hook); its failure hides the whole text."""

    def add(self, secret: str) -> None:
        """Remember a secret and its lines."""
        import json
        from urllib.parse import quote, quote_plus

        for text in {secret, *secret.splitlines()}:
            if len(text.strip()) >= 4:
                forms = {text, text.strip(), json.dumps(text)[1:-1], repr(text)[1:-1]}
                forms |= {
                    json.dumps(text, ensure_ascii=False)[1:-1],
                    quote(text),
                    quote(text, safe=""),
                    quote_plus(text),
                }
                self._forms = sorted({*self._forms, *forms}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return a text with every secret replaced by `***`."""
        for form in (*self._forms, *self._asked(text)):
            text = text.replace(form, _HIDDEN)
        return text

    def value(self, value: Any) -> Any:
        """Return plain JSON-able values with the secrets in all their strings replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(k): self.value(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(v) for v in value]
        return value

    def _asked(self, text: str) -> Sequence[str]:
        if self.ask is None:
            return ()
        try:
            return [form for form in self.ask(text) if form]
        except Exception:  # the hook's contract: who cannot say what to hide has all of it hidden
            return (text,)


class Logs:
    """Where log records go.

    Args:
        redactor: hides secrets.
        level: records below it cost one comparison.
        sink: text stream that gets them; None: nothing is logged.
        json: one JSON object a line instead of text.
        repeats: how often the same message may come within `window` seconds before it is held back.
        window: seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        redactor: Redactor,
        level: str = "info",
        sink: TextIO | None = None,
        *,
        json: bool = False,
        repeats: int = 5,
        window: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.redactor = redactor
        self._sink = sink
        self.level = level
        self._json = json
        self._repeats, self._window, self._clock = repeats, window, clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        self._backend: Any = None

    @property
    def level(self) -> str:
        """The lowest level that is written."""
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        self._level = level
        self.threshold = LEVELS[level] if self._sink is not None else LEVELS["off"]

    def bind(self, **labels: Any) -> Logger:
        """Return a logger whose records carry these labels (run, node)."""
        return Logger(self, {k: v for k, v in labels.items() if v})

    def emit(self, level: str, message: str, args: tuple[Any, ...], labels: Mapping[str, Any], exc: Any) -> None:
        """Write one record that passed the level."""
        if not self._passes(level, message, labels):
            return
        if self._backend is None:
            self._backend = self._open()
        text = message.format(*args, **labels) if args else message
        self._backend.bind(**labels).opt(exception=exc).log(level.upper(), "{}", text)

    def _passes(self, level: str, message: str, labels: Mapping[str, Any]) -> bool:
        """Count a message; once its window is over, say how many were held back."""
        now = self._clock()
        since, count = self._seen.get((level, message), (now, 0))
        if now - since >= self._window:
            held = count - self._repeats
            since, count = now, 0
            if held > 0:
                self._seen[level, message] = (now, 0)
                self.emit(level, "the next message came {} more times", (held,), labels, None)
        self._seen[level, message] = (since, count + 1)
        return count < self._repeats

    def _open(self) -> Any:
        from loguru import logger

        logger.remove()
        # diagnose would print the values of variables, secrets among them.
        logger.add(self._write, level=0, format="{message}", diagnose=False, backtrace=False, catch=False)
        return logger

    def _write(self, message: Any) -> None:
        assert self._sink is not None
        record = message.record
        if self._json:
            import json

            line = {
                "time": record["time"].timestamp(),
                "level": record["level"].name.lower(),
                "message": str(message).rstrip("\n"),
                **record["extra"],
            }
            text = json.dumps(self.redactor.value(line), default=str)
        else:
            place = " ".join(f"{k}={v}" for k, v in record["extra"].items())
            text = self.redactor.text(f"{record['level'].name.lower()}: {str(message).rstrip()}{f'  ({place})' if place else ''}")
        self._sink.write(shown(text) + "\n")
        self._sink.flush()


class Logger:
    """What `ctx.log` is: `debug info warning error exception`, called like loguru's: `log.info("read {}", n)`."""

    __slots__ = ("_labels", "_logs")

    def __init__(self, logs: Logs, labels: Mapping[str, Any]) -> None:
        self._logs = logs
        self._labels = labels

    def bind(self, **labels: Any) -> Logger:
        """Return a logger with more labels."""
        return Logger(self._logs, {**self._labels, **labels})

    def debug(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what only a developer wants to know."""
        self._say("debug", message, args, extra)

    def info(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what happened."""
        self._say("info", message, args, extra)

    def warning(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what somebody should look at."""
        self._say("warning", message, args, extra)

    def error(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what failed."""
        self._say("error", message, args, extra)

    def exception(self, message: str, *args: Any, **extra: Any) -> None:
        """Say what failed, with the traceback of the exception being handled."""
        self._say("error", message, args, extra, exc=True)

    def _say(self, level: str, message: str, args: tuple[Any, ...], extra: Mapping[str, Any], exc: Any = None) -> None:
        if LEVELS[level] >= self._logs.threshold:
            self._logs.emit(level, message, args, {**self._labels, **extra}, exc)
