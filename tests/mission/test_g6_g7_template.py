"""Rows G6 and G7: from `plugin new` to green tests and a workflow that uses the plugin, in one go, nothing edited."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.template.clean import ROOT, Clean

KINDS = ("source", "destination", "processor")
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
sources: {rows: {use: generate, with: {rows: 3, columns: {number: i + 1, line: "['one', 'two', 'three'][i + 1]"}}}}
destinations: {out: {use: NAME, with: {path: out.jsonl}, write: {mode: append}}}
""",
    "processor": """
sources: {rows: {use: generate, with: {rows: 3, columns: {line: "['one', 'two', 'three'][i + 1]"}}}}
processors: [{id: n, use: NAME, with: {column: line, into: number}}]
destinations: {out: {use: jsonl, with: {path: out.jsonl}}}
""",
}
ROWS = {
    "source": [{"number": 1, "line": "one"}, {"number": 2, "line": "two"}, {"number": 3, "line": "three"}],
    "destination": [{"number": 1, "line": "one"}, {"number": 2, "line": "two"}, {"number": 3, "line": "three"}],
    "processor": [{"line": "one", "number": 3}, {"line": "two", "number": 3}, {"line": "three", "number": 5}],
}


@pytest.mark.parametrize("kind", rotated(0))
def test_a_new_plugin_is_green_and_moves_rows(kind: str, clean: Clean, new_plugin: Callable[..., Path], tmp_path: Path) -> None:
    name = f"acme-{kind}"
    project = new_plugin(kind, name)
    with installed(clean, project):
        said = clean.good(clean.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
        assert "3 passed" in said
        place = tmp_path / ".flow"
        place.mkdir()
        (place / "in.txt").write_text("one\ntwo\nthree\n")
        (place / "dataflare.yaml").write_text(FLOWS[kind].replace("NAME", name))
        (place / "policy.yaml").write_text(f"trust: [dataflare-{name}]\n")
        document = json.loads(clean.good(clean.bin / "dataflare", "run", "--json", cwd=place))
        assert (document["status"], document["rows"]["written"]) == ("done", 3)
        assert [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()] == ROWS[kind]
        certified = json.loads(
            clean.good(clean.bin / "dataflare", "plugin", "certify", f"dataflare-{name}", "--json", "--no-crashes", cwd=place)
        )
        assert (certified["certified"], certified["failed"]) == (True, 0)
        again = clean.good(clean.bin / "dataflare", "plugin", "manifest", "--check", cwd=project)
        assert "as the code says" in again
    assert clean(clean.bin / "dataflare", "validate", cwd=place).code == 3


@pytest.mark.parametrize("kind", rotated(1))
def test_the_smallest_plugin_conforms(kind: str, clean: Clean, new_plugin: Callable[..., Path], tmp_path: Path) -> None:
    project = new_plugin(kind, "tiny", "--minimal")
    files = [p for p in project.rglob("*") if p.is_file()]
    count = sum(len(p.read_text().splitlines()) for p in files)
    assert len(files) <= 3, files
    assert count <= 35, f"{count} lines"
    (tmp_path / ".check.py").write_text(CHECKS[kind])
    with installed(clean, project):
        clean.good(clean.python, tmp_path / ".check.py", cwd=tmp_path)


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
    path = folder / "tiny.jsonl"
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
def test_what_continuous_integration_runs(clean: Clean, new_plugin: Callable[..., Path]) -> None:
    project = new_plugin("source", "acme-ci")
    try:
        assert "3 passed" in clean.good(project / ".ci" / "run", cwd=project)
    finally:
        clean.good(clean.python, "-m", "pip", "uninstall", "--quiet", "--yes", "dataflare-acme-ci", cwd=project)


def test_the_template_has_a_part_for_every_kind() -> None:
    parts = ROOT / "plugin_template" / "parts"
    for language in ("python", "python-minimal"):
        names = {p.name.partition(".")[0] for p in (parts / language).iterdir()}
        assert names == set(KINDS)
