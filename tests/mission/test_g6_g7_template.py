"""Rows G6 and G7: from `plugin new` to green tests and a workflow that uses the plugin, in one go, nothing edited."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.plugins.isolation_wasm.server import Server, serving
from tests.template.clean import ROOT, Clean

KINDS = ("source", "destination", "processor")
LANGUAGES = ("python", "wasm-c", "wasm-zig")
DAY = datetime.datetime.now(datetime.UTC).toordinal() % 3


def rotated(shift: int) -> list[object]:
    """Return the kinds; all but that of the day only run in a soak."""
    return [pytest.param(k, marks=[] if (DAY + shift) % 3 == i else [pytest.mark.soak]) for i, k in enumerate(KINDS)]


@contextmanager
def installed(clean: Clean, project: Path) -> Iterator[None]:
    """Build a project's wheel and install it; take it away afterwards."""
    clean.good(clean.python, "-m", "hatchling", "build", "-t", "wheel", cwd=project)
    [wheel] = (project / "dist").glob("*.whl")
    clean.good(clean.python, "-m", "pip", "install", "--quiet", wheel, cwd=project)  # its dependency is there: nothing is asked for
    try:
        yield
    finally:
        clean.good(clean.python, "-m", "pip", "uninstall", "--quiet", "--yes", f"dataflare-{project.name}", cwd=project)


FLOWS = {
    "source": """
sources: {lines: {use: NAME, with: {path: in.txt}}}
destinations: {out: {use: jsonl, with: {path: out.jsonl}}}
""",
    "destination": """
sources: {rows: {use: generate, with: {rows: 3, columns: {number: i + 1, line: "['one', 'zwölf', NULL][i + 1]"}}}}
destinations: {out: {use: NAME, with: {folder: out}, write: {mode: append}}}
""",
    "processor": """
sources: {rows: {use: generate, with: {rows: 3, columns: {line: "['one', 'zwölf', NULL][i + 1]"}}}}
processors: [{id: n, use: NAME, with: {column: line, into: number}}]
destinations: {out: {use: jsonl, with: {path: out.jsonl}}}
""",
}
ROWS = {
    "source": [{"number": 1, "line": "one"}, {"number": 2, "line": "two"}, {"number": 3, "line": "three"}],
    "destination": [{"number": 1, "line": "one"}, {"number": 2, "line": "zwölf"}, {"number": 3, "line": None}],
    "processor": [{"line": "one", "number": 3}, {"line": "zwölf", "number": 5}, {"line": None, "number": None}],
}
# A module has no files: its source counts, and its destination sends to a server.
WASM_FLOWS = {
    "source": FLOWS["source"].replace("path: in.txt", "rows: 3"),
    "destination": FLOWS["destination"].replace("folder: out", "scheme: http, host: 127.0.0.1, port: PORT, path: /rows"),
    "processor": FLOWS["processor"],
}
WASM_ROWS = {**ROWS, "source": [{"number": n, "line": f"row {n}"} for n in (1, 2, 3)]}


def squared() -> list[object]:
    """Return kind and language of all nine; three of them, each kind once and each language once, are those of the day."""
    return [
        pytest.param(kind, language, marks=[] if (i + DAY) % 3 == j else [pytest.mark.soak])
        for i, kind in enumerate(KINDS)
        for j, language in enumerate(LANGUAGES)
    ]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.mark.parametrize(("kind", "language"), squared())
def test_a_new_plugin_is_green_and_moves_rows(
    kind: str, language: str, clean: Clean, new_plugin: Callable[..., Path], tmp_path: Path, server: Server
) -> None:
    name = f"acme-{kind}"
    wasm = language != "python"
    project = new_plugin(kind, name, language=language)
    place = tmp_path / ".flow"
    place.mkdir()
    flow = (WASM_FLOWS if wasm else FLOWS)[kind].replace("NAME", name).replace("PORT", str(server.port))
    (place / "in.txt").write_text("one\ntwo\nthree\n")
    (place / "dataflare.yaml").write_text(flow)
    with installed(clean, project):
        said = clean.good(clean.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
        assert f"{4 if wasm else 3} passed" in said
        if not wasm:
            (place / "policy.yaml").write_text(f"trust: [dataflare-{name}]\n")
        elif kind == "destination":
            assert clean(clean.bin / "dataflare", "run", cwd=place).code == 6, "it was let into the network without a question"
            clean.good(clean.bin / "dataflare", "plugin", "grant", f"dataflare-{name}", "--private", cwd=place)
        document = json.loads(clean.good(clean.bin / "dataflare", "run", "--json", cwd=place))
        assert (document["status"], document["rows"]["written"]) == ("done", 3)
        if wasm and kind == "destination":
            assert document["guarantee"] == {"out": "at_least_once"}
            lines = b"".join(asked.body for asked in server.asked).decode().splitlines()
        else:
            lines = (place / ("out/rows.jsonl" if kind == "destination" else "out.jsonl")).read_text().splitlines()
        assert [json.loads(line) for line in lines] == (WASM_ROWS if wasm else ROWS)[kind]
        certified = json.loads(
            clean.good(clean.bin / "dataflare", "plugin", "certify", f"dataflare-{name}", "--json", "--no-crashes", cwd=place)
        )
        assert (certified["certified"], certified["failed"]) == (True, 0)
        assert certified["levels"]["wasm" if wasm else "process"] == "run"
        again = clean.good(clean.bin / "dataflare", "plugin", "manifest", "--check", cwd=project)
        assert ("as the manifest says" if wasm else "as the code says") in again
    assert clean(clean.bin / "dataflare", "validate", cwd=place).code == 3


@pytest.mark.parametrize("kind", rotated(1))
def test_the_smallest_plugin_conforms(kind: str, clean: Clean, new_plugin: Callable[..., Path], tmp_path: Path) -> None:
    project = new_plugin(kind, "tiny", "--minimal")
    files = [p for p in project.rglob("*") if p.is_file()]
    count = sum(len(p.read_text().splitlines()) for p in files)
    assert len(files) <= 3, files
    assert count <= 35, f"{count} lines"
    place = tmp_path / ".flow"
    place.mkdir()
    (place / "check.py").write_text(CHECKS[kind])
    (place / "dataflare.yaml").write_text(SMALL_FLOWS[kind])
    with installed(clean, project):
        clean.good(clean.python, "check.py", cwd=place)
        if kind == "destination":
            clean.good(clean.bin / "dataflare", "plugin", "grant", "dataflare-tiny", cwd=place)
        document = json.loads(clean.good(clean.bin / "dataflare", "run", "--json", cwd=place))
        assert document["rows"]["written"] == 3
        written = place / ("tiny/rows.jsonl" if kind == "destination" else "out.jsonl")
        assert [json.loads(line)["n"] for line in written.read_text().splitlines()] == [0, 1, 2]


SMALL_FLOWS = {
    "source": """
sources: {rows: {use: tiny, with: {count: 3}}}
destinations: {out: {use: jsonl, with: {path: out.jsonl}}}
""",
    "destination": """
sources: {rows: {use: generate, with: {rows: 3, columns: {n: i}}}}
destinations: {out: {use: tiny, write: {mode: append}}}
""",
    "processor": """
sources: {rows: {use: generate, with: {rows: 6, columns: {n: "CASE WHEN i < 3 THEN i END"}}}}
processors: [{id: some, use: tiny}]
destinations: {out: {use: jsonl, with: {path: out.jsonl}}}
""",
}


CHECKS = {
    "source": """
from pathlib import Path
from dataflare_sdk.testing import SourceSuite
from dataflare_tiny import Settings, Tiny
SourceSuite(lambda ctx: Tiny(Settings(), ctx), folder=Path()).assert_conforms()
""",
    "destination": """
import json
from pathlib import Path
from dataflare_sdk import NoConfig
from dataflare_sdk.testing import DestinationSuite
from dataflare_tiny import Tiny
def read(folder):
    path = folder / "tiny" / "rows.jsonl"
    return sorted(tuple(json.loads(x).values()) for x in path.read_text().splitlines()) if path.exists() else None
DestinationSuite(lambda ctx: Tiny(NoConfig(), ctx), read=read, folder=Path()).assert_conforms()
""",
    "processor": """
from pathlib import Path
import pyarrow as pa
from dataflare_sdk import NoConfig
from dataflare_sdk.testing import ProcessorSuite
from dataflare_tiny import Tiny
ProcessorSuite(lambda ctx: Tiny(NoConfig(), ctx), inputs={"in": pa.table({"a": [1, None, 3]})}, folder=Path()).assert_conforms()
""",
}


@pytest.mark.soak
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_continuous_integration_runs(language: str, clean: Clean, new_plugin: Callable[..., Path]) -> None:
    project = new_plugin("source", "acme-ci", language=language)
    try:
        assert f"{3 if language == 'python' else 4} passed" in clean.good(project / ".ci" / "run", cwd=project)
    finally:
        clean.good(clean.python, "-m", "pip", "uninstall", "--quiet", "--yes", "dataflare-acme-ci", cwd=project)


def test_the_template_has_a_part_for_every_kind() -> None:
    parts = ROOT / "plugin_template" / "parts"
    for language in (*LANGUAGES, "python-minimal"):
        names = {p.name.partition(".")[0] for p in (parts / language).iterdir()}
        assert names == set(KINDS)
    for part in ("plugin.yaml", "schema.json", "certify.yaml", "example.yaml", "rows.py"):
        assert {p.name.partition(".")[0] for p in (parts / "wasm").glob(f"*.{part}.jinja")} == set(KINDS)


def test_every_day_has_each_kind_and_each_language() -> None:
    todays = [p.values for p in squared() if not p.marks]  # type: ignore[attr-defined]
    assert len(squared()) == 9
    assert {kind for kind, _ in todays} == set(KINDS)
    assert {language for _, language in todays} == set(LANGUAGES)
    assert len(todays) == 3
