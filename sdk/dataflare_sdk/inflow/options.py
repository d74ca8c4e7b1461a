"""The `with:` keys that all sources of messages share, and the columns that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa

from dataflare.errors import CODES, code
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import Size, config, option

BAD_TYPE = code("config.bad-type", 3, "`columns` names a type that does not exist.", "Use a type of DuckDB's.")

Metadata = Literal["topic", "key", "time", "position", "headers"]

METADATA: dict[str, pa.DataType] = {
    "topic": pa.string(),
    "key": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "position": pa.string(),
    "headers": pa.map_(pa.string(), pa.string()),
}
"""Type of the column that each piece of metadata becomes. A key is text, unless the format is `bytes`."""
VALUE = "value"
"""Name of the column of messages that are no JSON."""


@config
class MessageConfig:
    """How messages become rows."""

    format: Literal["json", "text", "bytes"] = option(
        "What a message is: one JSON object, or text or bytes for a single column `value`.", default="json"
    )
    columns: dict[str, str] | None = option(
        "JSON: the columns, with DuckDB types; by default they are learned from messages that are there at the first run.",
        default=None,
        min_items=1,
        example={"device": "VARCHAR", "at": "TIMESTAMPTZ", "temperature": "DOUBLE"},
    )
    metadata: list[Metadata] = option(
        "What else of a message becomes a column, its name with a `_` in front.", default_factory=list, example=["topic", "time"]
    )
    max_message: Size = option("A larger message is a bad row.", default=1 << 20, example="1MiB")


def metadata_schema(config: MessageConfig) -> pa.Schema:
    """Return the columns of the metadata that is wanted."""
    kinds = {**METADATA, "key": pa.binary()} if config.format == "bytes" else METADATA
    return pa.schema([pa.field("_" + name, kinds[name]) for name in config.metadata])


def payload_schema(config: MessageConfig) -> pa.Schema | None:
    """Return the columns of the messages themselves, None when they have to be learned.

    Raises:
        DataflareError: `config.bad-type`, `config.invalid`.
    """
    if config.format != "json":
        if config.columns is not None:
            raise CODES["config.invalid"].error(
                f"`columns` are for messages of JSON; {config.format} is one column `value`", path="columns"
            )
        return pa.schema([(VALUE, pa.string() if config.format == "text" else pa.binary())])
    return None if config.columns is None else declared(config.columns)


def declared(columns: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a `columns` block.

    Raises:
        DataflareError: `config.bad-type`.
    """
    for name, kind in columns.items():
        try:
            schemas.from_names({name: kind})
        except Exception:
            raise BAD_TYPE.error(f"'{kind}' is no type of DuckDB's", path=f"columns.{name}") from None
    return schemas.from_names(columns)


def whole_schema(config: MessageConfig, payload: pa.Schema) -> pa.Schema:
    """Return all columns: the messages' own, then the metadata.

    Raises:
        DataflareError: `config.invalid`: two columns of one name.
    """
    extra = metadata_schema(config)
    names = [*payload.names, *extra.names]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise CODES["config.invalid"].error(f"there are two columns '{twice}'", path="metadata")
    return pa.schema([*payload, *extra])
