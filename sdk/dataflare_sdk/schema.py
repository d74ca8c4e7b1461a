"""One type system: Arrow schemas, fixed at plan time, the same in both lanes.

DuckDB has types that Arrow has not or that it hands over differently by COPY and by Arrow. A stream's schema is
always the *runtime* form: `normalise` gives it, and `duck_type` names the DuckDB type that casts to it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from dataflare.errors import code

UNSUPPORTED_TYPE = code(
    "schema.unsupported-type", 3, "A column has a type that DataFlare cannot carry.", "Cast the column in a map or in the query."
)
UNION_CLASH = code(
    "schema.union-clash",
    3,
    "Two inputs of a union have a column of the same name with types that do not meet.",
    "Cast one of them in a map before the union.",
)

_SIMPLE = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float16(): "FLOAT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.string_view(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.large_binary(): "BLOB",
    pa.binary_view(): "BLOB",
    pa.date32(): "DATE",
    pa.date64(): "DATE",
    pa.time32("s"): "TIME",
    pa.time32("ms"): "TIME",
    pa.time64("us"): "TIME",
    pa.time64("ns"): "TIME_NS",
    pa.month_day_nano_interval(): "INTERVAL",
    pa.null(): "INTEGER",
}


def quote(name: str) -> str:
    """Return a SQL identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Return a SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def normalise_type(kind: pa.DataType) -> pa.DataType:
    """Return the runtime form of an Arrow type as an engine handed it over."""
    if kind in (pa.large_string(), pa.string_view()):
        return pa.string()
    if kind in (pa.large_binary(), pa.binary_view()) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_null(kind):
        return pa.int32()  # DuckDB's own choice for an untyped NULL
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_dictionary(kind):
        return normalise_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(normalise_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(normalise_type(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(normalise_type(kind.key_type), normalise_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, normalise_type(f.type)) for f in kind])
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string()  # arrow.uuid, arrow.json, bit: their text
    return kind


def normalise(schema: pa.Schema) -> pa.Schema:
    """Return the runtime form of a schema: same names, no metadata, every column nullable."""
    return pa.schema([pa.field(f.name, normalise_type(f.type)) for f in schema])


def duck_type(kind: pa.DataType) -> str:
    """Return the DuckDB type that a value of a runtime type is cast to.

    Raises:
        DataflareError: `schema.unsupported-type`: DuckDB has no such type (decimal256, duration).
    """
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if pa.types.is_decimal128(kind) or pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        if kind.tz is not None:
            return "TIMESTAMPTZ"
        return "TIMESTAMP_NS" if kind.unit == "ns" else "TIMESTAMP"
    if pa.types.is_fixed_size_list(kind):
        return f"{duck_type(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{duck_type(kind.value_type)}[]"
    if pa.types.is_map(kind):
        return f"MAP({duck_type(kind.key_type)}, {duck_type(kind.item_type)})"
    if pa.types.is_struct(kind):
        return "STRUCT(" + ", ".join(f"{quote(f.name)} {duck_type(f.type)}" for f in kind) + ")"
    if pa.types.is_dictionary(kind):
        return duck_type(kind.value_type)
    raise UNSUPPORTED_TYPE.error(f"the type {kind} has no equivalent in SQL")


def select_as(schema: pa.Schema, relation: str, *more: str) -> str:
    """Return a SELECT that gives exactly `schema` from a SQL relation with the same column names.

    Args:
        schema: names and types.
        relation: a table, or a SELECT in parentheses.
        more: further columns of it, quoted, given behind the others as they are.
    """
    columns = [f"CAST({quote(f.name)} AS {duck_type(f.type)}) AS {quote(f.name)}" for f in schema]
    return f"SELECT {', '.join([*columns, *more])} FROM {relation}"


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return `batch` with exactly `schema`, by position; zero-copy where types are already equal.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit its type.
    """
    if batch.schema.equals(schema):
        return batch
    columns = [cast_column(c, f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def cast_column(column: Any, kind: pa.DataType) -> Any:
    """Return a column in another type, zero-copy where it has it.

    Text on its way to decimals is looked at first: Arrow ends the process at an exponent like that of `1e-999999999`.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
    """
    if column.type == kind:
        return column
    if _has(kind, pa.types.is_decimal) and _has(column.type, _is_text):
        _check_exponents(column)
    return column.cast(kind)


_PLAIN_NUMBER = "^[^eE]*([eE][+-]?0*[0-9]{1,2})?$"
"""What has no exponent, or one of two digits: no decimal has more places. Arrow takes `1e+-5` for one too."""
_LONGEST_DECIMAL = 500


def _check_exponents(column: Any) -> None:
    """Look at every text of a column, however deep it lies."""
    from dataflare_sdk.compute import pc

    kind = column.type
    if isinstance(column, pa.ChunkedArray):
        for chunk in column.chunks:
            _check_exponents(chunk)
    elif _is_text(kind):
        text = column.cast(pa.large_string()) if pa.types.is_string_view(kind) else column
        if (
            pc.all(pc.match_substring_regex(text, _PLAIN_NUMBER)).as_py() is False
            or (pc.max(pc.binary_length(text)).as_py() or 0) > _LONGEST_DECIMAL
        ):
            raise pa.ArrowInvalid("a text with an exponent that no decimal has")
    elif pa.types.is_dictionary(kind):
        _check_exponents(column.dictionary)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            _check_exponents(part)
    elif pa.types.is_map(kind):
        _check_exponents(column.keys)
        _check_exponents(column.items)
    elif pa.types.is_nested(kind):
        _check_exponents(column.flatten())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has(kind: pa.DataType, what: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a type, or one within it, is of a sort."""
    if what(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _has(kind.value_type, what)
    return bool(pa.types.is_nested(kind)) and any(_has(kind.field(i).type, what) for i in range(kind.num_fields))


def to_json(schema: pa.Schema) -> dict[str, Any]:
    """Return a schema as JSON: `columns` for people and `ipc`, the exact schema, for machines."""
    return {
        "columns": [{"name": f.name, "type": type_name(f.type)} for f in schema],
        "ipc": base64.b64encode(schema.serialize().to_pybytes()).decode("ascii"),
    }


def from_json(data: Mapping[str, Any]) -> pa.Schema:
    """Return the schema that `to_json` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["ipc"])))


def from_names(columns: Mapping[str, str]) -> pa.Schema:
    """Return the schema of columns given with DuckDB types.

    >>> from_names({"id": "BIGINT", "at": "TIMESTAMP"}).types
    [DataType(int64), TimestampType(timestamp[us])]

    Raises:
        Exception: a type does not exist; DuckDB's own error.
    """
    from dataflare_sdk import duck

    items = ", ".join(f"CAST(NULL AS {kind}) AS {quote(name)}" for name, kind in columns.items())
    with duck.session() as connection:
        return normalise(connection.sql(f"SELECT {items} LIMIT 0").to_arrow_table().schema)


def type_name(kind: pa.DataType) -> str:
    """Return the DuckDB name of a type where there is one, else Arrow's."""
    try:
        return duck_type(kind)
    except Exception:  # a type SQL has not keeps Arrow's own name
        return str(kind)


def union(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the union by name: columns in order of first appearance, types widened to hold both.

    Raises:
        DataflareError: `schema.union-clash` when two types do not meet.
    """
    fields: dict[str, pa.DataType] = {}
    for schema in schemas:
        for f in schema:
            fields[f.name] = f.type if f.name not in fields else widen(fields[f.name], f.type, f.name)
    return pa.schema([pa.field(n, t) for n, t in fields.items()])


_DIGITS = {
    pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19, pa.uint8(): 3, pa.uint16(): 5, pa.uint32(): 10, pa.uint64(): 20,
}  # fmt: skip


def widen(left: pa.DataType, right: pa.DataType, name: str = "") -> pa.DataType:
    """Return the narrowest type that holds values of both without loss; whole numbers and floats meet in DOUBLE.

    Raises:
        DataflareError: `schema.union-clash`, also where only a decimal of more than 38 digits would do.
    """
    if left == right or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    clash = UNION_CLASH.error(f"column '{name}' is {type_name(left)} in one input and {type_name(right)} in another")
    sides = [pa.schema([("x", side)]) for side in (_beside(left, right), _beside(right, left))]
    try:
        merged = normalise_type(pa.unify_schemas(sides, promote_options="permissive").field(0).type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise clash from error
    if pa.types.is_decimal256(merged):
        raise clash
    return merged


def _beside(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return what a whole number counts as beside a decimal, and UBIGINT beside a signed number: a decimal of its digits.

    Left to itself Arrow takes a decimal that is too narrow, or BIGINT, which holds half of UBIGINT's values.
    """
    decimal = pa.types.is_decimal(other) or (kind == pa.uint64() and pa.types.is_signed_integer(other))
    return pa.decimal128(_DIGITS[kind], 0) if decimal and kind in _DIGITS else kind


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_identifier(name: str) -> bool:
    """Return True when a name needs no quotes in SQL."""
    return _IDENTIFIER.fullmatch(name) is not None
