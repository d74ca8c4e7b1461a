"""Rows as people write them in YAML, or in a file, as Arrow: every value cast to its column's type, or refused with its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.workflow_tests.codes import NOT_A_TEST, NOT_CASTABLE, UNKNOWN_COLUMN
from dataflare_plugins.workflow_tests.document import Place, Suite
from dataflare_sdk import CODES, DataflareError, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.schema import duck_type, literal, quote

READERS = {
    ".csv": "read_csv({}, header = true, all_varchar = true)",
    ".jsonl": "read_json({}, format = 'newline_delimited')",
    ".parquet": "read_parquet({})",
}
"""How a file of rows is read, by its ending; `.arrow` is read by Arrow."""


def from_rows(suite: Suite, rows: Any, place: Place, types: Mapping[str, str], *, whole: bool = True) -> pa.Table:
    """Return rows that stand in a test file.

    A value is written as text and cast as DuckDB casts text (`CAST('2026-01-01' AS DATE)`), a mapping or list as DuckDB casts JSON.
    A number must survive it: 2.5 is no INTEGER. A column of unknown type has the one its values show: BIGINT, DOUBLE, BOOLEAN,
    a list or struct of them, else VARCHAR.

    Args:
        suite: the test file.
        rows: a list of mappings.
        place: where they stand.
        types: column to DuckDB type, as far as they are known.
        whole: the columns are all of `types`, NULL where no row names them; else those the rows name.

    Raises:
        DataflareError: `test.invalid`, `test.unknown-column`, `test.not-castable`, all of them at once.
    """
    if not isinstance(rows, list):
        raise suite.error(NOT_A_TEST, "expected a list of rows", place)
    problems = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise suite.error(NOT_A_TEST, "a row is a mapping of column to value", (*place, i))
        for name in row if types and whole else ():
            if name not in types:
                near = nearest(str(name), list(types))
                fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(types)}"
                problems.append(suite.error(UNKNOWN_COLUMN, f"there is no column '{name}'", (*place, i, name), fix).problems[0])
    if problems:
        raise DataflareError(*problems)
    named = dict.fromkeys(str(k) for row in rows for k in row)
    columns = list(types) if types and whole else list(named)
    if not columns:
        return pa.table({})
    values = {c: [row.get(c) for row in rows] for c in columns}
    kinds = {c: types.get(c) or _shown(values[c]) for c in columns}
    texts = pa.table({c: pa.array([_text(v) for v in values[c]], pa.string()) for c in columns})
    nested = {c for c in columns if any(isinstance(v, (list, Mapping)) for v in values[c])}
    made = _cast(suite, texts, kinds, nested, place, lambda i, c: (*place, i, c))
    for name in columns:
        _check_numbers(suite, name, kinds[name], values[name], made.column(name), lambda i, c: (*place, i, c))
    return made


def from_file(suite: Suite, name: str, place: Place, types: Mapping[str, str]) -> pa.Table:
    """Return the rows of a file; raises as `from_rows`, and `world.missing-input`."""
    path = suite.file.parent / name
    if not path.exists():
        raise CODES["world.missing-input"].error(f"the file '{path}' does not exist", **suite.place(place))
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            found = reader.read_all()
    elif path.suffix in READERS:
        with duck.connect() as db:
            found = db.sql(f"SELECT * FROM {READERS[path.suffix].format(literal(str(path)))}").to_arrow_table()
            if path.suffix == ".csv" and not types:
                found = db.sql(f"SELECT * FROM read_csv({literal(str(path))}, header = true)").to_arrow_table()
    else:
        raise suite.error(NOT_A_TEST, f"'{name}' ends in none of {', '.join([*READERS, '.arrow'])}", place)
    if not types:
        return found.cast(schemas.normalise(found.schema))
    unknown = [c for c in found.column_names if c not in types]
    if unknown:
        raise suite.error(UNKNOWN_COLUMN, f"'{name}' has a column '{unknown[0]}' that is not there", place)
    missing = {c: pa.nulls(found.num_rows, pa.string()) for c in types if c not in found.column_names}
    for column, nulls in missing.items():
        found = found.append_column(column, nulls)
    return _cast(suite, found.select(list(types)), types, set(), place, lambda _i, _c: place)


def types_of(schema: pa.Schema) -> dict[str, str]:
    """Return column to DuckDB type."""
    return {f.name: duck_type(f.type) for f in schema}


def _cast(
    suite: Suite, texts: pa.Table, kinds: Mapping[str, str], nested: set[str], place: Place, where: Callable[[int, str], Place]
) -> pa.Table:
    items = []
    for name, kind in kinds.items():
        value = f"CAST({quote(name)} AS JSON)" if name in nested and kind != "VARCHAR" else quote(name)
        items.append(f"TRY_CAST({value} AS {kind}) AS {quote(name)}")
    with duck.connect() as db:
        db.register("texts", texts)
        try:
            made = db.sql(f"SELECT {', '.join(items)} FROM texts").to_arrow_table()
        except Exception as error:
            raise suite.error(NOT_CASTABLE, str(error).splitlines()[0], place) from None
        finally:
            db.unregister("texts")
    problems = []
    for name, kind in kinds.items():
        given, got = texts.column(name).is_valid().to_pylist(), made.column(name).is_valid().to_pylist()
        for i, (was, now) in enumerate(zip(given, got, strict=True)):
            if was and not now:
                text = texts.column(name)[i].as_py()
                row = f" of row {i + 1}" if where(i, name) == place else ""
                problems.append(suite.error(NOT_CASTABLE, f"'{text}'{row} is no {kind} ('{name}')", where(i, name)).problems[0])
    if problems:
        raise DataflareError(*problems)
    return made.cast(schemas.normalise(made.schema))


def _check_numbers(suite: Suite, name: str, kind: str, values: Sequence[Any], made: Any, where: Callable[[int, str], Place]) -> None:
    """Refuse numbers that the cast has changed."""
    if not re.match(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL|NUMERIC|FLOAT|REAL|DOUBLE)", kind):
        return
    close = 1e-6 if re.match("FLOAT|REAL", kind) else 1e-12
    for i, (value, got) in enumerate(zip(values, made.to_pylist(), strict=True)):
        if isinstance(value, float) and not (math.isclose(value, float(got), rel_tol=close) or math.isnan(value) or math.isinf(value)):
            raise suite.error(NOT_CASTABLE, f"{value} is no {kind} ('{name}'); it would become {got}", where(i, name))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


def _shown(values: Sequence[Any]) -> str:
    """Return the DuckDB type that values show."""
    kinds = set(_kinds(v for v in values if v is not None))
    if kinds == {"BIGINT", "DOUBLE"}:
        return "DOUBLE"
    if len(kinds) == 1:
        return kinds.pop()
    if kinds and all(k.startswith("STRUCT") for k in kinds):
        rows = [v for v in values if v is not None]
        names = dict.fromkeys(k for row in rows for k in row)
        return "STRUCT(" + ", ".join(f"{quote(str(n))} {_shown([row.get(n) for row in rows])}" for n in names) + ")"
    return "VARCHAR"


def _kinds(values: Iterator[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, bool):
            yield "BOOLEAN"
        elif isinstance(value, int):
            yield "BIGINT" if -(2**63) <= value < 2**63 else "HUGEINT"
        elif isinstance(value, float):
            yield "DOUBLE"
        elif isinstance(value, list):
            yield f"{_shown(value)}[]"
        elif isinstance(value, Mapping):
            yield "STRUCT(" + ", ".join(f"{quote(str(k))} {_shown([v])}" for k, v in value.items()) + ")"
        else:
            yield "VARCHAR"
