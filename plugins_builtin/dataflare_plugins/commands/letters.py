"""Dead letters for the verbs of `dlq`: which are meant, page by page, and as a table for queries."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from dataflare_sdk import DeadLetter, LetterFilter, RunInfo, Surroundings, Workflow, code
from dataflare_sdk.commands import Runtime
from dataflare_sdk.state_sql import ALL

if TYPE_CHECKING:
    import pyarrow as pa

ONLY_SHOWN = code(
    "dlq.only-shown",
    3,
    "The workflow's state store keeps dead letters only to be shown.",
    "Use a store that can edit and replay them, `state: {store: sqlite}`.",
)
NO_LETTER = code(
    "dlq.no-letter", 2, "There is no such dead letter, or it is not open any more.", "See `dataflare dlq list` and `dlq show --status all`."
)
WAITING = ("open", "replaying")
PAGE = 1_000
"""Letters in memory at a time."""


def selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--id`, `--run` and `--step`."""
    function = click.option("--step", metavar="STEP", help="Only those that this step refused.")(function)
    function = click.option("--run", "run_id", metavar="ID", help="Only those of one run.")(function)
    return click.option("--id", "ids", multiple=True, metavar="ID", help="Only this one; may be given several times.")(function)


def wanted(ids: Sequence[str], run_id: str | None, step: str | None, status: Sequence[str] = ()) -> LetterFilter:
    """Return what `--id`, `--run` and `--step` mean."""
    return LetterFilter(ids=tuple(ids) or None, run_id=run_id, step=step, status=() if "all" in status else tuple(status))


def moment(text: str) -> float:
    """Return a moment that was written as a date, a time, or an age (`7d`), in seconds since 1970 UTC.

    Raises:
        click.BadParameter: it is none of these.
    """
    import time

    from dataflare_sdk.fields import parse_duration

    try:
        return time.time() - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is no date, time or age like 7d", param_hint="--before") from None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def able(store: Any) -> Any:
    """Return a store whose letters can be changed.

    Raises:
        DataflareError: `dlq.only-shown`.
    """
    if not hasattr(store, "claim_letters"):
        raise ONLY_SHOWN.error(f"'{type(store).__name__}' cannot look for, edit or replay dead letters")
    return store


def pages(store: Any, workflow: str, where: LetterFilter, limit: int | None = None, after: str = "") -> Iterator[Sequence[DeadLetter]]:
    """Yield letters, oldest first, a page at a time; those of an older version get the columns their run read."""
    if not hasattr(store, "find_letters"):
        found = [x for x in store.letters(workflow, where.run_id) if _fits(x, where)]
        yield found[:limit]
        return
    if where.ids is not None and limit is None and not after:
        numbers = sorted(where.ids, key=lambda i: (len(i), i))
        for start in range(0, len(numbers), PAGE):
            yield from _paged(store, workflow, replace(where, ids=tuple(numbers[start : start + PAGE])), ALL, "")
    else:
        yield from _paged(store, workflow, where, ALL if limit is None else limit, after)


def _paged(store: Any, workflow: str, where: LetterFilter, left: int, after: str) -> Iterator[Sequence[DeadLetter]]:
    runs: dict[str, Any] = {}
    while left > 0:
        page = store.find_letters(workflow, where, after=after, limit=min(PAGE, left))
        if not page:
            return
        yield [x if x.types else _typed(x, store, workflow, runs) for x in page]
        after, left = page[-1].id, left - len(page)


def counted(store: Any, workflow: str, where: LetterFilter) -> list[dict[str, Any]]:
    """Count letters by run, source, step, code and status."""
    if hasattr(store, "count_letters"):
        return [dict(g) for g in store.count_letters(workflow, where)]
    groups: dict[tuple[Any, ...], int] = {}
    for page in pages(store, workflow, where):
        for x in page:
            key = (x.run_id, x.source, x.step, x.code, x.status)
            groups[key] = groups.get(key, 0) + 1
    return [{"run_id": r, "source": s, "step": n, "code": c, "status": t, "count": count} for (r, s, n, c, t), count in groups.items()]


def _fits(letter: DeadLetter, where: LetterFilter) -> bool:
    return (
        (where.ids is None or letter.id in where.ids)
        and where.step in (None, letter.step)
        and (not where.status or letter.status in where.status)
        and (where.before is None or letter.saved_at < where.before)
    )


def _typed(letter: DeadLetter, store: Any, workflow: str, runs: dict[str, Any]) -> DeadLetter:
    """Give a letter that does not say so the types of its columns, as the plan of its run knew them."""
    if not runs:
        runs.update({r["run_id"]: r for r in store.runs(workflow, ALL)})
    nodes = {n["id"]: n for n in (runs.get(letter.run_id, {}).get("plan") or {}).get("nodes", ())}
    node = nodes.get(letter.source or letter.step)
    if node is None:
        return letter
    given = list(node["schemas"].values()) if letter.source else [i["schema"] for i in node["settings"].get("inputs", ())]
    columns = given[0]["columns"] if given else ()
    return replace(letter, types=tuple((c["name"], c["type"]) for c in columns if letter.row is None or c["name"] in letter.row))


def queried(runtime: Runtime, store: Any, workflow: Workflow, sql: str, where: LetterFilter | None = None) -> pa.Table:
    """Run one SELECT over `dead_letters`, gated like any query of a workflow; the table is read a page at a time.

    Raises:
        DataflareError: `expression.*`.
    """
    import time

    from dataflare_sdk.dead_letters import TABLE, table

    # Without a run `now()` would be the beginning of 1970.
    run = RunInfo("", workflow.name, "", int(time.time() * 1e6))
    engine = runtime.host.build("expression_engine", "duckdb", {}, Surroundings(run=run))
    try:
        bound = engine.bind_query(sql, {"dead_letters": TABLE})
        letters = _Letters(
            lambda: (table(page, bound.reads["dead_letters"]) for page in pages(store, workflow.name, where or LetterFilter()))
        )
        return engine.query(engine.text_of(sql, ["dead_letters"]), {"dead_letters": letters}).read_all()
    finally:
        engine.close()


class _Letters:
    """The table `dead_letters`, read anew as often as a query names it: a reader of Arrow's can be read once."""

    def __init__(self, parts: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self._parts = parts

    def __arrow_c_schema__(self) -> object:
        from dataflare_sdk.dead_letters import TABLE

        return TABLE.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        import pyarrow as pa

        from dataflare_sdk.dead_letters import TABLE

        return pa.RecordBatchReader.from_batches(TABLE, self._parts()).__arrow_c_stream__(requested_schema)


def matching(runtime: Runtime, store: Any, workflow: Workflow, where: LetterFilter, condition: str) -> LetterFilter:
    """Return the filter narrowed to letters for which a SQL condition is true."""
    found = queried(runtime, store, workflow, f"SELECT id FROM dead_letters WHERE ({condition}\n)", where)
    return replace(where, ids=tuple(str(i) for i in found.column(0).to_pylist()))


def shown(rows: pa.Table) -> tuple[list[Mapping[str, str]], list[list[Any]]]:
    """Return a result's columns with their types, and its rows as plain values."""
    from dataflare_sdk.schema import type_name
    from dataflare_sdk.values import plain

    columns: list[Mapping[str, str]] = [{"name": f.name, "type": type_name(f.type)} for f in rows.schema]
    values = [c.to_pylist() for c in rows.columns]
    return columns, [[plain(v) for v in row] for row in zip(*values, strict=True)]
