"""Dead letters as data: what is kept of a refused row, and the way back from it to Arrow."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare.contracts import DeadLetter
from dataflare.errors import code
from dataflare_sdk import schema as schemas
from dataflare_sdk.changes import COLUMNS, Changes
from dataflare_sdk.messages import Batch
from dataflare_sdk.schema import literal, quote

HIDDEN = "***"
"""Stands for the value of a column that is masked downstream."""
BAD_VALUE = code(
    "dlq.bad-value", 1, "A value of a dead letter does not fit its column.", "Edit it: `dataflare dlq edit --id ID --set COLUMN=VALUE`."
)
CHANGE = code(
    "dlq.change",
    3,
    "A dead letter is one change of a row, and the row may have changed again since.",
    "Append changes, or upsert with `pos_column` and `deletes: ignore`; or read the table anew with `dataflare state reset --stream`.",
)
MASKED = code(
    "dlq.masked",
    3,
    "A dead letter does not hold a column that a replay needs: it is masked.",
    "Read it again from its source with `--reread`, edit the column, or replay from behind the mask with `--from STEP`.",
)
NO_COLUMN = code(
    "dlq.no-column",
    3,
    "A dead letter does not hold a column that a replay needs.",
    "Replay it with the workflow as it was when the letter was made, or from another place with `--from`.",
)
SHOWN = (
    "id", "run_id", "source", "position", "row", "raw", "step", "code", "cause", "status", "attempt", "first", "edited", "input",
    "types", "input_types", "masked", "change", "stream", "epoch", "plan_hash", "file_hash", "plugin", "plugin_version", "plugin_hash",
    "replay", "saved_at",
)  # fmt: skip
"""What is told of a letter, in this order."""
TABLE = pa.schema(
    [
        ("id", pa.int64()), ("run_id", pa.string()), ("source", pa.string()), ("stream", pa.string()), ("step", pa.string()),
        ("code", pa.string()), ("cause", pa.string()), ("position", pa.string()), ("row", pa.string()), ("input", pa.string()),
        ("raw", pa.string()), ("edited", pa.string()), ("types", pa.string()), ("change", pa.string()), ("status", pa.string()),
        ("attempt", pa.int64()), ("first", pa.int64()), ("replay", pa.string()), ("epoch", pa.int64()), ("plan_hash", pa.string()),
        ("file_hash", pa.string()), ("plugin", pa.string()), ("plugin_version", pa.string()), ("plugin_hash", pa.string()),
        ("saved_at", pa.timestamp("us", "UTC")),
    ]
)  # fmt: skip
"""The columns of `dead_letters`, the table that `dlq query` reads."""
_JSON = frozenset({"position", "row", "input", "change"})


def told(letter: DeadLetter) -> dict[str, Any]:
    """Return a letter as `--json` documents show it."""
    made = {name: getattr(letter, name) for name in SHOWN}
    made["types"], made["input_types"] = kinds_of(letter.types), kinds_of(letter.input_types)
    made["masked"] = list(letter.masked)
    if letter.edited is not None:
        made["edited"] = _edited(letter)
    return made


def table(letters: Sequence[DeadLetter], names: Collection[str] = TABLE.names) -> pa.RecordBatch:
    """Return letters in the columns of `TABLE`; what is structured is JSON text.

    Args:
        letters: the letters.
        names: the columns that are wanted; the others are NULL.
    """
    columns = [pa.array([_cell(x, f.name) for x in letters], f.type) if f.name in names else pa.nulls(len(letters), f.type) for f in TABLE]
    return pa.RecordBatch.from_arrays(columns, schema=TABLE)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_text = json.JSONEncoder(ensure_ascii=False).encode


def _cell(letter: DeadLetter, name: str) -> Any:
    """Return what stands in one column of `TABLE`."""
    value = getattr(letter, name)
    if name == "types":
        return _text(kinds_of(value))
    if name == "edited":
        return None if value is None else _text(_edited(letter))
    if name in _JSON:
        return None if value is None else _text(value)
    if name == "saved_at":
        return _EPOCH + datetime.timedelta(seconds=value)
    return int(value or letter.id) if name in ("id", "first") else value


def _edited(letter: DeadLetter) -> dict[str, Any]:
    """Return the edited row; what a person put in a masked column is hidden like the rest of it."""
    return {k: HIDDEN if k in letter.masked else v for k, v in (letter.edited or {}).items()}


def column_types(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """Return columns with the names of their types, as a letter keeps them."""
    return tuple((f.name, schemas.type_name(f.type)) for f in schema)


def change_of(batch: Batch, index: int) -> dict[str, Any] | None:
    """Return what had happened to a row of a batch of changes, None of a plain row."""
    if batch.changes is None:
        return None
    one = batch.changes.slice(index, 1)
    not_sent = sorted(name for name, flags in one.unchanged.items() if flags[0].as_py())
    made = {"op": chr(one.op[0].as_py()), "pos": one.pos[0].as_py(), "txid": one.txid[0].as_py(), "commit_ts": None, "unchanged": not_sent}
    if one.commit_ts[0].is_valid:
        made["commit_ts"] = one.commit_ts[0].cast(pa.int64()).as_py()
    return made


def values_at(data: pa.RecordBatch, index: int) -> dict[str, Any]:
    """Return a row of a batch; a value that Python has not (a day of the year 290000) as its text."""
    made: dict[str, Any] = {}
    for name, column in zip(data.schema.names, data.columns, strict=True):
        try:
            made[name] = column[index].as_py()
        except (ValueError, OverflowError, TypeError):
            made[name] = _as_text(column.slice(index, 1))
    return made


def _as_text(column: pa.Array) -> str:
    from dataflare_sdk import duck

    with duck.session() as connection:
        connection.register("one", pa.table({"v": column}))
        ((text,),) = connection.sql("SELECT v::VARCHAR FROM one").fetchall()
        connection.unregister("one")
    return str(text)


def changes_of(letters: Sequence[DeadLetter]) -> Changes:
    """Return what had happened to the rows of letters that were changes."""
    told_of = [x.change or {} for x in letters]
    return Changes(
        pa.array([ord(c["op"]) for c in told_of], pa.uint8()),
        pa.array([c["pos"] for c in told_of], pa.int64()),
        pa.array([c["txid"] for c in told_of], pa.int64()),
        pa.array([c["commit_ts"] for c in told_of], pa.int64()).cast(COLUMNS.field("_commit_ts").type),
    )


def row_of(letter: DeadLetter, step: bool) -> Mapping[str, Any] | None:
    """Return the row that a replay hands on: as it was edited, else as its source gave it.

    Args:
        letter: the letter.
        step: the replay begins at a step, which wants the row as the step that refused it saw it.
    """
    if letter.edited is not None and not (step and letter.input is not None):
        return letter.edited
    return letter.input if step and letter.input is not None else letter.row


def whole_row(letter: DeadLetter, names: Sequence[str], step: bool) -> Mapping[str, Any]:
    """Return the row that a replay hands on, if it holds the columns that are needed.

    Args:
        letter: the letter.
        names: the columns.
        step: the replay begins at a step.

    Raises:
        DataflareError: `dlq.no-column`, `dlq.masked`.
    """
    row = row_of(letter, step)
    if row is None:
        raise NO_COLUMN.error(
            f"dead letter {letter.id} holds a text that could not be read, and no row",
            fix=f"give it one: `dataflare dlq edit --id {letter.id} --row JSON`",
        )
    hidden = letter.input_masked if step and letter.input is not None else letter.masked
    for name in names:
        if name not in row:
            raise NO_COLUMN.error(f"dead letter {letter.id} has no column '{name}'")
        if name in hidden and row[name] == HIDDEN:
            raise MASKED.error(f"'{name}' of dead letter {letter.id} is masked")
    return row


def kinds_of(types: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return columns with the names of their types, of what a letter keeps."""
    return {one[0]: one[1] for one in types}


def schema_of(types: Sequence[Sequence[str]]) -> pa.Schema:
    """Return the columns that a letter names.

    Raises:
        DataflareError: `schema.unsupported-type`: one is of a type that SQL has not.
    """
    if not types:
        return pa.schema([])
    try:
        return schemas.from_names(kinds_of(types))
    except Exception as error:
        raise schemas.UNSUPPORTED_TYPE.error(
            f"a dead letter has a column that cannot be read back: {str(error).splitlines()[0]}"
        ) from error


def to_arrow(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, names: Sequence[str] = ()) -> pa.RecordBatch:
    """Return rows of plain values, as letters hold them, as Arrow; a key that a row lacks is NULL.

    Args:
        rows: plain values (see `dataflare_sdk.values.plain`).
        schema: the columns.
        names: what each row is called in an error.

    Raises:
        DataflareError: `dlq.bad-value`: a value does not fit its column.
    """
    by_sql = [f for f in schema if _in_json(f.type)]
    found: dict[str, pa.Array] = {}
    if by_sql:
        found.update(_parsed(rows, by_sql, names))
    for field in schema:
        if field.name not in found:
            found[field.name] = _built(rows, field, names)
    return pa.RecordBatch.from_arrays([found[f.name] for f in schema], schema=schema)


def _parsed(rows: Sequence[Mapping[str, Any]], fields: Sequence[pa.Field], names: Sequence[str]) -> dict[str, pa.Array]:
    """Have DuckDB read columns out of the rows' JSON text; a value that is there and comes out as NULL did not fit."""
    from dataflare_sdk import duck

    spec = literal(json.dumps({f.name: schemas.duck_type(f.type) for f in fields}, ensure_ascii=False))
    lines = pa.table({"line": pa.array([json.dumps(dict(r), ensure_ascii=False) for r in rows], pa.string())})
    values = ", ".join(f"struct_extract(r, {literal(f.name)}) AS {quote(f.name)}" for f in fields)
    bad = ", ".join(
        f"struct_extract(r, {literal(f.name)}) IS NULL AND coalesce(json_type(line, {literal(_path(f.name))}), 'NULL') <> 'NULL'"
        for f in fields
    )
    with duck.session() as connection:
        connection.register("letters", lines)
        read = f"SELECT line, from_json(line, {spec}) AS r FROM letters"
        made = connection.sql(f"SELECT {values}, [{bad}] AS {quote('bad rows')} FROM ({read})").to_arrow_table().combine_chunks()
        connection.unregister("letters")
    flags = made.column(len(fields)).combine_chunks().flatten() if made.num_rows else pa.array([], pa.bool_())
    if flags.true_count:
        at = flags.index(True).as_py()
        raise _misfit(rows[at // len(fields)], fields[at % len(fields)], _name(names, at // len(fields)))
    columns = [made.column(i) for i in range(len(fields))]
    return {f.name: schemas.cast_column(_whole(c), f.type) for f, c in zip(fields, columns, strict=True)}


def _built(rows: Sequence[Mapping[str, Any]], field: pa.Field, names: Sequence[str]) -> pa.Array:
    """Make a column of a type that JSON text has no form for in SQL."""
    made = []
    for i, row in enumerate(rows):
        try:
            made.append(_value(row.get(field.name), field.type))
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise _misfit(row, field, _name(names, i)) from error
    try:
        return pa.array(made, field.type)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise BAD_VALUE.error(f"a value of '{field.name}' is no {schemas.type_name(field.type)}: {error}") from error


def _value(value: Any, kind: pa.DataType) -> Any:
    """Return a plain value as `pyarrow.array` takes it for a type."""
    import base64
    import decimal

    if value is None:
        return None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return base64.b64decode(value, validate=True)
    if kind == pa.month_day_nano_interval():
        return pa.MonthDayNano([int(v) for v in value])
    if pa.types.is_map(kind):
        pairs = value.items() if isinstance(value, Mapping) else value
        return [(_value(k, kind.key_type), _value(v, kind.item_type)) for k, v in pairs]
    if pa.types.is_struct(kind):
        return {f.name: _value(value.get(f.name), f.type) for f in kind}
    if pa.types.is_nested(kind):
        if not isinstance(value, list):
            raise TypeError("it is no list")
        return [_value(v, kind.value_type) for v in value]
    if pa.types.is_decimal(kind):
        return decimal.Decimal(str(value))
    if pa.types.is_timestamp(kind):
        return datetime.datetime.fromisoformat(value)
    if pa.types.is_date(kind):
        return datetime.date.fromisoformat(value)
    if pa.types.is_time(kind):
        return datetime.time.fromisoformat(value)
    return float(value) if pa.types.is_floating(kind) else value


def _in_json(kind: pa.DataType) -> bool:
    """Whether DuckDB reads a type out of JSON text as `plain` wrote it; within what is nested it would put NULL for a misfit."""
    if pa.types.is_nested(kind) or kind == pa.month_day_nano_interval() or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return False
    try:
        schemas.duck_type(kind)
    except Exception:  # SQL has no such type
        return False
    return True


def _misfit(row: Mapping[str, Any], field: pa.Field, name: str) -> Exception:
    value = row.get(field.name)
    hidden = " (it is masked)" if value == HIDDEN else ""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return BAD_VALUE.error(f"{name}{shown} in '{field.name}' is no {schemas.type_name(field.type)}{hidden}")


def _name(names: Sequence[str], at: int) -> str:
    return f"dead letter {names[at]}: " if names else ""


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _path(name: str) -> str:
    return '$."' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
