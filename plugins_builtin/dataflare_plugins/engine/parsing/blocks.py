"""The engine's own keys of a workflow file, declared once: checks, defaults, schema and docs come from here."""

from __future__ import annotations

from typing import Any, Literal

from dataflare_sdk import Duration, Size, config, option


@config
class Param:
    """A parameter, given on the command line as `-p name=value`."""

    type: Literal["string", "integer", "number", "boolean", "date", "timestamp"] = option("Type of its value.", default="string")
    default: Any = option("Value when none is given; without it the parameter is required.", default=None)
    description: str | None = option("What it is for.", default=None)


@config
class Retry:
    """What happens after a failure of the moment: a busy file, a server that restarts."""

    attempts: int = option("How often to try again.", default=5, minimum=0)
    backoff: Literal["exponential", "constant"] = option("How the pauses grow.", default="exponential")
    initial: Duration = option("The first pause.", default=1.0, example="1s")
    max: Duration = option("The longest pause.", default=60.0, example="1m")


@config
class Budget:
    """How many rows may fail before the run is stopped."""

    ratio: float = option("Share of rows that may fail.", minimum=0, maximum=1)
    per: int = option("Rows over which the share is taken.", default=10_000, minimum=1)


@config
class NodeErrors:
    """What becomes of a row that a node cannot take."""

    on_record: Literal["fail", "skip", "dead_letter"] | None = option("Policy for a bad row.", default=None)


@config
class Errors:
    """What becomes of failures."""

    on_record: Literal["fail", "skip", "dead_letter"] = option("Policy for a bad row.", default="fail")
    retry: Retry | None = option("Trying again after failures of the moment.", default=None)
    budget: Budget | None = option("Bad rows that stop the run.", default=None)


@config
class Checkpoint:
    """When an epoch is committed while a run goes on."""

    every: Duration = option("Longest time between commits.", default=10.0, example="10s")
    rows: int | None = option("Rows read between commits.", default=None, minimum=1)


@config
class Runs:
    """What is kept of runs that are over."""

    keep: int = option("How many runs are remembered, with their events and log.", default=100, minimum=1)


@config
class Schedule:
    """When `run --watch` runs the workflow."""

    cron: str | None = option("Five fields: minute, hour, day, month, weekday.", default=None, example="*/15 * * * *")
    every: Duration | None = option("Or a distance, counted from 1970-01-01 UTC.", default=None, example="10m")
    timezone: str = option("Time zone of `cron`.", default="UTC", example="Europe/Berlin")
    overlap: Literal["skip", "queue", "cancel"] = option("What happens when the run before is not over.", default="skip")
    catch_up: Literal["none", "last", "all"] = option("Which times at which nobody watched are made up for.", default="none")
    jitter: Duration | None = option("Longest time that a run begins later, so that not all begin at once.", default=None, example="30s")


@config
class State:
    """Where checkpoints, dead letters and run records are kept."""

    store: str = option("State store.", default="sqlite")
    path: str | None = option("Its file, relative to the workflow.", default=None, example=".dataflare/state.db")
    url: str | None = option("Its database, of a store that is a server.", default=None, example="${env:STATE_URL}")
    checkpoint: Checkpoint | None = option("When to commit.", default=None)
    runs: Runs | None = option("What is kept of runs.", default=None)


@config
class BatchSize:
    """How large a batch becomes in the streaming lane."""

    rows: int = option("Most rows.", default=65_536, minimum=1)
    bytes: Size = option("Bytes, more or less.", default=16 << 20, example="16MiB")
    linger: Duration = option("Longest wait for a batch to fill.", default=0.1, example="100ms")


@config
class RuntimeBlock:
    """What a run may use and which way its rows go."""

    mode: Literal["single"] = option("Where it runs.", default="single")
    lane: Literal["auto", "bulk", "streaming"] = option("Which way the rows go.", default="auto")
    memory: Size = option("Memory of the whole process.", default=1 << 30, example="1GiB")
    threads: int = option("Threads of a scan or statement.", default=2, minimum=1, maximum=1024)
    batch: BatchSize | None = option("Size of batches.", default=None)


@config
class Observe:
    """What a run tells about itself."""

    log: Literal["debug", "info", "warning", "error"] | None = option("Level of the log.", default=None)
    log_format: Literal["text", "json"] | None = option("How records are written; `json`: one object a line.", default=None)
    log_file: str | None = option("File that records are appended to instead of stderr, relative to the workflow.", default=None)
    metrics: Any = option(
        "Monitors for counters and gauges: a name, `{NAME: {its keys}}`, or a list of these.", default=None, example="prometheus"
    )
    traces: Any = option("Monitors for spans of phases, epochs and nodes, named likewise.", default=None, example="otel")
    lineage: Any = option("Monitors for lineage, named likewise.", default=None, example="openlineage")
    webhook: Any = option("Where events are posted to: the keys of a webhook, or a list of these.", default=None)
    patience: Duration = option("How long the end of a run waits for monitors that have not told everything.", default=5.0, example="5s")


@config
class Plugins:
    """Which plugin is meant where several provide the same name."""

    prefer: dict[str, str] = option("`kind/name` to plugin.", default_factory=dict, example={"source/csv": "acme"})


@config
class Extract:
    """How a source is read."""

    mode: Literal["full", "incremental", "cdc"] = option("Everything, or what is new since the last run.", default="full")
    cursor: str | None = option("Column that grows with every new or changed row.", default=None)
    start: Any = option("Value of the cursor to begin at on the first run.", default=None)
    key: list[str] | str = option("Columns that identify a row.", default_factory=list)
    overlap: Duration | None = option("How far to read back for late commits.", default=None)
    idle: Duration | None = option(
        "After so long without a row a partition holds back no window; by default 30s.", default=None, example="30s"
    )
    consistency: Literal["instant", "chunks"] | None = option("One snapshot, or one per chunk.", default=None)
    on_unchanged: Literal["fail", "dead_letter"] | None = option(
        "A change leaves out a column that a step needs whole (a large value that did not change).", default=None
    )


@config
class PartitionBlock:
    """How a source is read in parts, side by side."""

    by: str | None = option("Column whose ranges are the parts; by default the key.", default=None, example="order_id")
    into: int = option("How many parts.", minimum=1, maximum=256, example=8)


@config
class Shares:
    """How the groups of a keyed step are worked on in shares, side by side."""

    into: int = option("How many shares; what comes out is the same.", minimum=1, maximum=64, example=2)


@config
class Write:
    """How a destination is written."""

    mode: Literal["overwrite", "append", "upsert", "update"] | None = option("What happens to rows that are there.", default=None)
    key: list[str] | str = option("Columns that identify a row; upsert needs them.", default_factory=list)
    deletes: Literal["hard", "soft", "ignore"] | None = option("What a delete does.", default=None)
    pos_column: str | None = option("Column that orders changes of one key.", default=None)


@config
class Schema:
    """What happens when the columns of a stream change."""

    on_add: Literal["evolve", "ignore", "fail"] = option("A new column.", default="evolve")
    on_widen: Literal["evolve", "fail"] = option("A wider type.", default="evolve")
    on_break: Literal["fail", "dead_letter"] = option("Anything else.", default="fail")


@config
class SourceBlock:
    """Where rows come from."""

    use: str = option("Name of the connector.")
    with_: dict[str, Any] = option("The connector's own keys.", default_factory=dict)
    extract: Extract | None = option("How it is read.", default=None)
    partition: PartitionBlock | None = option("How it is read in parts.", default=None)
    errors: NodeErrors | None = option("Policy for bad rows of this node.", default=None)


@config
class ProcessorBlock:
    """What happens to rows on the way."""

    id: str = option("Name of the node.")
    use: str = option("Name of the processor.")
    from_: str | list[str] | None = option("Where its rows come from; by default the item above.", default=None)
    with_: dict[str, Any] = option("The processor's own keys.", default_factory=dict)
    partition: Shares | None = option("How its groups are worked on in shares.", default=None)
    errors: NodeErrors | None = option("Policy for bad rows of this node.", default=None)


@config
class DestinationBlock:
    """Where rows arrive."""

    use: str = option("Name of the connector.")
    from_: str | list[str] | None = option("Where its rows come from; by default the last processor.", default=None)
    with_: dict[str, Any] = option("The connector's own keys.", default_factory=dict)
    write: Write | None = option("How it is written.", default=None)
    schema: Schema | None = option("What happens when columns change.", default=None)
    errors: NodeErrors | None = option("Policy for bad rows of this node.", default=None)


@config
class WorkflowBlock:
    """A workflow file."""

    dataflare: Literal[1] = option("Version of the format.", default=1)
    name: str | None = option("Identity of the workflow; by default the file's stem.", default=None)
    description: str | None = option("What it is for.", default=None)
    params: dict[str, Param] = option("Parameters.", default_factory=dict)
    schedule: Schedule | None = option("When `run --watch` runs it.", default=None)
    sources: dict[str, Any] = option("Where rows come from, by id.", default_factory=dict)
    processors: list[Any] = option("What happens on the way, in order.", default_factory=list)
    destinations: dict[str, Any] = option("Where rows arrive, by id.", default_factory=dict)
    delivery: Literal["exactly_once", "effectively_once", "at_least_once"] | None = option(
        "The guarantee demanded; by default the best each route can give.", default=None
    )
    timezone: str = option("Time zone of expressions.", default="UTC")
    errors: Errors | None = option("What becomes of failures.", default=None)
    state: State | None = option("Where checkpoints are kept.", default=None)
    runtime: RuntimeBlock | None = option("What a run may use.", default=None)
    observe: Observe | None = option("What a run tells.", default=None)
    plugins: Plugins | None = option("Which plugin is meant.", default=None)
    profiles: dict[str, Any] = option("Changes to all of this, by name.", default_factory=dict)


NOT_YET: tuple[tuple[tuple[str, ...], str], ...] = (
    (("runtime", "offline"), "runtime.offline"),
    (("runtime", "workers"), "runtime.workers"),
)
"""Keys of the format whose feature is not built yet: refused by name, never silently ignored."""

NODE_NOT_YET = ("limits",)
"""The same, of a node."""
