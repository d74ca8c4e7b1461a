"""Rows X1 to X6, and the verb and SQL function of G8: a package from outside adds or replaces each, by an entry point alone.

What each needs of the operator stands in the test: all of them `policy.yaml: trust`, as they run in this process; a
replacement of a built-in also the operator's word `plugins: {prefer: …}`, as a built-in's name wins otherwise.
"""

import ast
import getpass
import json
import sqlite3
import sys
from pathlib import Path

import pytest
from tests.ext.strangers import PACKAGES, Place, run

FLOW = """\
sources:
  numbers: {use: generate, with: {rows: 20, columns: {n: "i", name: "'row ' || i"}}}
processors:
  - {id: few, use: filter, with: {where: "n % 2 = 0"}}
destinations:
  out: {use: jsonl, with: {path: out.jsonl}}
"""


def lines(place: Place, name: str = "out.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (place.folder / name).read_text().splitlines()]


def prefer(place: Place, component: str) -> None:
    place.write(".dataflare/config.yaml", f"plugins: {{prefer: {{{component}: stranger.example}}}}\n")


@pytest.mark.parametrize("file", sorted(PACKAGES.rglob("*.py")), ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_package_imports_the_sdk_and_nothing_else_of_ours(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    ours = {n.partition(".")[0] for n in names if n.startswith("dataflare")}
    assert ours <= {"dataflare_sdk"}, ours
    assert not [n for n in names if any(part.startswith("_") for part in n.split(".") if part != "__future__")]


def test_every_package_is_under_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = {p.name for p in PACKAGES.iterdir() if p.is_dir()}
    assert names == {"connector", "processor", "state", "monitor", "security", "executor", "command", "functions", "wasm"}
    assert all(f'place.install("{name}")' in text for name in names)


def test_x1_a_connector(place: Place) -> None:
    place.write(
        "dataflare.yaml",
        "delivery: exactly_once\n"
        "sources: {down: {use: countdown, with: {start: 500}}}\n"
        "processors: [{id: some, use: filter, with: {where: 'n % 7 = 0'}}]\n"
        "destinations: {book: {use: ledger, with: {path: book.db}, write: {mode: append}}}\n"
        "runtime: {batch: {rows: 50}}\n"
        "state: {checkpoint: {rows: 100}}\n",
    )
    missing = place("validate", "--json")
    assert (missing.code, {p["code"] for p in missing.document["problems"]}) == (3, {"plugin.unknown"})
    place.install("connector")
    document = place.ran()
    assert (document["rows"]["read"], document["guarantee"]) == (500, {"book": "exactly_once"})
    wanted = [{"n": n, "bar": "#" * (n % 10)} for n in range(500, 0, -1) if n % 7 == 0]

    def held() -> list[dict[str, object]]:
        with sqlite3.connect(place.folder / "book.db") as db:
            return [json.loads(line) for (line,) in db.execute("SELECT line FROM ledger ORDER BY rowid")]

    assert held() == wanted
    place.env["DATAFLARE_FAILPOINT"] = "task.sink.committed:1"
    assert place("run").code != 0, "the failpoint did not stop it"
    assert len(held()) > len(wanted), "it was stopped before anything was committed"
    del place.env["DATAFLARE_FAILPOINT"]
    assert place.ran()["resumed"]
    assert sorted(map(str, held())) == sorted(map(str, wanted * 2))
    place.uninstall()
    assert place("validate").code == 3


def test_x2_a_processor(place: Place) -> None:
    flow = FLOW.replace('id: few, use: filter, with: {where: "n % 2 = 0"}', "id: digit, use: {use}, with: {with}")
    place.write("dataflare.yaml", flow.replace("{use}", "stamp").replace("{with}", "{column: n}"))
    place.install("processor")
    place.ran()
    assert [(r["n"], r["digit"]) for r in lines(place)] == [(n, n % 10) for n in range(20)]
    place.write("mapped.yaml", flow.replace("{use}", "map").replace("{with}", "{set: {digit: n + 1}}"))
    place.ran("mapped.yaml")
    assert [r["digit"] for r in lines(place)] == [n + 1 for n in range(20)], "a stranger took the name of a built-in"
    prefer(place, "processor/map")
    assert place("validate", "mapped.yaml").code == 3, "the operator's word did not count: `set` is no key of the stranger's"
    place.write("mapped.yaml", flow.replace("{use}", "map").replace("{with}", "{column: n}"))
    place.ran("mapped.yaml")
    assert [r["digit"] for r in lines(place)] == [n % 10 for n in range(20)]
    place.uninstall()
    place.write("mapped.yaml", flow.replace("{use}", "map").replace("{with}", "{set: {digit: n + 1}}"))
    place.ran("mapped.yaml")
    assert [r["digit"] for r in lines(place)] == [n + 1 for n in range(20)]


CARDS = {"4242424242424242": True, "4242424242424241": False, "79927398713": True, "": None, "18": True, "0018": True, "81": False}


def test_a_webassembly_module(place: Place) -> None:
    place.write("policy.yaml", "min_level: wasm\n")  # nobody is trusted, and nothing weaker is let in
    place.write("cards.csv", "card,n\n" + "".join(f'"{card}",{n}\n' for n, card in enumerate([*CARDS, "12x4"])))
    place.write(
        "dataflare.yaml",
        "sources: {cards: {use: csv, with: {path: cards.csv, columns: {card: VARCHAR, n: BIGINT}}}}\n"
        "processors: [{id: checked, use: luhn}]\n"
        "destinations: {out: {use: jsonl, with: {path: out.jsonl}}}\n"
        "errors: {on_record: dead_letter}\n",
    )
    missing = place("validate", "--json")
    assert (missing.code, {p["code"] for p in missing.document["problems"]}) == (3, {"plugin.unknown"})
    place.install("wasm")
    assert not list(place.sites[0].rglob("*.py")), "there is Python code in it"
    document = place.ran()
    assert document["rows"] == {"read": 8, "written": 7, "filtered": 0, "skipped": 0, "dead_lettered": 1, "late": 0}
    assert lines(place) == [{"card": card or None, "n": n, "valid": valid} for n, (card, valid) in enumerate(CARDS.items())]
    [letter] = place("dlq", "show", "--json").document["dead_letters"]
    assert (letter["row"]["card"], "digits only" in str(letter)) == ("12x4", True)
    certified = place("plugin", "certify", "ext-luhn", "--no-crashes", "--json").document
    assert (certified["certified"], certified["levels"]["wasm"]) == (True, "run")
    place.uninstall()
    assert place("validate").code == 3


CONFORMS = """
from pathlib import Path
from ext_jsonstate import JsonState, JsonStateConfig
from dataflare_sdk.testing import FakeContext, StateStoreSuite
StateStoreSuite(lambda place: JsonState(JsonStateConfig(), FakeContext(place)), folder=Path(".")).assert_conforms()
"""


def test_x4_a_state_store(place: Place) -> None:
    place.install("state")
    conforms = run([sys.executable, "-c", CONFORMS], place.folder, {"PYTHONPATH": str(place.sites[0])})
    assert conforms.code == 0, conforms.err
    place.write("in.csv", "id,at\n1,2026-01-01\n2,2026-01-02\n")
    place.write(
        "dataflare.yaml",
        "sources: {rows: {use: csv, with: {path: in.csv, columns: {id: BIGINT, at: DATE}}}}\n"
        "processors: [{id: bad, use: map, with: {set: {r: '1 // (id - 2)', e: \"error('no')\"}}}]\n"
        "destinations: {out: {use: sqlite, with: {path: out.db, table: t}, write: {mode: append}}}\n"
        "errors: {on_record: dead_letter}\n"
        "state: {store: jsonfile, path: kept}\n".replace(", e: \"error('no')\"", ", c: \"CASE WHEN id = 2 THEN error('no') ELSE 1 END\""),
    )
    document = place.ran()
    assert document["rows"]["dead_lettered"] == 1
    assert (place.folder / "kept" / "state.json").exists()
    assert not (place.folder / ".dataflare" / "state.db").exists(), "the built-in store was used beside it"
    letters = place("dlq", "show", "--json").document["dead_letters"]
    assert [x["row"]["id"] for x in letters] == [2]
    assert place("dlq", "query", "dataflare.yaml", "SELECT count(*) FROM dead_letters", "--json").document["rows"] == [[1]]
    assert place("dlq", "replay", "--json").document["error"]["code"] == "dlq.only-shown"
    shown = place("state", "show", "--json").document["streams"]["rows"]
    assert (shown["epoch"], shown["run_id"]) == (1, document["run_id"])
    place.uninstall()
    assert place("validate").code == 3


def test_x5_a_monitor(place: Place) -> None:
    place.write("dataflare.yaml", FLOW)
    place.install("monitor")
    place.env["EXT_WITNESS"] = str(place.folder / "events.jsonl")
    assert "watched_by" not in place.ran(), "a stranger took the name of a built-in"
    events = lines(place, "events.jsonl")
    began = [e["phase"] for e in events if e["event"] == "phase.started"]
    assert began == ["initialise", "prepare", "execute", "monitor", "complete", "clean_up"]
    assert [e["event"] for e in events].count("epoch.committed") == 1
    place.write("dataflare.yaml", FLOW + "observe: {metrics: witness}\n")
    written = place.ran()["rows"]["written"]
    told = lines(place, "events.jsonl.told")
    assert [t[0] for t in told if t[0] not in ("hear", "close")] == ["begin", "planned", "end"]
    assert told[-2:] == [["end", "done", written], ["close"]]
    assert ["hear", "epoch.committed"] in told
    place.write("dataflare.yaml", FLOW)
    prefer(place, "monitor/workflow")
    document = place.ran()
    assert document["watched_by"] == "ext-witness"
    assert document["rows"] == {"read": 20, "written": 10, "filtered": 10, "skipped": 0, "dead_lettered": 0, "late": 0}
    place.uninstall()
    seen = len(lines(place, "events.jsonl"))
    assert "watched_by" not in place.ran()
    assert len(lines(place, "events.jsonl")) == seen


DLQ = (
    ("dlq", "list"),
    ("dlq", "show"),
    ("dlq", "query", "dataflare.yaml", "SELECT 1"),
    ("dlq", "edit", "--id", "1", "--undo"),
    ("dlq", "replay"),
    ("dlq", "purge", "--all"),
)


def test_x6_a_security_provider(place: Place) -> None:
    place.write("dataflare.yaml", "name: flow\n" + FLOW)
    place.install("security")
    rules = {"people": {getpass.getuser(): ["reader"]}, "resources": {"flow": {"reader": ["run"], "keeper": ["state.reset"]}}}
    place.env["EXT_GUARD"] = str(place.write("rules.json", json.dumps({**rules, "people": {}})))
    place.ran()  # nobody named it in the configuration, so nobody asks it
    place.write(".dataflare/config.yaml", "security: {authenticate: [ext-guard], authorize: [ext-guard]}\n")

    def refused(*arguments: str) -> str:
        said = place(*arguments, "--json")
        assert (said.code, said.document["error"]["code"]) == (6, "security.denied"), said.out
        return str(said.document["error"]["message"])

    assert "knows" in refused("run"), "somebody unknown was let in"
    place.write("rules.json", json.dumps(rules))
    place.ran()
    for verb in (("state", "reset", "--yes"), ("preview", "dataflare.yaml", "few"), ("discover",), *DLQ):
        assert "reader" in refused(*verb), f"{verb} was allowed"
    rules["people"] = {getpass.getuser(): ["reader", "keeper"]}
    place.write("rules.json", json.dumps(rules))
    assert place("state", "reset", "--yes").code == 0
    place.write("rules.json", json.dumps({**rules, "resources": {}}))
    assert "no security provider allowed" in refused("run"), "nobody answered, and it went through"
    (place.folder / "rules.json").unlink()
    assert "failed" in refused("run"), "a provider that fails let it through"
    place.uninstall()
    refused("run")  # it is still named: nobody answers, so nobody may


def test_an_executor(place: Place) -> None:
    place.write("dataflare.yaml", FLOW)
    place.install("executor")
    theirs = place.ran()
    assert theirs["lane"] != "straight", "a stranger took the name of a built-in"
    rows = lines(place)
    prefer(place, "executor/local")
    ours = place.ran()
    assert ours["lane"] == "straight"
    assert lines(place) == rows
    assert [(n["id"], n["rows_in"], n["rows_out"]) for n in ours["nodes"]] == [("numbers", 20, 20), ("few", 20, 10), ("out", 10, 10)]
    assert place("state", "show", "--json").document["streams"]["numbers"]["run_id"] == ours["run_id"]
    place.write("cdc.yaml", FLOW.replace("use: generate,", "use: generate, extract: {mode: incremental, cursor: n},"))
    assert place("run", "cdc.yaml").code == 3
    place.uninstall()
    assert place.ran()["lane"] != "straight"


def test_g8_verbs(place: Place) -> None:
    place.write("dataflare.yaml", FLOW)
    before = place("--help").out
    place.install("command")
    assert "tally" not in before
    assert "Count the nodes of a workflow" in place("--help").out
    assert place("tally").out == "destination 1, processor 1, source 1\n"
    assert place("tally", "--json").document["nodes"] == {"destination": 1, "processor": 1, "source": 1}
    assert (place("tally", "gone.yaml").code, place("tally", "--wrong").code) == (4, 2)
    assert "Name who published" in place("plugin", "--help").out
    assert place("plugin", "authors", "--json").document["publishers"] == ["dataflare", "stranger.example"]
    assert place("plugin-authors").code == 2, "a subcommand stands among the verbs"
    place.uninstall()
    assert (place("tally").code, place("plugin", "authors").code) == (2, 2)


def test_g8_sql_functions(place: Place) -> None:
    place.write(
        "dataflare.yaml",
        FLOW.replace('where: "n % 2 = 0"', 'where: "clamp(n * 2, 4, 10) = 6"').replace(
            "destinations:", "  - {id: loud, use: map, with: {set: {name: \"lower(shout(name)) || shout('x')\"}}}\ndestinations:"
        ),
    )
    unknown = place("validate", "--json")
    assert (unknown.code, unknown.document["problems"][0]["code"]) == (3, "expression.unknown-function")
    place.install("functions")
    assert place.ran()["lane"] == "streaming"
    assert lines(place) == [{"n": 3, "name": "row 3!X!"}]
    place.write(
        "bad.yaml",
        FLOW.replace('where: "n % 2 = 0"', 'where: "refuse_thirteen(n) > 10"') + "errors: {on_record: dead_letter}\n",
    )
    document = place.ran("bad.yaml", "--lane", "streaming")
    assert document["rows"]["dead_lettered"] == 1
    assert [r["n"] for r in lines(place)] == [11, 12, 14, 15, 16, 17, 18, 19]
    place.write("wrong.yaml", FLOW.replace("n % 2 = 0", "clamp(name, 1) = 1"))
    wrong = place("validate", "wrong.yaml", "--json")
    assert (wrong.code, wrong.document["problems"][0]["path"]) == (3, "processors[0].with.where")
    place.uninstall()
    assert place("validate").code == 3


def test_x3_the_plugin_system_itself(place: Place) -> None:
    """All of them at once are listed, and looked at for `--help`, without running a line of any."""
    names = ["connector", "processor", "state", "monitor", "security", "executor", "command", "functions", "wasm"]
    place.install(*names)
    strangers = {p["name"]: p for p in place("plugin", "list", "--json").document["plugins"] if p["name"].startswith("ext-")}
    assert len(strangers) == len(names)
    assert {p["origin"] for p in strangers.values()} == {f"{n} 1.0.0" for n in strangers}
    place.write("dataflare.yaml", FLOW)

    def imported(*arguments: str) -> set[str]:
        program = (
            "import sys\nfrom dataflare.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
            "    print(*(m for m in sys.modules if m.startswith('ext_')), file=sys.stderr)"
        )
        env = {"PYTHONPATH": ":".join(map(str, place.sites)), "XDG_CACHE_HOME": str(place.folder / ".cache")}
        return set(run([sys.executable, "-c", program, *arguments], place.folder, env).err.split())

    assert imported("plugin", "list") == set()
    assert imported("--help") == set()
    assert imported("tally") == {"ext_verbs"}
