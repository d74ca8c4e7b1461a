"""What is followed in a SQLite file, and where reading it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflare_sdk import Offset
from dataflare_sdk import schema as schemas
from dataflare_sdk.records import record


@record
class Followed:
    """A stream of changes.

    Attributes:
        name: the stream.
        table: the table it follows.
        schema: the columns the workflow uses.
        key: columns that identify a row.
        columns: all columns of the table that the plan knows.
    """

    name: str
    table: str
    schema: pa.Schema
    key: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(slots=True)
class Place:
    """An offset, in the making."""

    log: int
    todo: dict[str, Any]
    end: int
    streams: tuple[str, ...]
    asked: tuple[str, ...] = ()

    @classmethod
    def of(cls, offset: Offset) -> Place:
        """Read an offset."""
        return cls(int(offset["log"]), dict(offset.get("todo") or {}), int(offset.get("end") or 0), tuple(offset.get("streams") or ()))

    def offset(self) -> dict[str, Any]:
        """Return it as an offset."""
        asked = {"asked": list(self.asked)} if self.asked else {}
        return {"v": 1, "log": self.log, "todo": dict(self.todo), "end": self.end, "streams": sorted(self.streams), **asked}


def followed(spec: Mapping[str, Any], used: Callable[[str], Sequence[str] | None]) -> list[Followed]:
    """Return the streams of a partition that anybody uses, with the columns that are used."""
    made = []
    for name, one in spec["streams"].items():
        columns = used(name)
        if columns is not None:
            schema = schemas.from_json(one["schema"])
            kept = pa.schema([schema.field(c) for c in columns])
            made.append(Followed(name, one["table"], kept, tuple(one["key"]), tuple(one["names"])))
    return made
