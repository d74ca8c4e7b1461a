"""The `with:` block of the destination."""

from __future__ import annotations

from typing import Literal

from dataflare_sdk import Duration, Size, config, option


@config
class BatchConfig:
    """How much goes into one request."""

    rows: int = option("Rows at most.", default=500, minimum=1, maximum=1_000_000)
    bytes: Size = option("Bytes of the body at most; a larger row goes alone.", default=1 << 20, example="1MiB")


@config
class RetryConfig:
    """How often and how patiently a request is made again after 408, 425, 429, 5xx or a cut connection."""

    attempts: int = option("Times at most, the first included.", default=5, minimum=1, maximum=100)
    initial: Duration = option("Wait before the second; it doubles from time to time.", default=1.0, example="1s")
    max: Duration = option("Longest wait that is not the server's wish (`Retry-After`).", default=60.0, example="1m")


@config
class HttpConfig:
    """Where rows are sent, and how."""

    url: str = option(
        "The address; `{column}` in its path or query is the row's value, and rows go together that go to one address.",
        example="https://api.example/v1/orders",
    )
    method: Literal["POST", "PUT", "PATCH"] = option("Method of the requests.", default="POST")
    body: Literal["array", "ndjson", "object"] = option(
        "What a request carries: a JSON array of rows, one JSON object a line, or a single row.", default="array"
    )
    batch: BatchConfig | None = option(
        "How much goes into one request: `rows` (500) and `bytes` of the body (1MiB) at most.", default=None, example={"rows": 100}
    )
    headers: dict[str, str] = option(
        "Headers of every request.", default_factory=dict, example={"Authorization": "Bearer ${secret:file/token}"}
    )
    idempotency_header: str | None = option(
        "Header for a key that is the same when a request is made again, also after a crash.", default="Idempotency-Key"
    )
    idempotent: bool = option("The server takes what comes under a key it has seen only once.", default=False)
    compress: bool = option("Send bodies as gzip.", default=False)
    timeout: Duration = option("How long the server may be silent.", default=30.0, example="30s")
    retry: RetryConfig | None = option(
        "After a failure of the moment: `attempts` (5), the first wait `initial` (1s), which doubles up to `max` (1m).",
        default=None,
        example={"attempts": 10},
    )
    ca: str | None = option("Certificate authorities to trust instead of the system's, a PEM file.", default=None, example="tls/ca.pem")
