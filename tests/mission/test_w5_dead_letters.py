"""W5: dead letters are a database: they say where they come from, are asked, mended, purged, and replayed exactly once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

import dataflare
from dataflare_plugins.commands.dlq import dlq

sys.path.insert(0, str(Path(__file__).parent))
from flows import Document, flow, saved, sqlite_rows, step, told
from tests import commands

GOLDEN = Path(__file__).parent / "golden" / "letters-2026-11-27.db"
COLUMNS = {"id": "BIGINT", "amount": "VARCHAR", "kind": "VARCHAR"}
ROWS = [(1, "1.5", "a"), (2, "bad", "a"), (3, "3.5", "b"), (4, "worse", "b"), (5, "", "a")]
CLEAN = step("clean", "map", set={"cents": "(amount::DECIMAL(10,2) * 100)::BIGINT"})
LETTERS = {"on_record": "dead_letter"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def verb(*args: str, code: int = 0, text: bool = False) -> Any:
    """Run a verb of `dlq` in this process and return its document (or what it said), holding it to its exit code."""
    done = CliRunner().invoke(dlq, [*args] if text else [*args, "--json"], prog_name="dataflare dlq")
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return done.output if text else json.loads(done.stdout)


def refused(code: str, *args: str, exit: int = 3) -> Document:
    """Run a verb that is to be refused, and return the problem."""
    problem: Document = verb(*args, code=exit)["problems"][0]
    assert problem["code"] == code, problem
    assert problem["fix"], problem
    return problem


def csv(name: str, rows: list[tuple[Any, ...]] = ROWS, **more: Any) -> Document:
    """Write a CSV file and return the source that reads it."""
    lines = ["id,amount,kind", *(",".join("" if v is None else str(v) for v in row) for row in rows)]
    Path(name).write_text("\n".join(lines) + "\n")
    return {"use": "csv", "with": {"path": name, "columns": COLUMNS}, **more}


def table(name: str, *read: str, mode: str = "append", **write: Any) -> Document:
    """Return a destination that writes to a table of `o.db`."""
    return {
        "use": "sqlite",
        "with": {"path": "o.db", "table": name},
        **({"from": read[0]} if read else {}),
        "write": {"mode": mode, **write},
    }


def run(document: Document, name: str = "w.json", lane: str = "streaming") -> Any:
    """Save a workflow and run it."""
    saved(Path(), {"runtime": {"lane": lane}, "errors": LETTERS, **document}, name)
    return dataflare.run(name, check=True)


def letters(**where: str) -> list[Document]:
    args = [word for k, v in where.items() for word in (f"--{k}", v)]
    found: list[Document] = verb("show", "w.json", *args)["dead_letters"]
    return found


def states() -> dict[str, int]:
    """Return state to number of letters."""
    found: dict[str, int] = {}
    for group in verb("list", "w.json")["groups"]:
        found[group["status"]] = found.get(group["status"], 0) + group["count"]
    return found


def ask(sql: str) -> list[tuple[Any, ...]]:
    return sqlite_rows(Path("o.db"), sql)


def orders() -> Any:
    return run(flow({"s": csv("in.csv")}, CLEAN, out={"out": table("t")}))


def mended(good: str) -> None:
    """Give every open letter whose amount is text a number."""
    for one in letters():
        verb("edit", "w.json", "--id", one["id"], "--set", f"amount={good}")


# -- what a letter holds ---------------------------------------------------------------------------------


def test_a_letter_says_where_it_comes_from() -> None:
    done = orders()
    plan = verb("show", "w.json")["dead_letters"]
    assert [x["row"] for x in plan] == [{"id": 2, "amount": "bad", "kind": "a"}, {"id": 4, "amount": "worse", "kind": "b"}]
    one = plan[0]
    assert one["position"] == {"file": "in.csv", "row": 2}
    assert (one["run_id"], one["source"], one["step"], one["status"], one["attempt"], one["epoch"]) == (
        done.document["run_id"],
        "s",
        "clean",
        "open",
        1,
        1,
    )
    assert one["types"] == COLUMNS
    assert (one["plugin"], one["plugin_version"]) == ("dataflare-map", "0.1.0")
    assert one["plugin_hash"].startswith("sha256:")
    assert len(one["plan_hash"]) == len(one["file_hash"]) == 16
    before = one["file_hash"]
    run(flow({"s": csv("in.csv")}, CLEAN, step("more", "map", set={"one": "1"}), out={"out": table("t2")}))
    assert letters(run=dataflare.run("w.json").document["run_id"])[0]["file_hash"] != before


def test_a_letter_holds_the_row_of_the_source_and_the_row_of_the_step() -> None:
    steps = [step("twice", "map", set={"amount": "amount || amount", "n": "id * 2"}), step("kinds", "expect", rules={"a": "kind = 'a'"})]
    run(flow({"s": csv("in.csv")}, *steps, out={"out": table("t")}))
    one = letters(step="kinds")[0]
    assert one["row"] == {"id": 3, "amount": "3.5", "kind": "b"}
    assert one["input"] == {"id": 3, "amount": "3.53.5", "kind": "b", "n": 6}
    assert one["input_types"] == {"id": "BIGINT", "amount": "VARCHAR", "kind": "VARCHAR", "n": "BIGINT"}


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
def test_a_text_that_could_not_be_read_says_as_what(lane: str) -> None:
    source = csv("in.csv", [(1, "1", "a"), ("x", "2", "a")])  # type: ignore[list-item]
    run(flow({"s": source}, CLEAN, out={"out": {"use": "parquet", "with": {"path": "o/"}, "write": {"mode": "append"}}}), lane=lane)
    (one,) = letters()
    assert (one["raw"], one["row"], one["types"], one["step"]) == ("x,2,a", None, COLUMNS, "s")


# -- older state -----------------------------------------------------------------------------------------


def old_state() -> None:
    """Lay down what the version of 27 November 2026 left behind: three letters, which knew no state."""
    Path(".dataflare").mkdir()
    shutil.copy(GOLDEN, ".dataflare/state.db")
    steps = [step("clean", "map", set={"amount": "amount::DECIMAL(10,2)"}), step("known", "expect", rules={"home": "country <> 'us'"})]
    columns = {"id": "BIGINT", "amount": "VARCHAR", "country": "VARCHAR"}
    source = {"use": "csv", "with": {"path": "orders.csv", "columns": columns}}
    document = flow({"orders": source}, *steps, out={"out": table("orders")}, errors=LETTERS)
    saved(Path(), {**document, "name": "orders"})
    Path("orders.csv").write_text("id,amount,country\n")


def test_letters_of_an_older_version_are_migrated_and_replayed() -> None:
    old_state()
    shown = letters()
    assert [(x["id"], x["step"], x["code"], x["row"]["id"], x["status"]) for x in shown] == [
        ("1", "clean", "data.expression", 2, "open"), ("2", "clean", "data.expression", 6, "open"), ("3", "known", "data.rule-broken", 3, "open"),
    ]  # fmt: skip
    assert shown[0]["types"] == {"id": "BIGINT", "amount": "VARCHAR", "country": "VARCHAR"}, "as the plan of its run knew them"
    assert [g["count"] for g in verb("list", "w.json")["groups"]] == [2, 1]
    assert verb("query", "w.json", "SELECT count(*) FROM dead_letters WHERE step = 'known'")["rows"] == [[1]]
    problem = refused("dlq.not-from-here", "replay", "w.json", "--id", "3", "--from", "known")
    assert "older version" in problem["message"]
    verb("edit", "w.json", "--id", "1", "--set", "amount=12.50")
    done = verb("replay", "w.json")
    assert (done["replayed"], done["refused"]) == (1, 2)
    assert ask("SELECT id, amount, country FROM orders") == [(2, 12.5, "fr")]
    assert verb("purge", "w.json", "--replayed")["purged"] == 3


def test_state_of_a_newer_version_is_refused() -> None:
    old_state()
    letters()
    db = sqlite3.connect(".dataflare/state.db")
    assert db.execute("SELECT value FROM entries WHERE scope='state' AND key='format'").fetchall() == [(b"2",)]
    db.execute("UPDATE entries SET value=? WHERE scope='state'", (b"3",))
    db.commit()
    db.close()
    refused("state.newer-format", "list", "w.json", exit=4)


# -- looking ---------------------------------------------------------------------------------------------


def test_a_query_gives_what_duckdb_gives_of_the_same_letters() -> None:
    orders()
    verb("edit", "w.json", "--id", "1", "--set", "amount=2")
    Path("letters.json").write_text(json.dumps(letters()))
    questions = [
        "SELECT step, code, count(*) AS n FROM dead_letters GROUP BY ALL",
        "SELECT id, (row->>'id')::BIGINT AS i, row->>'amount' AS a, edited->>'amount' AS e FROM dead_letters ORDER BY id",
        "WITH x AS (SELECT json_extract_string(position, '$.file') f, id FROM dead_letters) SELECT f, max(id) FROM x GROUP BY f",
        "SELECT id FROM dead_letters WHERE row->>'amount' = 'no such'",
    ]
    db = duckdb.connect()
    db.execute(
        "CREATE TABLE dead_letters AS SELECT * REPLACE (id::BIGINT AS id, position::JSON AS position, row::JSON AS row, edited::JSON AS edited) "
        "FROM read_json('letters.json', columns={id: 'VARCHAR', step: 'VARCHAR', code: 'VARCHAR', position: 'JSON', row: 'JSON', edited: 'JSON'})"
    )
    for sql in questions:
        assert [tuple(r) for r in verb("query", "w.json", sql)["rows"]] == db.execute(sql).fetchall(), sql


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM dead_letters",
        "SELECT 1; SELECT 2",
        "SELECT * FROM read_csv('in.csv')",
        "SELECT * FROM 'in.csv'",
        "SELECT * FROM other",
        "SELECT getenv('HOME')",
        "COPY dead_letters TO 'x.csv'",
        "SELECT nope FROM dead_letters",
    ],
)
def test_a_query_reaches_nothing_else(sql: str) -> None:
    orders()
    before = sorted(p.name for p in Path().iterdir())
    problem = verb("query", "w.json", sql, code=3)["problems"][0]
    assert problem["code"].startswith("expression."), problem
    assert sorted(p.name for p in Path().iterdir()) == before
    assert len(letters()) == 2


def test_letters_come_page_by_page() -> None:
    rows = [(i, "bad", "a") for i in range(2500)]
    run(flow({"s": csv("in.csv", rows)}, CLEAN, out={"out": table("t")}))
    listed = verb("list", "w.json")
    assert (listed["total"], len(listed["dead_letters"])) == (2500, 100)
    first = verb("show", "w.json", "--limit", "7")["dead_letters"]
    second = verb("show", "w.json", "--limit", "7", "--after", first[-1]["id"])["dead_letters"]
    assert [x["row"]["id"] for x in first + second] == list(range(14))
    assert [x["row"]["id"] for x in letters()] == list(range(2500))
    assert verb("query", "w.json", "SELECT count(DISTINCT row->>'id'), min(id), max(id) FROM dead_letters")["rows"] == [[2500, 1, 2500]]
    some = [x for i in range(1, 2400, 2) for x in ("--id", str(i))]
    assert verb("purge", "w.json", *some)["purged"] == 1200
    assert states() == {"open": 1300, "purged": 1200}


# -- mending ---------------------------------------------------------------------------------------------


def test_an_edited_row_stands_beside_the_original_one() -> None:
    orders()
    assert verb("edit", "w.json", "--id", "1", "--set", "amount=7.25", "--set", "kind=null")["edited"] == {
        "id": 2,
        "amount": "7.25",
        "kind": None,
    }
    verb("edit", "w.json", "--id", "1", "--set", "id=20")
    one = letters(id="1")[0]
    assert one["row"] == {"id": 2, "amount": "bad", "kind": "a"}
    assert one["edited"] == {"id": 20, "amount": "7.25", "kind": None}, "an edit goes on from the one before"
    assert (
        refused("dlq.bad-value", "edit", "w.json", "--id", "1", "--set", "id=x", exit=1)["message"]
        == "dead letter 1: \"x\" in 'id' is no BIGINT"
    )
    refused("dlq.bad-row", "edit", "w.json", "--id", "1", "--set", "nope=1", exit=2)
    refused("dlq.bad-row", "edit", "w.json", "--id", "1", "--row", '{"id": 1}', exit=2)
    refused("dlq.bad-row", "edit", "w.json", "--id", "1", "--row", "[1]", exit=2)
    refused("dlq.no-letter", "edit", "w.json", "--id", "99", "--set", "id=1", exit=2)
    verb("edit", "w.json", "--id", "1", "--undo")
    assert letters(id="1")[0]["edited"] is None


def test_an_editor_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    orders()
    monkeypatch.setattr(click, "edit", lambda text, **_: text.replace('"bad"', '"9.99"'))
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
    from dataflare_plugins.commands.editing import edited, in_an_editor
    from dataflare_sdk import DeadLetter

    letter = DeadLetter(
        "r", "clean", "c", "w", row={"id": 2, "amount": "bad", "kind": "a"}, source="s", id="1", types=tuple(COLUMNS.items())
    )
    assert edited(letter, (), in_an_editor(letter)) == {"id": 2, "amount": "9.99", "kind": "a"}


# -- purging ---------------------------------------------------------------------------------------------


def test_what_is_purged_is_gone_and_was_there() -> None:
    orders()
    assert verb("purge", "w.json", code=2, text=True)
    assert verb("purge", "w.json", "--before", "2020-01-01")["purged"] == 0
    assert verb("purge", "w.json", "--before", "1d")["purged"] == 0
    assert verb("purge", "w.json", "--id", "1")["purged"] == 1
    gone = letters(status="purged")[0]
    assert (gone["row"], gone["raw"], gone["cause"], gone["edited"], gone["step"]) == (None, None, "", None, "clean")
    assert b"bad" not in b"".join(json.dumps(x).encode() for x in letters(status="all"))
    refused("dlq.no-letter", "edit", "w.json", "--id", "1", "--set", "id=1", exit=2)
    assert verb("purge", "w.json", "--all")["purged"] == 1
    assert verb("replay", "w.json")["letters"] == 0


# -- replaying -------------------------------------------------------------------------------------------


def test_a_replayed_row_arrives_once_as_if_it_had_been_right() -> None:
    orders()
    mended("4.25")
    assert verb("replay", "w.json", "--dry-run")["letters"] == 2
    assert states() == {"open": 2}
    done = verb("replay", "w.json")
    assert (done["status"], done["replayed"], done["refused"]) == ("done", 2, 0)
    db = duckdb.connect()
    wanted = db.execute(
        "SELECT id, amount, kind, (amount::DECIMAL(10,2) * 100)::BIGINT FROM (SELECT id, CASE WHEN id IN (2, 4) THEN '4.25' ELSE amount END AS amount, "
        f"kind FROM read_csv('in.csv', types={COLUMNS})) ORDER BY id"
    ).fetchall()
    assert ask("SELECT id, amount, kind, cents FROM t ORDER BY id") == wanted
    assert verb("replay", "w.json")["letters"] == 0, "at most once"
    assert states() == {"replayed": 2}
    assert ask("SELECT count(*) FROM t") == [(5,)]


def test_what_is_refused_again_is_a_letter_again() -> None:
    orders()
    verb("edit", "w.json", "--id", "1", "--set", "amount=still bad")
    done = verb("replay", "w.json", "--strict", code=5)
    assert (done["replayed"], done["refused"]) == (0, 2)
    verb("replay", "w.json")
    again = [x for x in letters() if x["first"] == "1"]
    assert [(x["attempt"], x["row"], x["position"]) for x in again] == [
        (3, {"id": 2, "amount": "still bad", "kind": "a"}, {"file": "in.csv", "row": 2})
    ]
    assert states() == {"refused": 4, "open": 2}
    mended("1")
    assert verb("replay", "w.json")["replayed"] == 2
    assert ask("SELECT count(*), count(DISTINCT id) FROM t") == [(5, 5)]


def test_a_row_goes_only_where_it_has_not_been() -> None:
    """`raw` and `all` had the row; of `split` the mended row may take the other way; a diamond does not bring it twice."""
    steps = [
        step("split", "filter", "s", where="kind = 'a'"),
        step("na", "map", "split", set={"n": "amount::DOUBLE"}),
        step("nb", "map", "split.else", set={"n": "amount::DOUBLE * 100"}),
        step("side", "map", "s", set={"n": "0.0::DOUBLE"}),
    ]
    out = {"raw": table("raw", "s"), "a": table("a", "na"), "b": table("b", "nb"), "both": {**table("both"), "from": ["na", "side"]}}
    run(flow({"s": csv("in.csv")}, *steps, out=out))
    by_row = {x["row"]["id"]: x["id"] for x in letters()}
    verb("edit", "w.json", "--id", by_row[2], "--set", "amount=2", "--set", "kind=b")
    verb("edit", "w.json", "--id", by_row[4], "--set", "amount=4", "--set", "kind=a")
    done = verb("replay", "w.json")
    assert (done["replayed"], len(done["replays"])) == (2, 2)
    assert ask("SELECT id FROM raw ORDER BY id") == [(i,) for i in range(1, 6)]
    assert ask("SELECT id, n FROM a ORDER BY id") == [(1, 1.5), (4, 4.0), (5, None)]
    assert ask("SELECT id, n FROM b ORDER BY id") == [(2, 200.0), (3, 350.0)]
    assert ask("SELECT id, n FROM both WHERE n IS NULL OR n > 0 ORDER BY id") == [(1, 1.5), (4, 4.0), (5, None)]
    assert ask("SELECT count(*) FROM both WHERE n = 0") == [(5,)]


def test_a_file_of_several_branches_keeps_its_columns() -> None:
    steps = [step("side", "map", "s", set={"extra": "7"}), step("n", "map", "s", set={"n": "amount::DOUBLE"})]
    out = {"use": "csv", "with": {"path": "o.csv"}, "write": {"mode": "append"}, "from": ["side", "n"]}
    run(flow({"s": csv("in.csv")}, *steps, out={"out": out}))
    mended("4.25")
    assert verb("replay", "w.json")["replayed"] == 2
    found = duckdb.sql("SELECT id, extra, n FROM read_csv('o.csv') WHERE extra IS NULL ORDER BY id").fetchall()
    assert found == [(1, None, 1.5), (2, None, 4.25), (3, None, 3.5), (4, None, 4.25), (5, None, None)]


def test_a_replay_may_begin_at_a_step() -> None:
    steps = [
        step("twice", "map", set={"amount": "amount || '1'"}),
        step("kinds", "expect", rules={"a": "kind = 'a'"}),
        step("last", "map", set={"z": "9"}),
    ]
    run(flow({"s": csv("in.csv")}, *steps, out={"out": table("t")}))
    (three, four) = letters()
    assert refused("dlq.unknown-step", "replay", "w.json", "--from", "nowhere")
    assert refused("dlq.unknown-step", "replay", "w.json", "--from", "s")
    assert verb("replay", "w.json", "--id", three["id"], "--from", "kinds")["refused"] == 1
    (again,) = [x for x in letters() if x["first"] == three["id"]]
    assert (again["row"]["amount"], again["input"]["amount"], again["attempt"]) == ("3.5", "3.51", 2), "`twice` was not done twice"
    assert verb("replay", "w.json", "--from", "last")["replayed"] == 2, "past the step that refuses them"
    assert ask("SELECT id, amount, z FROM t WHERE kind = 'b' ORDER BY id") == [(3, "3.51", 9), (4, "worse1", 9)]
    assert four["id"]


def test_what_a_destination_refused() -> None:
    good = csv("in.csv", [(1, "1", "a"), (None, "2", "a"), (3, "3", "a")])
    run(flow({"s": good}, CLEAN, out={"out": table("t", mode="upsert", key=["id"]), "other": table("u", "clean")}))
    (one,) = letters()
    assert (one["step"], one["input"]["cents"]) == ("out", 200)
    verb("edit", "w.json", "--id", one["id"], "--set", "id=2")
    refused("dlq.not-from-here", "replay", "w.json", "--from", "out")
    done = verb("replay", "w.json", "--where", "code LIKE 'data.%' AND row->>'amount' = '2'")
    assert "pos_column" in done["replays"][0]["notes"][0]
    assert ask("SELECT id, cents FROM t ORDER BY id") == [(1, 100), (2, 200), (3, 300)]
    assert ask("SELECT count(*) FROM u") == [(3,)], "it had the row"


def test_a_text_that_could_not_be_read_needs_a_row() -> None:
    source = csv("in.csv", [(1, "1", "a"), ("x", "2", "a")])  # type: ignore[list-item]
    run(flow({"s": source}, CLEAN, out={"out": table("t")}))
    refused("dlq.no-column", "replay", "w.json")
    refused("dlq.not-from-here", "replay", "w.json", "--from", "clean")
    refused("dlq.bad-row", "edit", "w.json", "--id", "1", "--set", "id=2", exit=2)
    verb("edit", "w.json", "--id", "1", "--row", '{"id": 2, "amount": "2", "kind": "a"}')
    assert verb("replay", "w.json")["replayed"] == 1
    assert ask("SELECT id, cents FROM t ORDER BY id") == [(1, 100), (2, 200)]


def test_rows_that_answer_together_are_not_replayed_alone() -> None:
    steps = [CLEAN, step("sums", "aggregate", by=["kind"], select={"n": "sum(cents)"}), step("big", "expect", rules={"big": "n > 200"})]
    run(flow({"s": csv("in.csv")}, *steps, out={"out": table("t")}))
    problem = refused("dlq.gathers-rows", "replay", "w.json", "--step", "clean")
    assert "'sums'" in problem["message"]
    assert "big" in problem["fix"]
    (one,) = letters(step="big")
    assert (one["source"], one["row"]) == (None, {"kind": "a", "n": "150"})
    refused("dlq.not-from-here", "replay", "w.json", "--step", "big", "--from", "source")
    verb("edit", "w.json", "--id", one["id"], "--set", "n=201")
    assert verb("replay", "w.json", "--step", "big")["replayed"] == 1, "from the step by itself: it is no row of a source"
    assert sorted(ask("SELECT kind, n FROM t")) == [("a", "201"), ("b", "350")]


def test_a_python_step_is_given_the_replayed_rows_alone() -> None:
    Path("f.py").write_text("def f(batch):\n    return batch\n")
    steps = [step("py", "python", file="f.py", function="f"), step("late", "map", set={"n": "amount::DOUBLE"})]
    run(flow({"s": csv("in.csv")}, step("early", "expect", rules={"a": "kind = 'a'"}), *steps, out={"out": table("t")}))
    document = json.loads(Path("w.json").read_text())
    document["processors"][0]["with"]["rules"] = {"any": "true"}
    Path("w.json").write_text(json.dumps(document))
    done = verb("replay", "w.json", "--step", "early")
    assert (done["replayed"], done["refused"]) == (1, 1)
    mended("4")
    assert "--from late" in refused("dlq.repeats-rows", "replay", "w.json")["fix"], "a function may make several rows of one"
    assert verb("replay", "w.json", "--from", "late")["replayed"] == 2
    assert ask("SELECT id, n FROM t ORDER BY id") == [(1, 1.5), (2, 4.0), (3, 3.5), (4, 4.0), (5, None)]


def test_several_rows_of_one_are_not_delivered_again() -> None:
    Path("in.jsonl").write_text('{"id": 1, "v": ["1", "x", "3"]}\n')
    steps = [step("one", "unnest", column="v"), step("n", "map", set={"v": "v::BIGINT"})]
    source = {"use": "jsonl", "with": {"path": "in.jsonl", "columns": {"id": "BIGINT", "v": "VARCHAR[]"}}}
    run(flow({"s": source}, *steps, out={"out": table("t")}))
    assert "--from n" in refused("dlq.repeats-rows", "replay", "w.json")["fix"]
    assert verb("replay", "w.json", "--from", "n")["refused"] == 1
    refused("dlq.repeats-rows", "replay", "w.json")


def test_a_row_that_came_twice_is_not_delivered_twice_as_often() -> None:
    steps = [step("a", "map", "s", set={"w": "1"}), step("b", "map", "s", set={"w": "2"}), {**CLEAN, "from": ["a", "b"]}]
    run(flow({"s": csv("in.csv")}, *steps, out={"out": table("t")}))
    assert "'s'" in refused("dlq.repeats-rows", "replay", "w.json")["message"]
    document = json.loads(Path("w.json").read_text())
    document["processors"][2]["with"]["set"]["cents"] = "coalesce(TRY_CAST(amount AS DOUBLE), 0)"
    Path("w.json").write_text(json.dumps(document))
    assert verb("replay", "w.json", "--from", "clean")["replayed"] == 4
    assert ask("SELECT id, w FROM t ORDER BY id, w") == [(i, w) for i in range(1, 6) for w in (1, 2)]


def test_an_overwritten_destination_is_refused() -> None:
    run(flow({"s": csv("in.csv")}, CLEAN, out={"out": {"use": "csv", "with": {"path": "o.csv"}}}))
    refused("dlq.overwrites", "replay", "w.json")
    assert states() == {"open": 2}


def masking(columns: Document) -> Document:
    """Return a workflow that refuses rows of kind b and masks columns behind that."""
    steps = [step("kinds", "expect", rules={"a": "kind = 'a'"}), step("hide", "mask", columns=columns)]
    return flow({"s": csv("in.csv")}, *steps, out={"out": table("t")})


def test_masked_columns_are_not_there() -> None:
    run(masking({"amount": "hash"}))
    assert [x["row"]["amount"] for x in letters()] == ["***", "***"]
    document = json.loads(Path("w.json").read_text())
    document["processors"][0]["with"]["rules"] = {"any": "kind <> 'c'"}
    Path("w.json").write_text(json.dumps(document))
    assert "--reread" in refused("dlq.masked", "replay", "w.json")["fix"]
    text = Path("in.csv").read_text()
    Path("in.csv").write_text(text.replace("3.5", "9.99"))
    assert verb("replay", "w.json", "--reread", code=4)["status"] == "failed", "the file is not what it was"
    assert states() == {"open": 2}


def test_another_row_in_the_place_of_a_letters_is_refused() -> None:
    run(masking({"amount": "hash"}))
    db = sqlite3.connect(".dataflare/state.db")
    db.execute("""UPDATE letters SET body = replace(body, '"kind":"b"', '"kind":"c"')""")
    db.commit()
    db.close()
    failed = verb("replay", "w.json", "--reread", code=4)
    assert (failed["error"]["code"], "'kind'" in failed["error"]["message"]) == ("dlq.not-read-again", True)
    assert states() == {"open": 2}


def test_masked_columns_are_read_again_from_an_unchanged_file() -> None:
    run(masking({"amount": "hash"}))
    document = json.loads(Path("w.json").read_text())
    document["processors"][0]["with"]["rules"] = {"any": "id <> 4"}
    Path("w.json").write_text(json.dumps(document))
    done = verb("replay", "w.json", "--reread")
    assert (done["replayed"], done["refused"]) == (1, 1)
    import hashlib

    assert ask("SELECT amount FROM t WHERE id = 3") == [(hashlib.sha256(b"3.5").hexdigest(),)]
    (again,) = letters()
    assert (again["row"], again["attempt"], again["masked"]) == ({"id": 4, "amount": "***", "kind": "b"}, 2, ["amount"])
    assert b"worse" not in Path(".dataflare/state.db").read_bytes()
    assert verb("replay", "w.json", "--reread")["refused"] == 1, "of a letter of a replay too"
    verb("edit", "w.json", "--id", letters()[0]["id"], "--set", "id=40", "--set", "amount=4")
    assert letters()[0]["edited"]["amount"] == "***"
    assert verb("replay", "w.json")["replayed"] == 1
    assert ask("SELECT amount FROM t WHERE id = 40") == [(hashlib.sha256(b"4").hexdigest(),)]


def test_a_workflow_that_changed_since() -> None:
    run(flow({"s": csv("in.csv")}, step("clean", "map", select=["id", "amount"], set={"cents": "amount::DOUBLE"}), out={"out": table("t")}))
    saved(Path(), {**flow({"s": csv("in.csv")}, CLEAN, out={"out": table("t")}), "errors": LETTERS})
    assert "kind" not in letters()[0]["row"]
    assert "'kind'" in refused("dlq.no-column", "replay", "w.json")["message"], "it would be NULL"
    document = flow({"s": csv("in.csv")}, step("other", "map", set={"cents": "amount::DOUBLE"}), out={"out": table("t")}, errors=LETTERS)
    saved(Path(), document)
    assert "clean" in refused("dlq.unknown-step", "replay", "w.json")["message"]


def changing(**write: Any) -> None:
    """Follow a table whose changes a step refuses at first; then let it take them."""
    db = sqlite3.connect("in.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, at INTEGER)")
    db.execute("INSERT INTO t VALUES (1, '1', 1), (2, 'x', 1)")
    db.commit()
    source = {"use": "sqlite", "with": {"path": "in.db", "table": "t"}, "extract": {"mode": "cdc"}}
    document = flow({"s": source}, step("n", "map", set={"v": "v::BIGINT"}), out={"out": table("o", **write)}, errors=LETTERS)
    saved(Path(), document)
    told(Path(), "run", "w.json", "--once")
    db.execute("UPDATE t SET v = 'y', at = 2 WHERE id = 1")
    db.execute("UPDATE t SET v = '2', at = 2 WHERE id = 2")
    db.commit()
    told(Path(), "run", "w.json", "--once")
    db.close()
    document["processors"][0]["with"]["set"]["v"] = "coalesce(TRY_CAST(v AS BIGINT), -1)"
    saved(Path(), document)


def test_a_change_is_appended_as_one() -> None:
    changing(mode="append")
    assert [(x["change"]["op"], x["row"]["v"]) for x in letters()] == [("r", "x"), ("u", "y")]
    assert verb("replay", "w.json")["replayed"] == 2
    late = ask("SELECT id, v, at, _op, _pos FROM o WHERE v = -1 ORDER BY at")
    assert [row[:4] for row in late] == [(2, -1, 1, "r"), (1, -1, 2, "u")]
    newest = "SELECT id, v FROM (SELECT *, row_number() OVER (PARTITION BY id ORDER BY _pos DESC) AS n FROM o) WHERE n = 1 ORDER BY id"
    assert ask(newest) == [(1, -1), (2, 2)], "folded by key, each change has its place"


def test_a_change_that_finds_no_place_is_refused() -> None:
    changing(mode="upsert", key=["id"])
    assert "pos_column" in refused("dlq.change", "replay", "w.json")["fix"]
    assert states() == {"open": 2}


def test_a_change_finds_its_place_by_a_column() -> None:
    changing(mode="upsert", pos_column="at", deletes="ignore")
    assert ask("SELECT id, v, at FROM o ORDER BY id") == [(1, 1, 1), (2, 2, 2)]
    assert verb("replay", "w.json")["replayed"] == 2
    assert ask("SELECT id, v, at FROM o ORDER BY id") == [(1, -1, 2), (2, 2, 2)], "the older one came too late"


# -- beside runs -----------------------------------------------------------------------------------------


def growing() -> Document:
    db = sqlite3.connect("in.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(1, "1"), (2, "x"), (3, "3")])
    db.commit()
    db.close()
    source = {"use": "sqlite", "with": {"path": "in.db", "table": "t"}, "extract": {"mode": "incremental", "cursor": "id"}}
    return flow({"s": source}, step("n", "map", set={"v": "v::BIGINT"}), out={"out": table("o")})


def add(*rows: tuple[int, str]) -> None:
    db = sqlite3.connect("in.db")
    db.executemany("INSERT INTO t VALUES (?, ?)", rows)
    db.commit()
    db.close()


def test_offsets_of_the_sources_stay_as_they_are() -> None:
    run(growing())
    before = told(Path(), "state", "show", "w.json")["streams"]["s"]["offset"]
    verb("edit", "w.json", "--id", "1", "--set", "v=2")
    assert verb("replay", "w.json")["replayed"] == 1
    assert told(Path(), "state", "show", "w.json")["streams"]["s"]["offset"] == before
    add((4, "4"), (5, "y"))
    dataflare.run("w.json", check=True)
    assert ask("SELECT id FROM o ORDER BY id") == [(1,), (2,), (3,), (4,)]
    verb("replay", "w.json")
    verb("edit", "w.json", "--id", letters()[0]["id"], "--set", "v=5")
    verb("replay", "w.json")
    add((6, "6"))
    told(Path(), "state", "set", "w.json", "--stream", "s", "--offset", json.dumps({**before}))
    assert verb("replay", "w.json")["letters"] == 0
    dataflare.run("w.json", check=True)
    assert ask("SELECT id FROM o ORDER BY id") == [(1,), (2,), (3,), (4,), (4,), (5,), (6,)], "it began where it was told to"


def test_what_a_window_has_gathered_outlives_a_replay() -> None:
    """A windowed step goes on, in the run after the replay, with what it kept when its source paused."""
    db = sqlite3.connect("in.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, at TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, "x" if i == 2 else str(i), f"2026-01-01 00:0{i}:00") for i in range(1, 5)])
    db.commit()
    source = {"use": "sqlite", "with": {"path": "in.db", "table": "t"}, "extract": {"mode": "incremental", "cursor": "id"}}
    steps = [
        step("n", "map", "s", set={"v": "v::BIGINT"}),
        step("when", "map", "s", set={"at": 'CAST("at" AS TIMESTAMP)'}),
        step("ten", "aggregate", "when", by=[], select={"n": "count(*)"}, window={"tumbling": "10m", "on": "at"}),
    ]
    run(flow({"s": source}, *steps, out={"rows": table("o", "n"), "counts": table("c", "ten")}))
    assert ask("SELECT count(*) FROM c") == [(0,)], "the window is open"
    verb("edit", "w.json", "--id", "1", "--set", "v=2")
    assert verb("replay", "w.json")["replayed"] == 1
    db.executemany("INSERT INTO t VALUES (?, '9', ?)", [(i, f"2026-01-01 00:{i + 4}:00") for i in (5, 6, 7)])
    db.commit()
    db.close()
    dataflare.run("w.json", check=True)
    assert ask("SELECT n FROM c") == [(5,)], "the four rows before the replay are in it"
    assert ask("SELECT id FROM o ORDER BY id") == [(i,) for i in range(1, 8)]


def test_an_offset_that_a_person_set_outlives_a_replay() -> None:
    run(growing())
    told(Path(), "state", "reset", "w.json", "--stream", "s", "--yes")
    verb("edit", "w.json", "--id", "1", "--set", "v=2")
    verb("replay", "w.json")
    dataflare.run("w.json", check=True)
    assert ask("SELECT id FROM o ORDER BY id") == [(1,), (1,), (2,), (3,), (3,)]


def killed(*args: str, at: str, cwd: Path | None = None, **env: str) -> int:
    """Run a verb that is killed at a failpoint; returns the exit code."""
    command = [sys.executable, "-m", "dataflare", *args, "--json"]
    return commands.run(
        command, capture_output=True, check=False, timeout=60, cwd=cwd, env={**os.environ, "DATAFLARE_FAILPOINT": at, **env}
    ).returncode


def test_a_run_that_is_not_finished_goes_first() -> None:
    orders()
    assert killed("run", "w.json", at="job.epoch.logged:1") == -signal.SIGKILL
    problem = refused("dlq.unfinished-run", "replay", "w.json")
    assert "dataflare run" in problem["fix"]
    dataflare.run("w.json", check=True)
    assert verb("replay", "w.json", "--id", "1")["letters"] == 1


def test_a_replay_that_is_not_finished_goes_first() -> None:
    orders()
    mended("1")
    assert killed("dlq", "replay", "w.json", at="job.epoch.logged:1") == -signal.SIGKILL
    failed = dataflare.run("w.json")
    assert failed.error is not None
    assert (failed.error["code"], "dlq replay" in failed.error["message"]) == ("state.plan-changed", True)
    refused("dlq.not-committed", "replay", "w.json", "--abandon", exit=4)
    assert verb("purge", "w.json", "--all")["purged"] == 0, "it is read again"
    done = verb("replay", "w.json")
    assert [(r["resumed"], r["replayed"]) for r in done["replays"]] == [(True, 2)]
    assert ask("SELECT count(*), count(DISTINCT id) FROM t") == [(5, 5)]
    dataflare.run("w.json", check=True)


def test_a_claim_that_died_is_taken_back() -> None:
    orders()
    mended("1")
    assert killed("dlq", "replay", "w.json", at="task.source.batch:1") == -signal.SIGKILL
    assert states() == {"replaying": 2}
    refused("dlq.no-letter", "edit", "w.json", "--id", "1", "--set", "id=1", exit=2)
    assert verb("replay", "w.json", "--abandon")["released"] == 2
    assert states() == {"open": 2}
    assert killed("dlq", "replay", "w.json", at="task.source.batch:1") == -signal.SIGKILL
    assert verb("replay", "w.json")["replayed"] == 2


def test_what_is_refused_again_stays_a_letter_under_any_policy() -> None:
    orders()
    document = json.loads(Path("w.json").read_text())
    Path("w.json").write_text(json.dumps({**document, "errors": {"on_record": "fail"}}))
    verb("edit", "w.json", "--id", "2", "--set", "amount=4")
    done = verb("replay", "w.json")
    assert (done["status"], done["replayed"], done["refused"]) == ("done", 1, 1)
    assert ask("SELECT count(*) FROM t") == [(4,)]


def test_an_unfinished_replay_can_be_given_up() -> None:
    many()
    assert killed("dlq", "replay", "w.json", at="job.epoch.done:1") == -signal.SIGKILL
    before = ask("SELECT count(*) FROM t")[0][0]
    verb("replay", "w.json", "--abandon")
    found = {"open": 0, **states()}  # how much an epoch holds is a matter of time
    assert found["replayed"] + MANY - len(SEEDED) == before
    assert found["open"] + found["replayed"] == len(SEEDED)
    assert verb("replay", "w.json")["replayed"] == found["open"]
    assert ask("SELECT count(*), count(DISTINCT id) FROM t") == [(MANY, MANY)]


def test_reset_opens_what_was_under_way() -> None:
    many()
    assert killed("dlq", "replay", "w.json", at="job.epoch.done:1") == -signal.SIGKILL
    told(Path(), "state", "reset", "w.json", "--yes")
    found = states()
    assert found.get("open", 0) + found["replayed"] == len(SEEDED)
    verb("replay", "w.json")
    assert ask("SELECT count(*), count(DISTINCT id) FROM t") == [(MANY, MANY)]


# -- kill -9 ---------------------------------------------------------------------------------------------

MANY = 104
SEEDED = [i for i in range(MANY) if i % 13 not in (0, 5)]
"""Rows that are refused at first; those with i % 13 = 7 are refused again by a replay."""


def many(*, again: bool = False) -> None:
    """Run a workflow that refuses most rows, and let its rule go then: what waits is right now."""
    rows = [(i, f"{i}.5", "bad" if i in SEEDED else "good") for i in range(MANY)]
    steps = [CLEAN, step("known", "expect", rules={"good": "kind = 'good'"})]
    state = {"checkpoint": {"every": "1h", "rows": 8}}
    out = {"out": table("t"), "files": {"use": "jsonl", "from": "known", "with": {"path": "o.jsonl"}, "write": {"mode": "append"}}}
    document = flow({"s": csv("in.csv", rows)}, *steps, out=out, state=state)
    run({**document, "runtime": {"lane": "streaming", "batch": {"rows": 8}}})
    document["processors"][1]["with"]["rules"] = {"good": "id % 13 <> 7"} if again else {"good": "true"}
    saved(Path(), {**document, "errors": LETTERS, "runtime": {"lane": "streaming", "batch": {"rows": 8}}})


def passed() -> list[str]:
    """Return every failpoint that a replay into SQLite and a file can pass."""
    import dataflare_plugins.engine.running.executor
    import dataflare_plugins.files.destination
    import dataflare_plugins.sqlite.destination
    import dataflare_plugins.state_sqlite.store  # noqa: F401
    from dataflare_sdk.failpoints import NAMES

    return sorted(n for n in NAMES if n.startswith(("task.source.", "task.sink.", "job.", "state.", "sqlite.", "files.")))


def test_killed_at_every_failpoint_each_row_arrives_once(tmp_path: Path) -> None:
    many(again=True)
    start = tmp_path / "start"
    shutil.copytree(tmp_path, start, ignore=shutil.ignore_patterns("start"))
    hits: dict[str, int] = {}
    trials = [(name, 1 + n % 3, tmp_path / f"trial{n}") for n, name in enumerate(passed())]
    for _, _, place in trials:
        shutil.copytree(start, place)
    with ThreadPoolExecutor(3) as pool:
        ends = list(
            pool.map(
                lambda t: killed("dlq", "replay", "w.json", at=f"{t[0]}:{t[1]}", cwd=t[2], DATAFLARE_FAILPOINT_HITS=str(t[2] / "hits")),
                trials,
            )
        )
    for (name, nth, place), died in zip(trials, ends, strict=True):
        os.chdir(place)
        hits[name] = (place / "hits").read_text().split().count(name)
        assert died in (-signal.SIGKILL, 0), name
        assert (died == 0) == (hits[name] < nth), name
        verb("replay", "w.json") if died else None
        wanted = [(i,) for i in range(MANY) if i not in SEEDED or i % 13 != 7]
        assert ask("SELECT id FROM t ORDER BY id") == wanted, f"killed at {name}:{nth}"
        found = sorted(json.loads(line)["id"] for line in Path("o.jsonl").read_text().splitlines())
        assert found == [i for (i,) in wanted], f"killed at {name}:{nth}"
        waiting = [x for x in letters() if x["attempt"] > 1]
        again = sorted(x["row"]["id"] for x in letters())
        assert again == [i for i in SEEDED if i % 13 == 7], f"killed at {name}:{nth}"
        assert waiting
    assert not [n for n, count in hits.items() if count == 0], f"never passed: {hits}"
