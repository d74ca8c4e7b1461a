"""`run --backfill FROM..TO --window 1d`: a range of cursor values once more, window by window, each a run of its own.

The normal runs' cursor stays where it is. What is done is known from the run records, so the same command goes on with
the first window that is not done, whatever ended it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from dataflare_sdk import DataflareError, Node, Workflow, code
from dataflare_sdk.commands import Runtime
from dataflare_sdk.fields import parse_duration
from dataflare_sdk.records import record
from dataflare_sdk.state_sql import ALL
from dataflare_sdk.state_store import opened

BAD_RANGE = code(
    "usage.backfill",
    2,
    "The range or the window of a backfill cannot be read.",
    "Write --backfill 2026-01-01..2026-02-01 --window 1d, or --backfill 0..100000 --window 5000.",
)
NOTHING_TO_BACKFILL = code(
    "workflow.no-backfill",
    3,
    "A workflow cannot be backfilled: no source has a cursor, or one would move on while the range is read.",
    "Give the source `extract: {mode: incremental, cursor: ...}`.",
)
OVERWRITES = code(
    "workflow.backfill-overwrites",
    3,
    "A backfill would overwrite: each window would take the rows of all others away.",
    "Write by append or upsert, or run the workflow without --backfill.",
)


@record
class Range:
    """What is asked for: values of the cursor, as the source compares them (numbers, or text of dates and times).

    Attributes:
        start: the first value.
        stop: the first value that is not read any more.
        window: how it is split, as it was written; "" for one window.
    """

    start: Any
    stop: Any
    window: str = ""

    @classmethod
    def parse(cls, text: str, window: str | None) -> Range:
        """Read `FROM..TO`.

        Raises:
            DataflareError: `usage.backfill`.
        """
        start, dots, stop = text.partition("..")
        try:
            first, last = _value(start), _value(stop)
            ordered = type(first) is type(last) and first < last
        except (ValueError, TypeError):
            ordered = False
        if not dots or not ordered:
            raise BAD_RANGE.error(f"'{text}' is no range FROM..TO of dates, times or whole numbers that grows")
        made = cls(start.strip(), stop.strip(), window or "")
        if next(made.windows()) is None:
            raise BAD_RANGE.error(f"'{window}' is no window for '{text}'")
        return made

    @property
    def key(self) -> str:
        """Return the text it is known by."""
        return f"{self.start}..{self.stop}/{self.window}"

    def windows(self) -> Iterator[tuple[Any, Any]]:
        """Yield (from, to) of each window, `to` not included; the last one may be shorter.

        Raises:
            DataflareError: `usage.backfill`.
        """
        here, last = _value(self.start), _value(self.stop)
        step = _step(here, self.window) if self.window else last - here
        if isinstance(here, date) and not isinstance(here, datetime) and step % timedelta(days=1):
            here, last = datetime.combine(here, datetime.min.time()), datetime.combine(last, datetime.min.time())
        while here < last:
            upto = min(here + step, last)
            yield _told(here, self.start), _told(upto, self.start)
            here = upto


def _value(text: str) -> Any:
    text = text.strip()
    if text.lstrip("-").isdigit():
        return int(text)
    return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)


def _step(start: Any, window: str) -> Any:
    step: Any = None
    with contextlib.suppress(ValueError):
        step = int(window) if isinstance(start, int) else timedelta(seconds=parse_duration(window))
    if not step or step < type(step)(0):
        raise BAD_RANGE.error(f"'{window}' is no window of {'numbers' if isinstance(start, int) else 'time'}")
    return step


def _told(value: Any, like: str) -> Any:
    """Return a bound as the source gets it: a number, or text in the form the range was written in."""
    if isinstance(value, int):
        return value
    if not isinstance(value, datetime):
        return value.isoformat()
    text = value.isoformat(sep="T" if "T" in like else " ")
    return text.replace("+00:00", "Z") if like.endswith("Z") else text


class Backfill:
    """The windows of one backfill of one workflow.

    Raises:
        DataflareError: `workflow.no-backfill`, `workflow.backfill-overwrites`.
    """

    def __init__(self, runtime: Runtime, workflow: Workflow, wanted: Range) -> None:
        self._host = runtime.host
        self._workflow = workflow
        self._wanted = wanted
        _check(workflow)
        with opened(self._host, workflow) as store:
            known = store.get_value(self._scope, wanted.key)
            self.id = known.decode() if known else secrets.token_hex(6)
            if known is None:
                store.put_value(self._scope, wanted.key, self.id.encode())

    @property
    def _scope(self) -> str:
        return f"backfill:{self._workflow.name}"

    def windows(self) -> list[dict[str, Any]]:
        """Return every window as it stands: `{"from", "to", "status": "done" | "pending", "rows"}`."""
        with opened(self._host, self._workflow) as store:
            records = [r for r in store.runs(self._workflow.name, ALL) if (r.get("window") or {}).get("backfill") == self.id]
        done = {(r["window"]["from"], r["window"]["to"]): (r.get("rows") or {}).get("read", 0) for r in records if r["status"] == "done"}
        return [
            {"from": a, "to": b, "status": "done" if (a, b) in done else "pending", "rows": done.get((a, b), 0)}
            for a, b in self._wanted.windows()
        ]

    def window_of(self, one: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the run of a window is known by."""
        return {"backfill": self.id, "from": one["from"], "to": one["to"]}

    def workflow_of(self, one: Mapping[str, Any]) -> Workflow:
        """Return the workflow that reads one window."""
        return replace(self._workflow, nodes=tuple(_within(n, one) for n in self._workflow.nodes))

    def finish(self) -> None:
        """All windows are done: the same command begins anew."""
        with opened(self._host, self._workflow) as store:
            store.put_value(self._scope, self._wanted.key, None)


def _check(workflow: Workflow) -> None:
    sources = workflow.of("source")
    moving = [n.id for n in sources if _mode(n) != "full" and not (_mode(n) == "incremental" and n.blocks["extract"].get("cursor"))]
    if moving or all(_mode(n) == "full" for n in sources):
        what = f"'{moving[0]}' has no cursor column" if moving else "no source is read incrementally, by a cursor"
        raise DataflareError(NOTHING_TO_BACKFILL.problem(what, **workflow.place("sources", *moving[:1])))
    for node in workflow.of("destination"):
        if (node.blocks.get("write") or {}).get("mode") == "overwrite":
            message = f"'{node.id}' is overwritten by every window"
            raise DataflareError(OVERWRITES.problem(message, **workflow.place(*node.path, "write")))


def _mode(node: Node) -> str:
    return str((node.blocks.get("extract") or {}).get("mode") or "full")


def _within(node: Node, one: Mapping[str, Any]) -> Node:
    if node.kind != "source" or _mode(node) != "incremental":
        return node
    extract = {**node.blocks["extract"], "start": one["from"], "stop": one["to"]}
    return replace(node, blocks={**node.blocks, "extract": extract})
