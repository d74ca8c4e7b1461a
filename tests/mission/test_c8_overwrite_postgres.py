"""C8: a PostgreSQL table is overwritten while people read it: they see the old rows or the new, never none, never half."""

from __future__ import annotations

import threading

import pytest

import dataflare


def workflow(postgres, generation, how):
    columns = {"id": "i", "generation": str(generation)}
    return {
        "name": "over",
        "sources": {"src": {"use": "generate", "with": {"rows": 500, "columns": columns}}},
        "destinations": {
            "out": {"use": "postgres", "with": {"url": postgres.url, "table": "dst", "replace": how}, "write": {"mode": "overwrite"}}
        },
        "runtime": {"batch": {"rows": 50}},
        "state": {"checkpoint": {"every": "20ms"}},
    }


class Watcher(threading.Thread):
    """Looks at the table without a pause and notes each thing it saw."""

    def __init__(self, postgres):
        super().__init__()
        self._db = postgres.connect()
        self.seen, self.failed = set(), None
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.seen.add(self._db.execute("SELECT count(*), min(generation), max(generation) FROM dst").fetchone())
        except Exception as error:
            self.failed = error
        finally:
            self._db.close()


@pytest.mark.parametrize("how", ["swap", "rows"])
def test_a_reader_sees_the_old_or_the_new(postgres, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    dataflare.run(workflow(postgres, 0, how))
    watcher = Watcher(postgres)
    watcher.start()
    for generation in range(1, 5):
        made = dataflare.run(workflow(postgres, generation, how))
        assert made.status == "done", made.error
    watcher.stopping.set()
    watcher.join(20)
    assert watcher.failed is None
    assert watcher.seen <= {(500, g, g) for g in range(5)}
    assert len(watcher.seen) > 1


def test_a_reader_of_one_snapshot_keeps_it_with_rows(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataflare.run(workflow(postgres, 0, "rows"))
    with postgres.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        assert dataflare.run(workflow(postgres, 1, "rows")).status == "done"
        assert reader.execute("SELECT count(*), min(generation) FROM dst").fetchone() == (500, 0)
    assert postgres.execute("SELECT count(*), min(generation) FROM dst") == [(500, 1)]


def test_a_source_that_fails_leaves_the_old_rows(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataflare.run(workflow(postgres, 0, "swap"))
    document = workflow(postgres, "CASE WHEN i < 400 THEN 1 ELSE error('broken') END", "swap")
    assert dataflare.run(document).status == "failed"
    assert postgres.execute("SELECT count(*), min(generation), max(generation) FROM dst") == [(500, 0, 0)]
    dataflare.run(workflow(postgres, 2, "swap"))
    assert postgres.execute("SELECT count(*), min(generation), max(generation) FROM dst") == [(500, 2, 2)]
