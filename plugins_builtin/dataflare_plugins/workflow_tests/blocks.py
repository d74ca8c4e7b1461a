"""The keys of a test file, declared once: checks, defaults, schema and docs come from here."""

from __future__ import annotations

from typing import Any

from dataflare_sdk import Duration, config, option


@config
class Rows:
    """Rows of a source or a mocked node, where a plain list does not say enough."""

    rows: list[Any] | None = option("The rows.", default=None)
    file: str | None = option("A csv, jsonl, parquet or arrow file that holds them, relative to the test file.", default=None)
    columns: dict[str, str] = option(
        "Column to DuckDB type; by default what is known of the source offline, else what the values show.", default_factory=dict
    )
    key: list[str] = option("Columns that identify a row, of a source that is read by `mode: cdc`.", default_factory=list)


@config
class Step:
    """Rows that arrive, or time that passes. Each step ends an epoch."""

    rows: dict[str, Any] = option("Source to its rows.", default_factory=dict)
    advance: Duration | None = option("How far the clock moves.", default=None, example="1h")


@config
class Expected:
    """What a node or destination is to give, where a plain list does not say enough."""

    rows: list[Any] | None = option("Exactly these rows.", default=None)
    file: str | None = option("Exactly the rows of this file.", default=None)
    contains: list[Any] | None = option("These rows, and any others.", default=None)
    count: int | None = option("How many rows.", default=None, minimum=0)
    ordered: bool = option("The rows come in this order.", default=False)


@config
class Letter:
    """A dead letter that is expected; what is not said of it is not looked at."""

    step: str | None = option("Node that refused the row.", default=None)
    code: str | None = option("Code of the error.", default=None)
    source: str | None = option("Source the row came from.", default=None)
    row: dict[str, Any] = option("Columns of the row, with their values.", default_factory=dict)


@config
class Crash:
    """Where the process is killed; it is started again and must come to the same result."""

    batches: int | None = option("At this batch that a source gives, counted over all sources.", default=None, minimum=1)
    failpoint: str | None = option("Or at a failpoint, as `dataflare prove --list` names them.", default=None)
    nth: int = option("At its so-many-th passing.", default=1, minimum=1)
    rows: int = option("Rows of a batch.", default=1, minimum=1)


@config
class Case:
    """One test."""

    name: str = option("Its name.")
    params: dict[str, Any] = option("Parameters of the workflow.", default_factory=dict)
    profile: str | None = option("Profile of the workflow.", default=None)
    env: dict[str, str] = option("Variables of the environment, over those that are set.", default_factory=dict)
    now: str = option("Where the clock starts; it only moves by `advance`.", default="2026-01-01T00:00:00Z")
    given: dict[str, Any] = option("Source to its rows: a list, or `file` and the like.", default_factory=dict)
    steps: list[Step] = option("What happens one after the other, instead of or after `given`.", default_factory=list)
    mocks: dict[str, Any] = option("Processor to the rows that stand for it; of an `enrich` those of its lookup.", default_factory=dict)
    expect: dict[str, Any] = option("Node, output or destination to its rows: a list, or `count` and the like.", default_factory=dict)
    counts: dict[str, Any] = option("`read`, `written` … to a number, or node to `{rows_in: 3}`.", default_factory=dict)
    dead_letters: list[Letter] | None = option("All dead letters of the run.", default=None)
    late: int | None = option("Rows that came too late.", default=None, minimum=0)
    error: str | None = option("Code of the error the run fails with.", default=None)
    crash_after: Crash | None = option("Kill the run on its way, and go on.", default=None)


@config
class TestFile:
    """Tests of one workflow."""

    dataflare: int = option("Version of the format.", default=1, minimum=1, maximum=1)
    workflow: str | None = option("The workflow, relative to this file; by default `orders.yaml` of `orders.test.yaml`.", default=None)
    tests: list[Case] = option("The tests.", min_items=1)
