"""The `with:` block of an `enrich` step."""

from __future__ import annotations

from typing import Any, Literal

from dataflare_sdk import Duration, Size, config, option

DEFAULT_ROWS = 1_000_000
DEFAULT_BYTES = 64 << 20


@config
class LookupConfig:
    """The table, file or service that is looked up in: a source that ends, or a lookup."""

    use: str = option("Name of the source or lookup.", example="csv")
    with_: dict[str, Any] = option("Its own keys.", default_factory=dict)


@config
class CacheConfig:
    """Answers to keys that are kept, of a lookup that is asked by key; one that is read whole needs none."""

    ttl: Duration | None = option("How long an answer is used; by default as long as the run.", default=None, example="10m")
    miss_ttl: Duration | None = option("The same of 'there is no such row'; by default `ttl`.", default=None, example="1m")
    rows: int = option("Answers kept; those used last stay.", default=DEFAULT_ROWS, minimum=1)
    bytes: Size = option("Bytes they may take.", default=DEFAULT_BYTES)


@config
class RetryConfig:
    """How often a request that failed is made again before that counts as an outage."""

    attempts: int = option("Requests at most, the first one included.", default=3, minimum=1)
    initial: Duration = option("Pause before the second; it doubles each time.", default=0.2)
    max: Duration = option("Longest pause that is not the service's wish (`Retry-After`).", default=5.0)


@config
class BreakerConfig:
    """When nobody answers, the lookup is left alone for a while: `on_outage` applies at once."""

    failures: int = option("Requests in a row that failed, with all their attempts, until then.", default=5, minimum=1)
    pause: Duration = option("How long; then one request tries whether it answers again.", default=30.0)


@config
class EnrichConfig:
    """Columns: the input's, then those of `select`."""

    lookup: LookupConfig = option("Where the columns come from.")
    on: dict[str, str] = option("Input column to lookup column.", min_items=1, example={"customer_id": "id"})
    select: dict[str, str] = option("New column to lookup column.", min_items=1, example={"segment": "segment"})
    on_miss: Literal["keep", "drop", "dead_letter", "fail"] = option("What becomes of a row without a match.", default="keep")
    on_many: Literal["fail", "first", "all"] = option("What becomes of a row with several.", default="fail")
    mode: Literal["auto", "table", "keyed"] = option(
        "`table`: read whole when the run starts. `keyed`: asked for the keys of each batch. `auto`: servers, services and "
        "what has a `cache` are asked, files are read.",
        default="auto",
    )
    cache: CacheConfig | None = option("Keep answers of a lookup that is asked by key.", default=None)
    refresh: Duration | None = option("Read a table anew when it is this old; between two batches.", default=None, example="10m")
    timeout: Duration = option("How long one request may take.", default=30.0)
    retry: RetryConfig | None = option("How a request that failed is made again.", default=None)
    on_outage: Literal["fail", "keep", "dead_letter", "stale"] = option(
        "When the lookup does not answer: end the run (it is tried again as `errors.retry` says), leave the new columns NULL, give "
        "the rows up, or use what is known but too old (and fail where nothing is).",
        default="fail",
    )
    breaker: BreakerConfig | None = option("When a lookup that does not answer is left alone.", default=None)
    keys: int | None = option("Keys of a request; by default as many as suit the lookup.", default=None, minimum=1)
    concurrency: int | None = option("Requests at once; by default what suits the lookup.", default=None, minimum=1, maximum=64)
