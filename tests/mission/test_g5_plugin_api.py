"""Row G5: a plugin that was built against API 1.0 runs as it is, and nothing of that API was taken away since."""

import copy
import doctest
import getpass
import hashlib
import importlib
import json
import pkgutil
import re
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.ext.api_1_0.record import FILE, breaks, current
from tests.ext.strangers import Place, run

import dataflare
import dataflare_sdk

HERE = FILE.parent
WHEEL = HERE / "ext_first-1.0.0-py3-none-any.whl"
SHA256 = "200396376da8fa3a0a397b9f0a48b6eb42fb250986d1e6a7e44b0fdd7e8ba7a0"
FLOW = """\
sources:
  numbers: {use: first-numbers, with: {stop: 20, token: "${secret:first/token}"}}
processors:
  - {id: sums, use: first-sums}
  - {id: split, use: first-split, with: {limit: 15}}
  - {id: odd, use: map, from: split.odd, with: {set: {n: first_twice(n)}, drop: [token]}}
  - {id: even, use: map, from: split, with: {drop: [token]}}
destinations:
  odds: {use: jsonl, from: odd, with: {path: odds.jsonl}}
  evens: {use: first-lines, from: even, with: {path: evens}, write: {mode: append}}
errors: {on_record: dead_letter}
"""
INCREMENTAL = FLOW.replace("first-numbers, ", "first-numbers, extract: {mode: incremental, cursor: n}, ")


def test_the_wheel_is_the_one_that_was_kept() -> None:
    assert hashlib.sha256(WHEEL.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(WHEEL) as wheel:
        inside = {n: wheel.read(n) for n in wheel.namelist() if n.startswith("ext_first/")}
    beside = {f"ext_first/{p.name}": p.read_bytes() for p in (HERE / "source" / "ext_first").iterdir() if p.is_file()}
    assert inside == beside


@pytest.fixture
def first(place: Place) -> Place:
    """A place where the kept wheel is installed and trusted."""
    site = place.folder / "site"
    flags = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    done = run([sys.executable, "-m", "pip", "install", *flags, str(WHEEL)], place.folder, {})
    assert done.code == 0, done.err
    place.sites.append(site)
    place.write("policy.yaml", "trust: [ext-first]\n")
    place.write("dataflare.yaml", FLOW)
    place.write(".dataflare/config.yaml", "secrets: {providers: [env, file, first, ext-first]}\nsecurity: {authorize: [ext-first]}\n")
    place.env["EXT_FIRST"] = str(place.folder / "told.jsonl")
    return place


def told(place: Place, hook: str) -> list[Any]:
    lines = (place.folder / "told.jsonl").read_text().splitlines()
    return [t["value"] for t in map(json.loads, lines) if t["hook"] == hook]


def test_it_runs(first: Place) -> None:
    document = first.ran()
    sums = {n: n * (n + 1) // 2 for n in range(1, 21)}
    odds = [json.loads(line) for line in (first.folder / "odds.jsonl").read_text().splitlines()]
    assert odds == [{"n": 2 * n, "sum": sums[n]} for n in range(1, 16, 2)]
    parts = sorted((first.folder / "evens").glob("part-*.jsonl"))
    assert [json.loads(line) for p in parts for line in p.read_text().splitlines()] == [{"n": n, "sum": sums[n]} for n in range(2, 21, 2)]
    assert document["rows"]["dead_lettered"] == 2
    assert [p["code"] for p in document["problems"]] == ["first.note"]
    assert document["guarantee"]["evens"] == "exactly_once"
    assert ("execute", "epoch.committed") in {(e[2], e[3]) for e in told(first, "run_event")}
    again = first.ran()
    assert again["rows"]["written"] == document["rows"]["written"]


def test_it_goes_on_after_a_crash(first: Place) -> None:
    flow = FLOW.replace("first-numbers, ", "first-numbers, extract: {mode: incremental, cursor: n}, ")
    first.write(
        "dataflare.yaml",
        flow.replace("{use: jsonl, from: odd, with: {path: odds.jsonl}}", "{use: first-lines, from: odd, with: {path: odds}}"),
    )
    first.env["DATAFLARE_FAILPOINT"] = "state.log.after:1"
    assert first("run").code != 0
    del first.env["DATAFLARE_FAILPOINT"]
    assert first.ran()["resumed"]
    for name, count in (("odds", 8), ("evens", 10)):
        rows = [json.loads(x) for p in (first.folder / name).glob("part-*") for x in p.read_text().splitlines()]
        assert len({r["sum"] for r in rows}) == len(rows) == count
    assert first.ran()["rows"]["read"] == 0


def test_its_verb_and_its_refusals(first: Place) -> None:
    assert first("first", "dataflare.yaml", "--json").document["nodes"] == ["numbers", "sums", "split", "odd", "even", "odds", "evens"]
    said = first("state", "reset", "--yes", "--json")
    assert (said.code, said.document["error"]["code"]) == (6, "security.denied")
    assert getpass.getuser() in said.document["error"]["message"]
    first.write("policy.yaml", "trust: [ext-first]\ndeny: [ext-first]\n")
    assert first("run").code == 6


CONFORMS = """
from pathlib import Path
import json, pyarrow as pa
from ext_first.connectors import *
from ext_first.processors import *
from dataflare_sdk import ExtractSpec, NoConfig
from dataflare_sdk.testing import DestinationSuite, FakeContext, ProcessorSuite, SourceSuite
for mode in ("full", "incremental"):
    SourceSuite(lambda ctx: Numbers(NumbersConfig(stop=20), ctx), folder=Path(), extract=ExtractSpec(mode)).assert_conforms()
ProcessorSuite(lambda ctx: Sums(NoConfig(), ctx), inputs={"in": pa.table({"n": [1, 2, 3, 4, 5]})}, folder=Path()).assert_conforms()
"""


def test_it_conforms_to_the_suites_of_today(first: Place) -> None:
    done = run([sys.executable, "-c", CONFORMS], first.folder, {"PYTHONPATH": str(first.sites[0])})
    assert done.code == 0, done.err


def test_nothing_of_the_api_was_taken_away() -> None:
    assert breaks(json.loads(FILE.read_text(encoding="utf-8")), current()) == []


def test_the_record_holds_what_it_should() -> None:
    was = json.loads(FILE.read_text(encoding="utf-8"))
    assert was["hooks"]["authorize"] == [["principal", True, False], ["action", True, False], ["resource", True, False]]
    assert [p[0] for p in was["contracts"]["Destination"]["methods"]["commit"]] == ["epoch", "offsets", "final", "together"]
    assert {"Source", "hookimpl", "config"} <= was["rooms"]["dataflare_sdk"].keys()
    assert "max_rows" in [p[0] for p in was["contracts"]["Reader"]["methods"]["read"]]


def _without(api: Any, *path: Any) -> Any:
    made = copy.deepcopy(api)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return made


COMMIT = ("contracts", "Destination", "methods", "commit")
LOST = [
    ("hooks", "authorize"), ("hooks", "authorize", 1), ("kinds", 0), ("manifest", 2), ("capabilities", 1), ("contracts", "Reader"),
    (*COMMIT[:3], "commit"), (*COMMIT, 0), ("rooms", "dataflare_sdk", "option"), ("rooms", "dataflare_sdk", "option", "call", 3),
    ("rooms", "dataflare_sdk.testing"), ("contracts", "Target", "fields", 3), ("contracts", "Source", "attributes", 0),
]  # fmt: skip


@pytest.mark.parametrize("path", LOST, ids=str)
def test_what_is_taken_away_is_found(path: tuple[Any, ...]) -> None:
    was = json.loads(FILE.read_text(encoding="utf-8"))
    assert breaks(was, _without(was, *path)), "nobody noticed"
    if isinstance(path[-1], str):
        assert breaks(_without(was, *path), was) == [], "an addition was taken for a loss"


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        ([["a", True, False], ["b", False, False], ["c", False, False]], False),
        ([["a", False, False], ["b", False, False], ["k", False, True]], False),
        ([["b", False, False], ["a", True, False]], True),
        ([["a", True, False], ["c", False, False], ["b", False, False]], True),
        ([["a", True, False], ["b", True, False]], True),
        ([["a", True, False], ["b", False, True]], True),
        ([["a", True, False], ["renamed", False, False]], True),
        ([["a", True, False], ["b", False, False], ["c", True, True]], True),
        ([["a", True, False]], True),
    ],
)
def test_which_changes_of_a_call_are_a_loss(now: list[Any], lost: bool) -> None:
    assert bool(breaks({"f": [["a", True, False], ["b", False, False]]}, {"f": now})) == lost


def _with_examples() -> list[str]:
    modules = [m.name for p in (dataflare, dataflare_sdk) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    sources = {m: Path(str(getattr(find_spec(m), "origin", ""))) for m in modules if not m.endswith("__main__")}
    return [m for m, file in sources.items() if ">>>" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", _with_examples())
def test_examples_in_the_api_are_true(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name), raise_on_error=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0
    assert done.failed == 0


def test_examples_in_the_reference_are_true() -> None:
    attempted = 0
    for page in (HERE.parents[2] / "docs" / "reference").glob("*.md"):
        blocks = re.findall(r"```pycon\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for i, block in enumerate(blocks):
            example = doctest.DocTestParser().get_doctest(block, {}, f"{page.name} {i}", str(page), 0)
            done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
            attempted += done.attempted
            assert done.failed == 0
    assert attempted >= 5, "there are no examples"
