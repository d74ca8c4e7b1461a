"""The base of sources of messages: their columns, learned or declared, and their one partition."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from dataflare.contracts import ExtractSpec, Offset, Partition, StreamInfo
from dataflare.errors import code
from dataflare_sdk import duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.inflow.decoder import Decoder
from dataflare_sdk.inflow.options import MessageConfig, payload_schema, whole_schema
from dataflare_sdk.source import Source

NO_SAMPLE = code(
    "inflow.no-sample",
    4,
    "There is no message from which to learn the columns.",
    "Give `columns`, or publish a message first.",
)
SAMPLE = 1_000
"""Messages that the columns are learned from at most."""

C = TypeVar("C", bound=MessageConfig)


class MessageSource(Source[C]):
    """Messages of a broker, or others that come without end.

    A subclass gives `sample`, `open` (a `MessageReader`) and where it can `position` and `ack`. It has no `full` extraction: a
    run reads what comes until it is interrupted, with `--once` what was there when it began, and the next run goes on.
    """

    features = frozenset({"incremental", "ordered", "replayable", "unbounded"})

    def __init__(self, config: C, ctx: Any) -> None:
        super().__init__(config, ctx)
        declared = payload_schema(config)
        if declared is not None:
            whole_schema(config, declared)
        self.cancelled = threading.Event()

    @abstractmethod
    def sample(self, count: int) -> Sequence[bytes]:
        """Return up to `count` messages that are there, without consuming them; asked when columns have to be learned."""

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the declared columns, else those of the last run, else those that a sample has."""
        payload = payload_schema(self.config)
        learned = payload is None
        if payload is None and offset is not None and "schema" in offset:
            payload = schemas.from_json(offset["schema"])
        if payload is None and not self.ctx.offline:
            payload = self._learned()
        if payload is None:
            return [StreamInfo(self.ctx.node, None)]
        pins = {"payload": schemas.to_json(payload), "learned": learned}
        return [StreamInfo(self.ctx.node, whole_schema(self.config, payload), pins=pins)]

    def _learned(self) -> pa.Schema:
        """Return the columns DuckDB finds in a sample, as it finds them in a file of JSON lines.

        Raises:
            DataflareError: `inflow.no-sample`.
        """
        texts = [raw.replace(b"\n", b" ").replace(b"\r", b" ") for raw in self.sample(SAMPLE)]
        folder = Path(self.ctx.staging_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "sample.jsonl"
        path.write_bytes(b"\n".join(texts))
        try:
            with duck.session() as connection:
                source = f"read_json({schemas.literal(str(path))}, format='newline_delimited', ignore_errors=true)"
                found = connection.sql(f"SELECT * FROM {source} LIMIT 0").to_arrow_table().schema if texts else pa.schema([])
        except Exception:
            found = pa.schema([])
        finally:
            path.unlink()
        if not found.names or found.names == ["json"]:
            raise NO_SAMPLE.error(f"no message of '{self.ctx.node}' is there to learn the columns from", path="columns")
        return schemas.normalise(found)

    def decoder(self, partition: Partition, extract: ExtractSpec) -> Decoder:
        """Return what decodes the columns that are used."""
        schema = whole_schema(self.config, schemas.from_json(partition.spec["payload"]))
        if extract.columns is not None:
            schema = pa.schema([schema.field(n) for n in extract.columns])
        return Decoder(
            schema,
            self.config.format,
            max_message=self.config.max_message,
            metadata=self.config.metadata,
            timezone=self.ctx.run.timezone if self.ctx.run is not None else "UTC",
        )

    def cancel(self) -> None:
        """Make a blocking read return soon: a reader waits no longer once `cancelled` is set."""
        self.cancelled.set()
