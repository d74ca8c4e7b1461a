"""Metrics are the truth: equal to the run's document and to the tables when it is over, and never falling and agreeing in mid-run."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import duckdb
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gated import ROWS, WRITTEN, Gated, flow
from tests.servers.receiver import until

import dataflare
from dataflare.contracts import RunEvent
from dataflare_plugins.monitor_prometheus.exposition import text
from dataflare_sdk.run_metrics import FAMILIES, RunMetrics

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(page: str) -> Values:
    """Read a page with Prometheus' own parser, and hold it to what is declared."""
    declared = {family.prometheus: family for family in FAMILIES}
    found: Values = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            known = declared[sample.name]
            assert (family.type, set(sample.labels)) == (known.kind, set(known.labels)), sample
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(values: Values, name: str, **labels: str) -> float:
    found = [v for (n, ls), v in values.items() if n == f"dataflare_{name}" and labels.items() <= dict(ls).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
def test_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str) -> None:
    """Counts of the metrics, of the document, and of DuckDB over the same input."""
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as db:
        db.execute("COPY (SELECT i, CASE WHEN i % 100 = 7 THEN 'x' ELSE i::VARCHAR END AS t FROM range(5000) r(i)) TO 'in.csv' (HEADER)")
        good = db.execute("SELECT count(*) FROM read_csv('in.csv') WHERE try_cast(t AS INT) % 3 = 0").fetchall()[0][0]
        bad = db.execute("SELECT count(*) FROM read_csv('in.csv') WHERE try_cast(t AS INT) IS NULL").fetchall()[0][0]
    document = flow(
        sources={"s": {"use": "csv", "with": {"path": "in.csv", "columns": {"i": "BIGINT", "t": "VARCHAR"}}}},
        processors=[
            {"id": "m", "use": "map", "with": {"set": {"n": "t::INT"}}, "errors": {"on_record": "dead_letter"}},
            {"id": "f", "use": "filter", "with": {"where": "n % 3 = 0"}},
        ],
        runtime={"lane": lane},
        observe={"metrics": {"prometheus": {"textfile": "metrics/w.prom"}}},
    )
    run = dataflare.run(document, check=True)
    found = parsed((tmp_path / "metrics" / "w.prom").read_text())
    assert [p.name for p in (tmp_path / "metrics").iterdir()] == ["w.prom"]
    for node in run.document["nodes"]:
        assert value(found, "rows_total", node=node["id"], direction="in") == node["rows_in"]
        assert value(found, "rows_total", node=node["id"], direction="out") == node["rows_out"]
        for name, key in (("filtered_rows", "filtered"), ("skipped_rows", "skipped"), ("dead_letters", "dead_lettered")):
            assert value(found, f"{name}_total", node=node["id"]) == node[key]
        assert value(found, "late_rows_total", node=node["id"]) == 0
    assert value(found, "rows_total", node="s", direction="in") == 5000
    assert value(found, "rows_total", node="o", direction="out") == good
    assert value(found, "dead_letters_total", node="m") == bad
    assert value(found, "epoch") == 1
    assert value(found, "run_status", status="done") == 1
    assert value(found, "run_status", status="running") == 0
    assert value(found, "run_info", run_id=run.document["run_id"], lane=run.document["lane"]) == 1
    assert value(found, "run_end_timestamp_seconds") >= value(found, "run_start_timestamp_seconds")
    if lane == "streaming":
        assert value(found, "bytes_total", node="s") > 5000 * 8


def test_a_failed_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    observe = {"metrics": {"prometheus": {"textfile": "w.prom"}}}
    bad = {"id": "f", "use": "map", "with": {"set": {"x": "CASE WHEN i = 7 THEN error('no') END"}}}
    assert dataflare.run(flow(processors=[bad], observe=observe)).status == "failed"
    found = parsed(Path("w.prom").read_text())
    assert value(found, "run_status", status="failed") == 1
    assert value(found, "rows_total", node="s", direction="in") == 0, "nothing was committed"
    assert dataflare.run(flow(sources={"s": {"use": "csv", "with": {"path": "none.csv"}}}, observe=observe)).status == "failed"
    assert value(parsed(Path("w.prom").read_text()), "run_status", status="failed") == 1


def scraped(url: str) -> Values:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return parsed(answer.read().decode())


def agree(before: Values, now: Values) -> None:
    """Counters never fall, and what one node gave the next one has."""
    counters = {f.prometheus for f in FAMILIES if f.kind == "counter"}
    for key, was in before.items():
        if key[0] in counters:
            assert now[key] >= was, key
    for left, right in (("s", "g"), ("g", "f"), ("f", "o")):
        assert value(now, "rows_total", node=left, direction="out") == value(now, "rows_total", node=right, direction="in")
    rest = value(now, "rows_total", node="f", direction="out") + value(now, "filtered_rows_total", node="f")
    assert value(now, "rows_total", node="f", direction="in") == rest


def test_mid_run_numbers_never_fall_and_agree(tmp_path: Path) -> None:
    run = Gated(tmp_path, metrics={"prometheus": {"port": 0}})
    try:
        url = until(lambda: run.logged("metrics are served"))["url"]
        until(lambda: "dataflare_rows_total" in {name for name, _ in scraped(url)})  # the plan is known
        before: Values = {}
        for written in (300, 600, 900):
            run.advance(lambda written=written: run.written() > written)

            def settled() -> Values | None:
                nonlocal before
                now = scraped(url)
                agree(before, now)
                before = now
                return now if value(now, "rows_total", node="o", direction="out") == run.written() else None

            now = until(settled)  # what the table has is in the metrics soon after
            assert value(now, "attempt_rows", node="g", direction="out") >= value(now, "rows_total", node="g", direction="out")
            assert value(now, "run_status", status="running") == 1
            assert value(now, "queue_limit_bytes", input="f>o") > 0
            assert value(now, "checkpoint_age_seconds") >= 0
        assert value(before, "epoch") >= 3
        assert value(before, "rows_total", node="s", direction="in") < ROWS
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url.replace("/metrics", "/other"), timeout=30)
    finally:
        report = run.finish()
    assert (report.status, report.problems) == ("done", [])
    assert report.rows["written"] == run.written() == WRITTEN
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=30)


def test_a_port_that_is_taken_is_no_fault_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = dataflare.run(flow(observe={"metrics": {"prometheus": {"port": taken.getsockname()[1]}}}), check=True)
    assert [(p.code, p.severity) for p in run.problems] == [("monitor.failed", "note")]
    assert "cannot be listened on" in run.problems[0].message


def test_counters_stand_through_attempts() -> None:
    """An attempt begins its queues and counters anew: what was told before is not taken back."""
    metrics = RunMetrics("w", "r", lambda: 10.0)

    def told(waited: float, live: int, committed: int) -> dict[str, float]:
        node = {"id": "s", "kind": "source", "rows_in": live, "committed": {"rows_in": committed}, "gauges": {"lag_rows": 4, "own": 2}}
        queue = {"task": "t", "input": "s>o", "bytes": 5, "room": 9, "waited": waited}
        data = {"nodes": [{**node, "metrics": {"calls": 3}}], "epoch": 1, "committed_at": 4.0, "restarts": 1, "queues": [queue]}
        metrics.hear(RunEvent(5.0, "r", "monitor", "progress", data))
        return {s.family.prometheus + ("" if s.labels[-1] != "out" else " out"): s.value for s in metrics.samples()}

    first, second = told(2.0, 100, 40), told(0.5, 41, 40)
    assert (first["dataflare_backpressure_seconds_total"], second["dataflare_backpressure_seconds_total"]) == (2.0, 2.5)
    assert (first["dataflare_rows_total"], second["dataflare_rows_total"]) == (40, 40)
    assert (first["dataflare_attempt_rows"], second["dataflare_attempt_rows"]) == (100, 41)
    assert second["dataflare_checkpoint_age_seconds"] == 6.0
    assert (second["dataflare_lag_rows"], second["dataflare_component_level"]) == (4, 2)
    assert second["dataflare_component_events_total"] == 3


def test_labels_are_escaped() -> None:
    metrics = RunMetrics('a "b" \\ c\nd', "r")
    found = parsed(text(metrics.samples()))
    assert {dict(labels)["workflow"] for _, labels in found} == {'a "b" \\ c\nd'}


def test_a_run_that_is_tried_again_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts, and while the second reads again what the first had not committed."""
    from dataflare_plugins.sqlite.destination import SqliteDestination
    from dataflare_sdk import CODES

    prepare, failed = SqliteDestination.prepare, list[int]()

    def busy(self: SqliteDestination, epoch: int, final: bool) -> None:
        if epoch == 3 and not failed:
            failed.append(epoch)
            raise CODES["world.io"].retriable("the disk is busy")
        prepare(self, epoch, final)

    monkeypatch.setattr(SqliteDestination, "prepare", busy)
    run = Gated(tmp_path, metrics={"prometheus": {"port": 0}}, workflow={"errors": {"retry": {"initial": "300ms"}}})
    seen, over = list[int](), threading.Event()

    def watch() -> None:
        """Look far more often than anybody who is told."""
        until(lambda: run.handle)
        while not over.wait(0.001):
            seen.append(int(run.handle.snapshot()["nodes"][0]["committed"].get("rows_in", 0)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        url = until(lambda: run.logged("metrics are served"))["url"]
        until(lambda: "dataflare_rows_total" in {name for name, _ in scraped(url)})
        before: Values = {}

        def looked() -> Values:
            nonlocal before
            now = scraped(url)
            agree(before, now)
            before = now
            return now

        run.advance(lambda: value(looked(), "restarts_total") == 1)
        assert failed == [3]
        # The gate is shut: what has passed is committed, and then told; a look may come between the two.
        until(lambda: value(looked(), "rows_total", node="o", direction="out") == run.written() > 0)
        run.advance(lambda: value(looked(), "epoch") > 3)
    finally:
        report = run.finish()
        over.set()
        watcher.join()
    assert report.rows["written"] == run.written() == WRITTEN
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
