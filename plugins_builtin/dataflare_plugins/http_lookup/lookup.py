"""A web service as a lookup: an address with the key in it, or many keys in one request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import pyarrow as pa

from dataflare_plugins.http_lookup.web import BAD_ANSWER, BAD_URL, NOTHING, REFUSED, Service, parsed
from dataflare_sdk import CODES, Size, config, duck, option, web
from dataflare_sdk import schema as schemas
from dataflare_sdk.lookup import Lookup, joined
from dataflare_sdk.schema import cast_batch, duck_type
from dataflare_sdk.schema import quote as quoted
from dataflare_sdk.values import plain

KEYS = "{keys}"


@config
class HttpLookupConfig:
    """What is asked, and how its answer reads."""

    url: str = option(
        "The address; `{key}` stands for the key, of several `{name}` for each, `{keys}` for many, with commas.",
        example="https://crm.example/customers/{key}",
    )
    columns: dict[str, str] = option(
        "What is read of each row, with DuckDB types; the keys too.", min_items=1, example={"id": "BIGINT", "segment": "VARCHAR"}
    )
    method: Literal["GET", "POST"] | None = option("By default GET, with a `body` POST.", default=None)
    body: Any = option(
        'Sent as JSON: the text "{keys}" in it becomes the list of keys, "{key}" the key.', default=None, example={"ids": "{keys}"}
    )
    headers: dict[str, str] = option("Sent with each request.", default_factory=dict, example={"Authorization": "Bearer ${secret:env/CRM}"})
    rows: str = option("Where the rows are in the answer, a JSON pointer; by default all of it.", default="", example="/data/customers")
    max_bytes: Size = option("Size of an answer at most.", default=16 << 20)


class HttpLookup(Lookup[HttpLookupConfig]):
    """Answers are JSON: an object is a row, a list is many. 404 says that there is none."""

    Config = HttpLookupConfig
    features = frozenset({"remote"})
    most = 100
    parallel = 4

    def __init__(self, config: HttpLookupConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._many = KEYS in config.url or KEYS in json.dumps(config.body)
        self._service: Service | None = None
        self._names = self._placeholders()
        self._url = parsed(config.url.replace("{", "").replace("}", ""))
        if "{" in urlsplit(config.url).netloc:
            raise BAD_URL.error("what names the server is the same for all keys", path="url")
        for name, value in config.headers.items():
            if (wrong := web.bad_header(name, value)) is not None:
                raise CODES["config.invalid"].error(wrong, path=f"headers.{name}")
        if config.rows and not config.rows.startswith("/"):
            raise CODES["config.invalid"].error("a JSON pointer begins with '/'", path="rows")
        if not self._many:
            self.features = HttpLookup.features | {"one_by_one"}

    def _placeholders(self) -> list[str]:
        """Return what stands in braces in the address."""
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.config.url) if name is not None]
        except ValueError as error:
            raise CODES["config.invalid"].error("the address has a brace too many", path="url") from error
        if not names and self.config.body is None:
            raise CODES["config.invalid"].error("no key stands in the address", fix="Write {key} where it belongs.", path="url")
        return names

    def discover(self) -> pa.Schema:
        """Return the columns that are declared."""
        fields = []
        for name, kind in self.config.columns.items():
            try:
                fields.append(schemas.from_names({name: kind}).field(0))
            except Exception:
                raise CODES["config.invalid"].error(f"'{kind}' is no type", path=f"columns.{name}") from None
        return pa.schema(fields)

    def check(self) -> None:
        """Check what is declared; a service is not asked without a key."""
        self.discover()

    def against(self, keys: Sequence[str]) -> str | None:
        """Refuse keys that the address has no place for."""
        allowed = {*keys, "keys"} | ({"key"} if len(keys) == 1 else set())
        wrong = [n for n in self._names if n not in allowed]
        if wrong:
            return f"'{{{wrong[0]}}}' in its `url` is none of the keys {', '.join(keys)}"
        if "keys" in self._names and len(keys) > 1:
            return "'{keys}' in its `url` can hold one column"
        return None

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Ask for the keys, one by one or together.

        Raises:
            RetriableError: `http_lookup.unavailable`.
            DataflareError: `http_lookup.refused`, `http_lookup.bad-answer`.
        """
        asked = [{n: plain(v) for n, v in row.items()} for row in keys.to_pylist()]
        if self._many:
            bodies = [(0, self._ask(self._address(asked), self._filled(asked)))]
        else:
            bodies = [(i, self._ask(self._address([one]), self._filled([one]))) for i, one in enumerate(asked)]
        return self._read(keys, [(i, b) for i, b in bodies if b is not None])

    def _ask(self, address: str | None, body: bytes | None) -> bytes | None:
        """Return an answer, None when it says that there is nothing."""
        if self._service is None:
            self._service = Service(self.config.headers, self.spec.timeout, self.config.max_bytes)
        if address is None:
            return None
        method = self.config.method or ("GET" if body is None else "POST")
        status, data = self._service.send(method, address, body)
        if status == 204 or (status in NOTHING and not self._many):
            return None
        if not 200 <= status < 300:
            raise REFUSED.error(f"{web.shown(parsed(address))} answers with status {status}", path="url")
        return data

    def _address(self, asked: Sequence[Mapping[str, Any]]) -> str | None:
        """Return where keys are asked for; None when there is no such place: `..` would be another one."""
        first = asked[0]
        values = {name: quote(_text(value), safe="") for name, value in first.items()}
        if len(first) == 1:
            (name,) = first
            values["key"] = values[name]
            values["keys"] = ",".join(quote(_text(one[name]), safe="") for one in asked)
        made = self.config.url
        for name in self._names:
            made = made.replace("{" + name + "}", values[name])
        return None if web.climbs(web.target(urlsplit(made))) else made

    def _filled(self, asked: Sequence[Mapping[str, Any]]) -> bytes | None:
        if self.config.body is None:
            return None
        several = [next(iter(one.values())) if len(one) == 1 else dict(one) for one in asked]
        return json.dumps(_put(self.config.body, several[0], several)).encode()

    def _read(self, keys: pa.RecordBatch, bodies: Sequence[tuple[int, bytes]]) -> pa.RecordBatch:
        """Return the rows of answers; one to a single key that does not repeat it has the key it was asked by."""
        known = self.discover()
        schema = pa.schema([known.field(n) for n in self.spec.columns])
        if not bodies:
            return joined([], schema)
        asked = keys.take(pa.array([i for i, _ in bodies], pa.int64()))
        given = {f"k{i}": asked.column(name) for i, name in enumerate(self.spec.keys)}
        try:
            texts = pa.array([b for _, b in bodies], pa.binary()).cast(pa.string())
            with duck.session() as connection:
                connection.register("answers", pa.table({**given, "body": texts}))
                try:
                    made = connection.sql(self._sql(schema)).to_arrow_table()
                finally:
                    connection.unregister("answers")
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise BAD_ANSWER.error(f"the answer of {web.shown(self._url)} cannot be read: {reason[:200]}", path="columns") from error
        return joined([cast_batch(b, schema) for b in made.to_batches()], schema)

    def _sql(self, schema: pa.Schema) -> str:
        items = []
        for field in schema:
            place = schemas.literal("/" + _escaped(field.name))
            nested = pa.types.is_nested(field.type)
            value = f"{'json_extract' if nested else 'json_extract_string'}(r, {place})"
            made = f"CAST({value} AS {duck_type(field.type)})"
            if field.name in self.spec.keys and not self._many:
                made = f"coalesce({made}, k{self.spec.keys.index(field.name)})"
            items.append(f"{made} AS {quoted(field.name)}")
        rows = "CAST(body AS JSON)" if not self.config.rows else f"json_extract(CAST(body AS JSON), {schemas.literal(self.config.rows)})"
        keys = "".join(f"k{i}, " for i in range(len(self.spec.keys)))
        lists = "CASE json_type(d) WHEN 'ARRAY' THEN CAST(d AS JSON[]) WHEN 'OBJECT' THEN [d] ELSE CAST([] AS JSON[]) END"
        return f"SELECT {', '.join(items)} FROM (SELECT {keys}unnest({lists}) AS r FROM (SELECT {keys}{rows} AS d FROM answers))"

    def cancel(self) -> None:
        """Cut the connection."""
        if self._service is not None:
            self._service.cancel()

    def close(self) -> None:
        """Close the connection."""
        if self._service is not None:
            self._service.close()


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _put(part: Any, one: Any, several: list[Any]) -> Any:
    """Return a body with the keys in their places."""
    if part == KEYS:
        return several
    if part == "{key}":
        return one
    if isinstance(part, Mapping):
        return {k: _put(v, one, several) for k, v in part.items()}
    return [_put(v, one, several) for v in part] if isinstance(part, (list, tuple)) else part
