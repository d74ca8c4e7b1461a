"""Logs: loguru behind a lazy front, with secrets redacted and repeats held back.

loguru is imported at the first record that passes the level. Used as a library, DataFlare installs no sink and
says nothing; the command line gives one, and a workflow may name a file (`observe.log_file`). A file is written directly: loguru's
sinks belong to the whole process, and as a library that is somebody else's.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from dataflare.text import shown

__all__ = ["LEVELS", "Logger", "Logs", "Redactor"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}

MOST_KEPT = 1000
"""Messages whose repeats are counted at a time."""

_HIDDEN = "***"
_OURS = ("time", "level", "message")
_WHOSE = ("run", "workflow", "node")
_Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Level, message and whose it is."""


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
        json: one JSON object a line instead of text; may be set later.
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
        self._file: TextIO | None = None
        self.level = level
        self.json = json
        self._lock = threading.Lock()
        self._repeats, self._window, self._clock = repeats, window, clock
        self._seen: dict[_Key, tuple[float, int]] = {}
        self._backend: Any = None

    @property
    def level(self) -> str:
        """The lowest level that is written."""
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        self._level = level
        self.threshold = LEVELS[level] if self._sink is not None or self._file is not None else LEVELS["off"]

    def to_file(self, path: Path) -> None:
        """Append records to a file from now on, and write them nowhere else.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
        self.close()
        self._file = file
        self.level = self._level

    def close(self) -> None:
        """Say what was held back and not told yet, and close the file."""
        for (level, message, labels), (_, count) in tuple(self._seen.items()):
            self._tell_held(level, message, count, dict(labels))
        self._seen.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
            self.level = self._level

    def bind(self, **labels: Any) -> Logger:
        """Return a logger whose records carry these labels (run, node)."""
        return Logger(self, {k: v for k, v in labels.items() if v})

    def emit(self, level: str, message: str, args: tuple[Any, ...], labels: Mapping[str, Any], exc: Any) -> None:
        """Write one record that passed the level."""
        if not self._passes(level, message, labels):
            return
        text = message.format(*args, **labels) if args else message
        if self._file is not None:
            text += f"\n{traceback.format_exc()}" if exc else ""
            self._put(time.time(), level, text, labels)
            return
        if self._sink is None:
            return
        if self._backend is None:
            self._backend = self._open()
        self._backend.bind(**labels).opt(exception=exc).log(level.upper(), "{}", text)

    def _passes(self, level: str, message: str, labels: Mapping[str, Any]) -> bool:
        """Count a message of one node of one run; once its window is over, say how many were held back."""
        now = self._clock()
        key = (level, message, tuple((k, str(labels[k])) for k in _WHOSE if k in labels))
        since, count = self._seen.get(key, (now, 0))
        if now - since >= self._window:
            self._seen[key] = (now, 0)
            if count > self._repeats:
                self.emit(level, "the next message came {} more times", (count - self._repeats,), labels, None)
            since, count = now, 0
        if key not in self._seen and len(self._seen) >= MOST_KEPT:
            self._forget(now)
        self._seen[key] = (since, count + 1)
        return count < self._repeats

    def _tell_held(self, level: str, message: str, count: int, labels: Mapping[str, Any]) -> None:
        held = count - self._repeats
        if held > 0:
            whose = {k: labels[k] for k in _WHOSE if k in labels}
            self.emit(level, "held back {} more of: " + message.replace("{", "{{").replace("}", "}}"), (held,), whose, None)

    def _forget(self, now: float) -> None:
        """Forget messages whose window is over: a run may go on for months."""
        for key, (since, count) in tuple(self._seen.items()):
            if now - since >= self._window:
                del self._seen[key]
                self._tell_held(key[0], key[1], count, dict(key[2]))

    def _open(self) -> Any:
        from loguru import logger

        logger.remove()
        # diagnose would print the values of variables, secrets among them.
        logger.add(self._write, level=0, format="{message}", diagnose=False, backtrace=False, catch=False)
        return logger

    def _write(self, message: Any) -> None:
        record = message.record
        self._put(record["time"].timestamp(), record["level"].name.lower(), str(message).rstrip("\n"), record["extra"])

    def _put(self, at: float, level: str, message: str, labels: Mapping[str, Any]) -> None:
        out = self._file or self._sink
        if out is None:
            return
        if self.json:
            import json

            # What a label is called must not hide what every record has; what is no JSON is text before secrets are looked for.
            line = {"time": at, "level": level, "message": message, **{k if k not in _OURS else f"{k}_": v for k, v in labels.items()}}
            text = json.dumps(self.redactor.value(json.loads(json.dumps(line, default=str))))
        else:
            place = " ".join(f"{k}={v}" for k, v in labels.items())
            when = f"{datetime.fromtimestamp(at, UTC).isoformat(timespec='milliseconds')} " if self._file is not None else ""
            text = self.redactor.text(f"{when}{level}: {message.rstrip()}{f'  ({place})' if place else ''}")
        with self._lock:
            if not out.closed:
                out.write(shown(text) + "\n")
                out.flush()


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
