"""Entries of which every field is a column: they become JSON objects, which are then read like any other message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.schema import literal


def as_objects(entries: Sequence[Sequence[bytes]]) -> pa.Array:
    """Return each entry, `[name, value, name, value …]`, as the text of a JSON object whose values are texts.

    Entries with the same names in the same order are taken together. One that is no UTF-8 stays as it is, which is no JSON
    and is refused as such. Where a name comes twice its last value counts.
    """
    alike: dict[tuple[bytes, ...], list[int]] = defaultdict(list)
    for i, values in enumerate(entries):
        alike[tuple(values[::2])].append(i)
    made, places = [], []
    with duck.session() as connection:
        for names, indices in alike.items():
            made.append(_objects(connection, names, [entries[i] for i in indices]))
            places += indices
    if len(made) == 1:
        return made[0]
    order = [0] * len(places)
    for at, index in enumerate(places):
        order[index] = at
    return pa.concat_arrays(made).take(pa.array(order, pa.int64())) if made else pa.array([], pa.binary())


def _objects(connection: Any, names: tuple[bytes, ...], entries: Sequence[Sequence[bytes]]) -> pa.Array:
    try:
        columns = {name.decode(): pa.array([e[2 * i + 1] for e in entries], pa.binary()).cast(pa.string()) for i, name in enumerate(names)}
    except (UnicodeDecodeError, pa.ArrowInvalid):
        if len(entries) == 1:
            return pa.array([b" ".join(entries[0])], pa.binary())
        # Some of them are no text: find them.
        half = len(entries) // 2
        return pa.concat_arrays([_objects(connection, names, entries[:half]), _objects(connection, names, entries[half:])])
    table = pa.table(list(columns.values()), names=[f"c{i}" for i in range(len(columns))])
    # Any text may be a name: as a value, not as an identifier, of which there is none without letters, and a is A.
    packed = ", ".join(f"{literal(name)}, c{i}" for i, name in enumerate(columns))
    connection.register("entries", table)
    try:
        found = connection.sql(f"SELECT json_object({packed})::VARCHAR AS o FROM entries").to_arrow_table()
    finally:
        connection.unregister("entries")
    return found.column(0).combine_chunks().cast(pa.binary())
