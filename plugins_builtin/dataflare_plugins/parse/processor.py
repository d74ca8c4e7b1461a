"""`parse`: a text column read as JSON, or by a pattern, into typed columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, RowRejection, code, config, option
from dataflare_sdk.row_stage import StageProcessor, need_column, only, single
from dataflare_sdk.schema import literal, quote

BAD_PATTERN = code(
    "parse.bad-pattern", 3, "The pattern of a `parse` step cannot be used.", "Write a group (?P<name>…) for every column of `into`."
)
BAD_TYPE = code("parse.bad-type", 3, "A type named under `into` does not exist.", "Use a type of DuckDB's.")
NO_TYPE = re.compile(r"[;\x00]|--|/\*")


@config
class ParseConfig:
    """A text that is NULL gives NULL everywhere; one that cannot be read is a bad row."""

    column: str = option("The text column.", example="payload")
    format: Literal["json", "regex"] = option("How the text is read.")
    pattern: str | None = option(
        "Of `regex`: the pattern, with a group (?P<name>…) per column.", default=None, example=r"(?P<host>\S+) (?P<code>\d+)"
    )
    into: dict[str, str] = option("Column to DuckDB type; of JSON the key has the column's name.", min_items=1, example={"id": "BIGINT"})


class ParseProcessor(StageProcessor[ParseConfig]):
    """The text itself stays; columns that exist are replaced in place, others come at the end."""

    Config = ParseConfig
    features = frozenset({"rowwise", "one_to_one", "sql", "fuses"})
    changes = "rowwise"

    def __init__(self, config: ParseConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])
        self._needed: frozenset[str] | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the columns that are read out of the text."""
        self._name, schema = single(inputs)
        need_column(schema, self.config.column, "column")
        wanted = {n: t for n, t in self.config.into.items() if self._needed is None or n in self._needed}
        for name, kind in wanted.items():
            if NO_TYPE.search(kind):
                raise BAD_TYPE.error(f"'{kind}' is no type", path=f"into.{name}")
        groups = self._groups() if self.config.format == "regex" else {}
        expressions = {n: self._json(n, t) if not groups else self._regex(groups[n], t) for n, t in wanted.items()}
        bound = self.bind(expressions, schema, lambda name: f"into.{name}")
        fields = [bound.schema.field(f.name) if f.name in wanted else f for f in schema]
        fields += [bound.schema.field(n) for n in wanted if n not in schema.names]
        self._schema = pa.schema(fields)
        return {"": self._schema}

    def _json(self, name: str, kind: str) -> str:
        path = literal('$."' + name.replace("\\", "\\\\").replace('"', '\\"') + '"')
        extract = "json_extract_string" if kind.strip().upper() in ("VARCHAR", "TEXT", "STRING") else "json_extract"
        return f"CAST({extract}({quote(self.config.column)}, {path}) AS {kind})"

    def _groups(self) -> Mapping[str, int]:
        try:
            groups = re.compile(self.config.pattern or "").groupindex
        except re.error as error:
            raise BAD_PATTERN.error(f"the pattern cannot be read: {error}", path="pattern") from None
        missing = [n for n in self.config.into if n not in groups]
        if missing:
            raise BAD_PATTERN.error(f"the pattern has no group named '{missing[0]}'", path="pattern")
        return groups

    def _regex(self, group: int, kind: str) -> str:
        column, pattern = quote(self.config.column), literal(self.config.pattern or "")
        found = f"regexp_extract({column}, {pattern}, {group})"
        if kind.strip().upper() not in ("VARCHAR", "TEXT", "STRING"):
            found = f"nullif({found}, '')"  # a group that took part in no match
        return (
            f"CASE WHEN {column} IS NULL THEN NULL WHEN NOT regexp_matches({column}, {pattern}) "
            f"THEN CAST(error('the text does not match the pattern') AS {kind}) ELSE CAST({found} AS {kind}) END"
        )

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the text."""
        self._needed = needed.get("", frozenset())
        return {self._name: self._needed & frozenset(self._input.names) | {self.config.column}}

    def kept(self) -> Mapping[str, str]:
        """Columns that are not read out of the text are the input's."""
        return {n: n for n in self._schema.names if n not in self.config.into}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """New columns come from the text, every other one from itself."""
        return {"": {n: [(self._name, self.config.column if n in self.config.into else n)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        items = [f"{self.text(n) if n in self._expressions else quote(n)} AS {quote(n)}" for n in self._schema.names]
        items += [quote(n) for n in self.carried]
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with the columns read out of the text."""
        return [("", self._made(batch, self.evaluate(batch.data)))]

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the rows that could be read, and the others."""
        tried = self.tried(batch)
        if tried is None:
            return None
        good, values, rejected = tried
        return [("", self._made(good, values))], rejected

    def _made(self, batch: Batch, values: Mapping[str, pa.Array]) -> Batch:
        columns = [values[n] if n in values else batch.data.column(n) for n in self._schema.names]
        return batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema))
