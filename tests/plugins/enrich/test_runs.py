"""P5 in whole runs: what is chosen and why, lanes, exit codes, dead letters, secrets."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import psycopg
import pytest
from tests.mission.flows import cli, flow, json_rows, saved, step, told
from tests.plugins.enrich.test_http import Shop

import dataflare
from dataflare.lifecycle import Runtime
from dataflare_sdk import CODES

PEOPLE = [(1, "one"), (2, "two"), (3, None)]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "in.csv").write_text("i,k\n0,1\n1,2\n2,9\n3,\n4,1\n")
    (tmp_path / "people.csv").write_text("id,name\n1,one\n2,two\n3,\n")
    with sqlite3.connect(tmp_path / "people.db") as db:
        db.execute("CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO people VALUES (?, ?)", PEOPLE)
    return tmp_path


SQLITE = {"use": "sqlite", "with": {"path": "people.db", "table": "people"}}
CSV = {"use": "csv", "with": {"path": "people.csv"}}
WANTED = [(0, 1, "one"), (1, 2, "two"), (2, 9, None), (3, None, None), (4, 1, "one")]


def workflow(lookup, **config):
    config = {"on": {"k": "id"}, "select": {"name": "name"}, **config}
    return flow({"in": {"use": "csv", "with": {"path": "in.csv"}}}, step("who", "enrich", lookup=lookup, **config))


def rows(folder: Path) -> list[tuple]:
    return sorted((tuple(r.values()) for r in json_rows(folder / "o.jsonl")), key=repr)


@pytest.mark.parametrize(
    ("lookup", "config", "lane", "note"),
    [
        (CSV, {}, "bulk", "'csv' is read whole, because 'csv' is local"),
        (SQLITE, {}, "streaming", "'sqlite' is read whole, because 'sqlite' is local"),
        (CSV, {"cache": {"ttl": "10m"}}, "bulk", "'csv' is read whole, because 'csv' has no index to ask"),
        (CSV, {"mode": "keyed"}, "streaming", "'csv' is asked for the keys of each batch, because `mode` says so"),
        (SQLITE, {"cache": {"ttl": "10m"}}, "streaming", "'sqlite' is asked for the keys of each batch, because it has a `cache`, answers are kept"),
        (SQLITE, {"mode": "table", "cache": {}}, "streaming", "'sqlite' is read whole, because `mode` says so"),
        (CSV, {"refresh": "10m"}, "streaming", "it is read again every 600 s"),
    ],
)  # fmt: skip
def test_the_plan_says_how_and_why_and_every_way_gives_the_same(folder, lookup, config, lane, note) -> None:
    file = saved(folder, workflow(lookup, **config))
    with Runtime(folder) as runtime:
        plan = runtime.validate(runtime.parse(file), offline=False).plan
    assert plan is not None
    assert {t.lane for t in plan.tasks} == {lane}
    assert any(note in n for n in plan.notes), plan.notes
    assert any("not deterministic" in n for n in plan.notes) == ("asked" in note or "refresh" in config)
    assert dataflare.run(file).status == "done"
    assert rows(folder) == sorted(WANTED, key=repr)


def test_validate_asks_no_server(folder) -> None:
    """Nobody listens at the address: only a note says that the columns are not known."""
    server = {"use": "postgres", "with": {"url": "postgresql://nobody@127.0.0.1:9/none", "table": "people"}}
    saved(folder, workflow(server))
    found = told(folder, "validate", "w.json")
    assert found["valid"]
    assert [(p["code"], p["severity"], p["path"]) for p in found["problems"]] == [
        ("workflow.unknown-schema", "note", "processors[0].with.lookup")
    ]
    assert told(folder, "validate", "w.json", "--strict", code=3)["problems"][0]["severity"] == "error"
    server["with"]["columns"] = {"id": "BIGINT", "name": "VARCHAR"}
    saved(folder, workflow(server))
    assert told(folder, "validate", "w.json")["problems"] == []


def test_a_server_is_asked_and_a_dead_one_ends_the_run(folder, postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute("CREATE TABLE people (id bigint, name text)")
        for row in PEOPLE:
            db.execute("INSERT INTO people VALUES (%s, %s)", row)
    server = {"use": "postgres", "with": {"url": postgres.url, "table": "people"}}
    saved(folder, workflow(server))
    assert any("'postgres' is a server" in n for n in told(folder, "plan", "w.json")["notes"])
    assert dataflare.run(folder / "w.json").status == "done"
    assert rows(folder) == sorted(WANTED, key=repr)
    gone = {
        "use": "postgres",
        "with": {"url": "postgresql://nobody@127.0.0.1:9/none", "table": "people", "columns": {"id": "BIGINT", "name": "VARCHAR"}},
    }
    failed = told(folder, "run", str(saved(folder, workflow(gone), "gone.json").name), code=4)
    assert failed["problems"][0]["code"] == "postgres.unreachable"


@pytest.mark.parametrize("lookup", [CSV, SQLITE], ids=["table", "keyed"])
def test_misses_are_letters(folder, lookup) -> None:
    config = {"on_miss": "dead_letter", **({"cache": {}} if lookup is SQLITE else {})}
    saved(folder, workflow(lookup, **config))
    run = dataflare.run(folder / "w.json")
    assert rows(folder) == sorted((r for r in WANTED if r[2]), key=repr)
    assert run.rows["dead_lettered"] == 2
    letters = told(folder, "dlq", "show", "w.json")["dead_letters"]
    assert [(d["code"], d["row"]["i"], d["step"]) for d in letters] == [("data.lookup-miss", 2, "who"), ("data.lookup-miss", 3, "who")]


def test_rows_of_an_outage_are_letters_and_can_be_replayed(folder, monkeypatch) -> None:
    shop = Shop()
    try:
        shop.act = lambda path: (503, {}, b"") if path == "/one/2" else None
        service = {"use": "http_lookup", "with": {"url": shop.url + "/one/{key}", "columns": {"id": "BIGINT", "name": "VARCHAR"}}}
        saved(folder, workflow(service, on_outage="dead_letter", retry={"attempts": 2, "initial": "1ms"}))
        assert dataflare.run(folder / "w.json").rows["dead_lettered"] == 1
        assert rows(folder) == sorted((r for r in WANTED if r[1] != 2), key=repr)
        assert [d["code"] for d in told(folder, "dlq", "show", "w.json")["dead_letters"]] == ["data.lookup-outage"]
    finally:
        shop.close()


def test_a_secret_is_in_the_request_and_nowhere_else(folder, monkeypatch) -> None:
    canary = "canary-7f3b1c"
    shop = Shop()
    try:
        headers = {"Authorization": "Bearer ${secret:env/SHOP_KEY}"}
        service = {
            "use": "http_lookup",
            "with": {"url": shop.url + "/one/{key}", "columns": {"id": "BIGINT", "name": "VARCHAR"}, "headers": headers},
        }
        saved(folder, workflow(service))
        for verb in (["plan", "w.json", "--json"], ["run", "w.json", "--json", "-v"]):
            done = cli(folder, *verb, SHOP_KEY=canary)
            assert done.returncode == 0, done.stderr
            assert canary not in done.stdout + done.stderr
        assert shop.seen
        assert {h["Authorization"] for _, _, h, _ in shop.seen} == {f"Bearer {canary}"}
        shop.act = lambda _path: (403, {}, canary.encode())
        done = cli(folder, "run", "w.json", "--json", "-v", SHOP_KEY=canary)
        assert done.returncode == 4
        assert json.loads(done.stdout)["problems"][0]["code"] == "http_lookup.refused"
        assert canary not in done.stdout + done.stderr
        held = [p for p in folder.rglob("*") if p.is_file() and canary.encode() in p.read_bytes()]
        assert not held
    finally:
        shop.close()


def test_a_service_has_no_twin_to_prove_with(folder) -> None:
    service = {"use": "http_lookup", "with": {"url": "http://127.0.0.1:9/{key}", "columns": {"id": "BIGINT", "name": "VARCHAR"}}}
    saved(folder, workflow(service))
    assert told(folder, "prove", "w.json", code=3)["problems"][0]["code"] == "prove.no-twin"


@pytest.mark.parametrize(
    ("config", "code", "path"),
    [
        ({"lookup": {"use": "arrow", "with": {"path": "x.arrow"}}, "mode": "keyed"}, "enrich.no-such-mode", "mode"),
        ({"lookup": {"use": "http_lookup", "with": {"url": "http://x/{key}", "columns": {"id": "BIGINT"}}}, "mode": "table"}, "enrich.no-such-mode", "mode"),
        ({"lookup": {"use": "postgress"}}, "plugin.unknown", "lookup"),
        ({"on_outage": "stale"}, "config.invalid", "on_outage"),
        ({"mode": "keyed", "refresh": "1m"}, "config.invalid", "refresh"),
        ({"cache": {"rows": 0}}, "config.invalid", "cache.rows"),
        ({"lookup": {"use": "sqlite", "with": {"path": "people.db", "table": "people"}}, "on": {"i": "name"}, "mode": "keyed"}, "enrich.no-such-mode", "on.i"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(folder, config, code, path) -> None:
    config = {"lookup": CSV, **config}
    file = saved(folder, workflow(config.pop("lookup"), **config))
    with Runtime(folder) as runtime:
        problem = runtime.validate(runtime.parse(file)).problems[0]
    assert (problem.code, problem.path, CODES[problem.code].exit) == (code, f"processors[0].with.{path}", 3)
    assert problem.line
    assert problem.fix
