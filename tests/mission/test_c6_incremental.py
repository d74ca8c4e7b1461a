"""C6: runs of an incremental extraction from PostgreSQL: what is new arrives once, a run without news moves nothing."""

from __future__ import annotations

import dataflare


def workflow(postgres, *, mode="append", **with_):
    key = ["id"] if mode == "upsert" else []
    return {
        "name": "inc",
        "sources": {
            "src": {
                "use": "postgres",
                "with": {"url": postgres.url, "table": "public.src", **with_},
                "extract": {"mode": "incremental", "cursor": "at", "key": ["id"]},
            }
        },
        "destinations": {"out": {"use": "postgres", "with": {"url": postgres.url, "table": "dst"}, "write": {"mode": mode, "key": key}}},
        "runtime": {"batch": {"rows": 100}},
    }


def run(document):
    made = dataflare.run(document)
    assert made.status == "done", made.error
    return made.rows["read"], made.rows["written"]


def same(postgres):
    for one, two in (("src", "dst"), ("dst", "src")):
        assert postgres.execute(f"SELECT count(*) FROM (SELECT id, at, v FROM {one} EXCEPT ALL SELECT id, at, v FROM {two}) x") == [(0,)]


def test_new_rows_arrive_once_and_nothing_moves_without_news(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    postgres.execute(
        "CREATE TABLE src AS SELECT i AS id, timestamptz '2026-01-01' + (i / 4) * interval '1 s' AS at, 'v' || i AS v FROM generate_series(1, 1000) i"
    )
    document = workflow(postgres)
    assert run(document) == (1000, 1000)
    assert run(document) == (0, 0)
    # At the last value, beyond it, and before it: the last is what a cursor does not see.
    postgres.execute(
        "INSERT INTO src SELECT 1001, max(at), 'boundary' FROM src; INSERT INTO src SELECT 1002, max(at) + interval '1 min', 'new' FROM src"
    )
    assert run(document) == (2, 2)
    assert run(document) == (0, 0)
    same(postgres)


def test_a_changed_row_is_updated(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    postgres.execute(
        "CREATE TABLE src AS SELECT i AS id, timestamptz '2026-01-01' + i * interval '1 s' AS at, 'v' || i AS v FROM generate_series(1, 100) i"
    )
    document = workflow(postgres, mode="upsert")
    assert run(document) == (100, 100)
    postgres.execute("UPDATE src SET v = 'changed', at = '2026-02-01' WHERE id % 10 = 0")
    assert run(document) == (10, 10)
    assert run(document) == (0, 0)
    same(postgres)


def test_a_horizon_misses_no_late_commit(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    postgres.execute("CREATE TABLE src (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), v text)")
    writers = [postgres.connect(autocommit=False) for _ in range(3)]
    documents = {"cursor": workflow(postgres), "horizon": workflow(postgres, horizon="xmin")}
    documents["cursor"]["name"] = "plain"
    documents["cursor"]["destinations"]["out"]["with"]["table"] = "lossy"
    for round_ in range(4):
        for i, writer in enumerate(writers):
            writer.execute("INSERT INTO src (v) VALUES (%s)", (f"{round_}.{i}",))
        # The youngest commits first, the others after the run has passed them.
        writers[-1].commit()
        for document in documents.values():
            run(document)
        for writer in writers[:-1]:
            writer.commit()
    for document in documents.values():
        run(document)
    for writer in writers:
        writer.close()
    same(postgres)
    assert postgres.execute("SELECT count(*) FROM lossy") == [(4,)]  # 8 of 12 rows are lost without it
