"""C10: whatever a history of changes was and however it is cut, the PostgreSQL table is what the history leaves."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare_plugins.postgres.destination import PostgresDestination
from dataflare_sdk import Batch, Target, WriteSpec
from dataflare_sdk.changes import CREATE, DELETE, TRUNCATE, UPDATE, Changes
from dataflare_sdk.testing import FakeContext

SCHEMA = pa.schema([("id", pa.int64()), ("a", pa.string()), ("n", pa.int64())])
_runs = itertools.count(1)

Step = tuple[int, int, str | None, int | None, bool]
"""Kind, key, value of a, value of n, whether `a` is left out of an update."""
STEPS = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 4), st.sampled_from(["x", "é", None]), st.sampled_from([None, 1, 2]), st.booleans()),
    max_size=30,
)


def history(steps):
    """Return the changes a source would send, and the table they leave; only what can happen happens."""
    table, sent = {}, []
    for kind, key, a, n, short in steps:
        if kind == 0:
            table.clear()
            sent.append((TRUNCATE, None, None, None, False))
        elif key not in table:
            table[key] = (a, n)
            sent.append((CREATE, key, a, n, False))
        elif kind < 4:
            del table[key]
            sent.append((DELETE, key, None, None, False))
        elif short:
            table[key] = (table[key][0], n)
            sent.append((UPDATE, key, None, n, True))
        else:
            table[key] = (a, n)
            sent.append((UPDATE, key, a, n, False))
    return sent, table


def batch(changes):
    columns = [pa.array([c[i] for c in changes], f.type) for i, f in enumerate(SCHEMA, 1)]
    made = Changes(
        pa.array([c[0] for c in changes], pa.uint8()),
        pa.array(range(len(changes)), pa.int64()),
        pa.nulls(len(changes), pa.int64()),
        pa.nulls(len(changes), pa.timestamp("us", "UTC")),
        unchanged={"a": pa.array([c[4] for c in changes], pa.bool_())},
    )
    return Batch("s", pa.RecordBatch.from_arrays(columns, schema=SCHEMA), changes=made)


@pytest.mark.parametrize("deletes", ["hard", "soft"])
def test_a_history_leaves_its_table(postgres, tmp_path, deletes):
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS, st.lists(st.integers(1, 6), min_size=1, max_size=8), st.lists(st.booleans(), min_size=1, max_size=8))
    def check(steps, sizes, ends):
        postgres.execute("DROP TABLE IF EXISTS t")
        sent, table = history(steps)
        made = PostgresDestination(PostgresDestination.configure({"url": postgres.socket_url, "table": "t"}), FakeContext(tmp_path, "out"))
        run = next(_runs)
        made.open(Target("w", "out", f"run-{run}", run, SCHEMA, WriteSpec("upsert", ("id",), deletes), "h", changes=True))
        epoch, cut = 0, itertools.cycle(zip(itertools.cycle(sizes), ends, strict=False))
        while sent:
            size, end = next(cut)
            assert not made.write(batch(sent[:size]))
            sent = sent[size:]
            if end or not sent:
                epoch += 1
                made.prepare(epoch, not sent)
                made.commit(epoch, {}, not sent)
        made.close()
        where = "" if deletes == "hard" else " WHERE _deleted_at IS NULL"
        assert {r[0]: (r[1], r[2]) for r in postgres.execute(f"SELECT id, a, n FROM t{where}")} == table

    check()
