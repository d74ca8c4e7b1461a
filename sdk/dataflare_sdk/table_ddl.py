"""The statements that would make a table, or fit it to a schema: what `plan --diff` shows of a table in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dataflare.contracts import WriteSpec
from dataflare_sdk.schema import quote

Same = Callable[[str, str], bool]


def statements(table: str, held: Mapping[str, str], wanted: Mapping[str, str], write: WriteSpec, same: Same = str.__eq__) -> Sequence[str]:
    """Return the statements a run would run before it writes.

    Args:
        table: its name.
        held: the type of each column that is there; empty where the table is not.
        wanted: the type of each column that is written.
        write: how it is written.
        same: whether two types are one to the database; names are compared without case, as databases in files do.
    """
    if not held:
        return [_create(table, wanted, write.key if write.mode == "upsert" else ())]
    known = {n.lower(): t for n, t in held.items()}
    added = [f"ALTER TABLE {quote(table)} ADD COLUMN {quote(n)} {t}" for n, t in wanted.items() if n.lower() not in known]
    if write.mode != "overwrite":
        return added if write.on_add == "evolve" else []
    lower = {n.lower() for n in wanted}
    dropped = [f"ALTER TABLE {quote(table)} DROP COLUMN {quote(n)}" for n in known if n not in lower]
    changed = [
        f"ALTER TABLE {quote(table)} ALTER COLUMN {quote(n)} TYPE {t}"
        for n, t in wanted.items()
        if n.lower() in known and not same(known[n.lower()], t)
    ]
    return added + changed + dropped


def _create(table: str, wanted: Mapping[str, str], key: Sequence[str]) -> str:
    columns = [f"{quote(n)} {t}" for n, t in wanted.items()]
    if key:
        columns.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
    return f"CREATE TABLE {quote(table)} ({', '.join(columns)})"
