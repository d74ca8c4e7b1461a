"""DuckDB runs the statements: afterwards the table is as it was wanted, and nothing was said without need."""

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from dataflare_sdk import WriteSpec
from dataflare_sdk.table_ddl import statements

COLUMNS = st.dictionaries(st.sampled_from(["a", "B", "c d", 'q"uote', "é"]), st.sampled_from(["BIGINT", "VARCHAR", "DOUBLE"]), min_size=1)
OVERWRITE, KEEP, EVOLVE = WriteSpec(mode="overwrite"), WriteSpec(mode="append", on_add="ignore"), WriteSpec(mode="append", on_add="evolve")


def table(columns):
    return ", ".join(f'"{n.replace(chr(34), chr(34) * 2)}" {t}' for n, t in columns.items())


def after(held, told):
    with duckdb.connect() as db:
        if held:
            db.execute(f"CREATE TABLE t ({table(held)})")
        for statement in told:
            db.execute(statement)
        return dict(db.execute("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 't'").fetchall())


@given(COLUMNS, COLUMNS)
def test_an_overwritten_table_is_as_it_is_wanted(held, wanted):
    told = statements("t", held, wanted, OVERWRITE)
    assert after(held, told) == wanted
    assert len(told) == len(held.keys() ^ wanted.keys()) + sum(held[n] != wanted[n] for n in held.keys() & wanted.keys())


@given(COLUMNS, COLUMNS)
def test_a_table_that_is_added_to_grows_only_where_it_may(held, wanted):
    assert statements("t", held, wanted, KEEP) == []
    assert after(held, statements("t", held, wanted, EVOLVE)) == {**wanted, **held}


@given(COLUMNS)
def test_a_new_table_has_its_key(wanted):
    key = next(iter(wanted))
    told = statements("t", {}, wanted, WriteSpec(mode="upsert", key=(key,)))
    assert after({}, told) == wanted
    with duckdb.connect() as db:
        db.execute(told[0])
        assert db.execute("SELECT constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'").fetchall() == [
            ([key],)
        ]


def test_names_and_types_are_compared_as_the_database_does():
    assert statements("t", {"A": "bigint"}, {"a": "BIGINT"}, OVERWRITE, lambda one, other: one.upper() == other.upper()) == []
    assert statements("t", {"A": "BIGINT"}, {"a": "BIGINT"}, EVOLVE) == []
