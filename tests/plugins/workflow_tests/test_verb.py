"""`dataflare test` from outside: what passes, what fails and how it says so, what a wrong test file gets. Whole processes where one is killed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result

from dataflare_plugins.workflow_tests.command import test as verb

FLOW = """
sources:
  orders: {use: postgres, with: {url: "${env:NOT_SET_ANYWHERE}", table: public.orders, columns: {id: BIGINT, total: "DECIMAL(10,2)", at: TIMESTAMP, who: VARCHAR}}}
processors:
  - id: paid
    use: filter
    with: {where: total > 0}
  - id: who
    use: enrich
    with: {lookup: {use: postgres, with: {url: "${env:NOT_SET_ANYWHERE}", table: people}}, on: {who: id}, select: {name: name}}
destinations:
  warehouse: {use: postgres, from: who, with: {url: "${env:NOT_SET_ANYWHERE}", table: out}, write: {mode: upsert, key: [id]}}
"""
PEOPLE = {"who": [{"id": "a", "name": "Ada"}, {"id": "b", "name": "Bob"}]}


def row(id: int, total: float = 1.0, who: str = "a") -> dict[str, Any]:
    return {"id": id, "total": total, "at": "2026-01-01 10:00:00", "who": who}


def asked(folder: Path, *tests: dict[str, Any], flow: str = FLOW, options: tuple[str, ...] = ()) -> Result:
    """Run tests of a workflow with --json."""
    (folder / "orders.yaml").write_text(flow)
    named = [{"name": f"t{i}", "mocks": PEOPLE, **t} for i, t in enumerate(tests)]
    (folder / "orders.test.yaml").write_text(yaml.safe_dump({"tests": named}, sort_keys=False))
    return CliRunner().invoke(verb, [str(folder / "orders.yaml"), "--json", *options])


def told(result: Result) -> list[dict[str, Any]]:
    document = json.loads(result.stdout)
    assert {"dataflare", "command", "passed", "failed", "tests"} <= document.keys(), document
    assert all({"name", "status", "diff"} <= t.keys() for t in document["tests"])
    return document["tests"]


def test_a_workflow_on_servers_is_tested_without_one(tmp_path: Path) -> None:
    passing = {
        "given": {"orders": [row(1), row(2, 0), row(3, 2.5, "b")]},
        "expect": {"warehouse": [{"id": 3, "name": "Bob"}, {"id": 1, "name": "Ada"}]},
    }
    result = asked(tmp_path, passing)
    assert result.exit_code == 0, result.output
    assert [t["status"] for t in told(result)] == ["passed"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["orders.test.yaml", "orders.yaml"], "a test leaves nothing behind"


@pytest.mark.parametrize(
    ("expect", "diff"),
    [
        ({"warehouse": [{"id": 1, "name": "Ada"}, {"id": 4, "name": "Dan"}]}, ["- 4   Dan", "+ 2   Bob"]),
        ({"warehouse": [{"id": 1, "total": 1.0}, {"id": 2, "total": 2.0}]}, ["~ 2   2.00 → 1.00"]),
        ({"warehouse": {"count": 3}}, ["expected 3 rows, found 2"]),
        ({"warehouse": {"contains": [{"id": 9}]}}, ["- 9"]),
        ({"paid": {"rows": [{"id": 2}, {"id": 1}], "ordered": True}}, ["~ 2 → 1", "~ 1 → 2"]),
        ({"warehouse": []}, ["+ 1", "+ 2"]),
        ({"warehouse": [{"id": 1}, {"id": 1}, {"id": 2}]}, ["- 1"]),
    ],
)  # fmt: skip
def test_a_difference_is_shown_row_by_row(tmp_path: Path, expect: dict[str, Any], diff: list[str]) -> None:
    result = asked(tmp_path, {"given": {"orders": [row(1), row(2, who="b")]}, "expect": expect})
    assert result.exit_code == 1, result.output
    [one] = told(result)
    assert one["status"] == "failed"
    lines = [re.sub(r"\s+", " ", line).strip() for line in one["diff"].splitlines()]
    for wanted in diff:
        assert any(re.sub(r"\s+", " ", wanted) in line for line in lines), one["diff"]


def test_what_may_be_expected_beside_rows(tmp_path: Path) -> None:
    strict = FLOW.replace("select: {name: name}", "select: {name: name}, on_miss: dead_letter")
    given = {"orders": [row(1), row(2, who="x"), row(3, 0)]}
    good = {
        "given": given,
        "dead_letters": [{"step": "who", "code": "data.lookup-miss", "row": {"id": 2}}],
        "counts": {"read": 3, "paid": {"filtered": 1}},
    }
    bad = {"given": given, "dead_letters": [], "counts": {"read": 4}, "late": 1}
    result = asked(tmp_path, good, bad, flow=strict + "errors: {on_record: dead_letter}\n")
    first, second = told(result)
    assert first["status"] == "passed", first
    assert all(t in second["diff"] for t in ("data.lookup-miss", "expected 4, found 3", "late: expected 1, found 0"))


def test_an_error_is_expected_by_its_code(tmp_path: Path) -> None:
    strict = FLOW.replace("select: {name: name}", "select: {name: name}, on_miss: fail")
    given = {"orders": [row(1, who="x")]}
    result = asked(
        tmp_path, {"given": given, "error": "data.lookup-miss"}, {"given": given, "error": "data.late"}, {"given": given}, flow=strict
    )
    assert [t["status"] for t in told(result)] == ["passed", "failed", "failed"]
    assert "data.lookup-miss" in told(result)[2]["diff"]


def test_values_are_cast_or_refused(tmp_path: Path) -> None:
    given = {"orders": [{"id": "7", "total": 1.25, "at": "2026-02-03", "who": "a"}]}
    exact = {"given": given, "expect": {"paid": [{"id": 7, "total": "1.25", "at": "2026-02-03 00:00:00"}]}}
    assert asked(tmp_path, exact).exit_code == 0
    for column, value in (("id", "seven"), ("id", 2.5), ("total", 1.255), ("at", "soon")):
        result = asked(tmp_path, {"given": {"orders": [{"id": 1}, {**row(1), column: value}]}})
        problem = json.loads(result.stdout)["problems"][0]
        assert (result.exit_code, problem["code"], problem["path"]) == (3, "test.not-castable", f"tests[0].given.orders[1].{column}")
        line = (tmp_path / "orders.test.yaml").read_text().splitlines()[problem["line"] - 1]
        assert line[problem["column"] - 1 :].startswith(column), (line, problem)


WRONG = {
    "an unknown key": ({"expects": {}}, "test.invalid", "expects"),
    "an unknown node": ({"given": {"order": []}}, "test.unknown-node", "order"),
    "an unknown column": ({"given": {"orders": [{"idd": 1}]}}, "test.unknown-column", "idd"),
    "a source without rows": ({}, "test.source-not-given", "- mocks"),
    "an expectation of an unknown column": ({"given": {"orders": [row(1)]}, "expect": {"warehouse": [{"nam": "x"}]}}, "test.unknown-column", "nam"),
    "an expectation of an unknown node": ({"given": {"orders": []}, "expect": {"warehose": []}}, "test.unknown-node", "warehose"),
    "a time that is none": ({"given": {"orders": []}, "now": "noon"}, "test.invalid", "now"),
    "rows that are none": ({"given": {"orders": [1]}}, "test.invalid", "- 1"),
    "both rows and file": ({"given": {"orders": {"rows": [], "file": "x.csv"}}}, "test.invalid", "orders"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_test_file_is_refused_at_its_place(tmp_path: Path, name: str) -> None:
    case, code, _ = WRONG[name]
    result = asked(tmp_path, case)
    problem = json.loads(result.stdout)["problems"][0]
    assert (result.exit_code, problem["code"]) == (3, code), problem
    text = (tmp_path / "orders.test.yaml").read_text().splitlines()[problem["line"] - 1]
    if WRONG[name][2] != "- mocks":
        assert text[problem["column"] - 1 :].lstrip("- ").startswith(WRONG[name][2].lstrip("- ")), (text, problem)


def test_what_is_wrong_with_one_test_ends_that_one(tmp_path: Path) -> None:
    good = {"given": {"orders": [row(1)]}, "expect": {"warehouse": {"count": 1}}}
    bad = {"given": {"orders": [{**row(1), "id": "seven"}]}}
    failing = {"given": {"orders": [row(1)]}, "expect": {"warehouse": {"count": 2}}}
    junit = tmp_path / "junit.xml"
    result = asked(tmp_path, bad, failing, good, options=("--junit", str(junit)))
    document = json.loads(result.stdout)
    assert (result.exit_code, [t["status"] for t in document["tests"]]) == (3, ["broken", "failed", "passed"])
    assert (document["passed"], document["failed"], document["broken"]) == (1, 1, 1)
    assert [p["code"] for p in document["problems"]] == ["test.not-castable"]
    assert document["error"]["code"] == "test.not-castable"
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("1", "1")
    assert [case[0].tag if len(case) else None for case in suite] == ["error", "failure", None]


def test_a_variable_is_needed_only_where_a_node_still_runs(tmp_path: Path) -> None:
    result = asked(tmp_path, {"given": {"orders": []}, "mocks": {}})
    assert (result.exit_code, json.loads(result.stdout)["problems"][0]["code"]) == (3, "test.unset-variable")


def test_files_hold_rows_too(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,total,who\n1,2.50,a\n2,0,b\n")
    (tmp_path / "out.csv").write_text("id,name\n1,Ada\n")
    case = {"given": {"orders": {"file": "in.csv"}}, "expect": {"warehouse": {"file": "out.csv"}}}
    assert asked(tmp_path, case).exit_code == 0
    (tmp_path / "in.csv").write_text("id,total,who\n1,two,a\n")
    result = asked(tmp_path, case)
    assert json.loads(result.stdout)["problems"][0]["code"] == "test.not-castable"
    (tmp_path / "in.csv").unlink()
    assert asked(tmp_path, case).exit_code == 4


def test_a_mocked_node_stands_for_all_before_it(tmp_path: Path) -> None:
    case = {"mocks": {"who": {"rows": [{"id": 5, "name": "Eve"}]}}, "expect": {"warehouse": [{"id": 5, "name": "Eve"}]}}
    flow = FLOW.replace("- id: who\n    use: enrich\n    with: {lookup", "- id: who\n    use: enrich-by-post\n    with: {loo_kup")
    flow = flow.replace("${env:NOT_SET_ANYWHERE}", "x")
    result = asked(tmp_path, {**case, "given": {"orders": []}}, flow=flow)
    assert result.exit_code == 0, result.output


def test_chosen_by_name_and_written_for_ci(tmp_path: Path) -> None:
    cases = [
        {"name": "good", "given": {"orders": []}},
        {"name": "bad <&\x07", "given": {"orders": []}, "expect": {"warehouse": {"count": 1}}},
    ]
    result = asked(tmp_path, *cases, options=("--junit", str(tmp_path / "j.xml")))
    assert result.exit_code == 1
    [suite] = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [c.get("name") for c in suite] == ["good", "bad <&?"]
    assert [t["name"] for t in told(asked(tmp_path, *cases, options=("-k", "goo")))] == ["good"]
    assert asked(tmp_path, *cases, options=("-k", "nothing")).exit_code == 2


def test_expected_rows_are_written_anew_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(FLOW)
    file = tmp_path / "orders.test.yaml"
    text = """# a comment that stays
tests:
  - name: first
    given: {orders: [{id: 1, total: 2, who: a}, {id: 2, total: 3, who: b}]}
    mocks: {who: [{id: a, name: Ada}, {id: b, name: "yes: no"}]}
    expect:
      # so does this
      warehouse:
        - {id: 9, name: Old}   # this goes
      paid: {count: 2}
    late: 0
"""
    file.write_text(text)
    asked_once = CliRunner().invoke(verb, [str(file), "--update"], input="n\n")
    assert asked_once.exit_code == 1
    assert file.read_text() == text, "nothing is written without a yes"
    CliRunner().invoke(verb, [str(file), "--update"], input="y\n")
    wanted = text.replace(
        "        - {id: 9, name: Old}   # this goes\n", '        - {id: 1, name: Ada}\n        - {id: 2, name: "yes: no"}\n'
    )
    assert file.read_text() == wanted
    assert CliRunner().invoke(verb, [str(file)]).exit_code == 0


def test_the_schema_for_editors_takes_the_examples_and_refuses_a_wrong_key() -> None:
    import jsonschema

    result = CliRunner().invoke(verb, ["--schema"])
    schema = json.loads(result.stdout)
    for file in (Path(__file__).parents[3] / "examples").rglob("*.test.yaml"):
        document = yaml.load(file.read_text(), yaml.BaseLoader)
        assert document["tests"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"tests": [{"name": "x", "expekt": {}}]}, schema)
    jsonschema.validate(
        {"workflow": "a.yaml", "tests": [{"name": "x", "steps": [{"advance": "1h"}], "crash_after": {"batches": 1}}]}, schema
    )


def test_no_test_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(verb, [str(tmp_path), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "test.none-found")
