"""The verbs for authors: what they ask, what they refuse, and manifests that say what the code says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plugins.isolation_wasm.building import GUESTS, built

from dataflare.manifest import read
from dataflare_plugins.scaffold import declared, making
from dataflare_plugins.scaffold.manifest import manifest
from dataflare_plugins.scaffold.new import new

KINDS = ("source", "destination", "processor")
LANGUAGES = ("python", "wasm-c", "wasm-zig")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(verb: Any, *arguments: str, answers: str = "") -> Any:
    return CliRunner().invoke(verb, [*arguments], input=answers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_plugin_is_whole(language: str, kind: str, here: Path) -> None:
    said = call(new, "--kind", kind, "--language", language, "--name", "acme-orders", "--publisher", "acme.example", "--json")
    assert said.exit_code == 0, said.output
    document = json.loads(said.stdout)
    files = {p.relative_to(here / "acme-orders").as_posix() for p in (here / "acme-orders").rglob("*") if p.is_file()}
    assert set(document["files"]) == files
    assert {"pyproject.toml", "README.md", ".ci/run", "example/dataflare.yaml", f"tests/test_{kind}.py"} <= files
    found = read(
        here / "acme-orders" / "dataflare_acme_orders" / "plugin.yaml", package="dataflare_acme_orders", origin="dataflare-acme-orders 1"
    )
    [component] = found.provides
    level = "process" if language == "python" else "wasm"
    assert (found.name, found.publisher, found.isolation) == ("dataflare-acme-orders", "acme.example", level)
    assert (component.kind, component.name, component.config) == (kind, "acme-orders", "acme-orders.schema.json")
    assert component.features
    if language != "python":
        assert component.entry == "acme-orders.wasm"
        assert {f"acme-orders.{language.removeprefix('wasm-')}", "hatch_build.py", "dataflare_acme_orders/acme-orders.schema.json"} <= files
        assert not [f for f in files if f.startswith("dataflare_acme_orders/") and f.endswith(".py")]
        assert call(manifest, "acme-orders", "--check").exit_code != 0, "there is no module before it is built"
    assert not [p for p in (here / "acme-orders").rglob("*") if "{" in p.name or p.name.endswith(".jinja")]
    for path in (here / "acme-orders").rglob("*.*"):
        text = path.read_text() if path.is_file() else ""
        assert "{%" not in text
        assert "{{" not in text
        assert not text.endswith("\n\n"), path
    assert (here / "acme-orders" / ".ci" / "run").stat().st_mode & 0o111
    assert call(new, "--name", "acme-orders", "--yes").exit_code == 4, "it was written over"


def test_without_a_terminal_nothing_is_asked() -> None:
    assert call(new, answers="source\n").exit_code == 2
    assert "--name is needed" in call(new, "--yes").output


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals here")
def test_on_a_terminal_it_asks(here: Path) -> None:
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"destination\n\nasked\n\n")
        command = [sys.executable, "-m", "dataflare", "plugin", "new"]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "source, destination, processor" in done.stdout
    assert (here / "asked" / "dataflare_asked" / "destination.py").exists()
    assert "publisher: asked.example" in (here / "asked" / "dataflare_asked" / "plugin.yaml").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        ("--name", "Acme"), ("--name", "../up"), ("--name", "a--b"), ("--name", "dataflare-x"), ("--name", "1a"), ("--name", ""),
        ("--name", "a", "--kind", "monitor"), ("--name", "a", "--language", "cobol"), ("--name", "a", "--publisher", "dataflare"),
        ("--name", "a", "--publisher", "a: b"), ("--name", "a", "--language", "wasm"), ("--name", "a", "--language", "wasm-c", "--minimal"), ("--name", "a", "--language", "parts"), ("--name", "a", "--language", "python-minimal"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(flags: tuple[str, ...], here: Path) -> None:
    assert call(new, *flags, "--yes").exit_code == 2
    assert not list(here.iterdir())


CODE = '''
from dataflare_sdk import Processor, config, option

@config
class C:
    """Keys."""
    n: int = option("A number.", default=%d)

class P(Processor[C]):
    """Does something."""
    Config = C
    features = frozenset(%r)
    def output_schemas(self, inputs): ...
    def process(self, batch, input): ...

def verb(): ...
'''
HEAD = "# kept\nmanifest: 1\nname: acme\nversion: 1.0.0\napi: '>=1,<2'\npublisher: acme.example  # kept too\n"
TAIL = "hooks: []\ncapabilities: {}\n"


def project(here: Path, provides: str, features: tuple[str, ...] = ("rowwise",), number: int = 1) -> Path:
    package = here / "acme_p"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(CODE % (number, features))
    (package / "plugin.yaml").write_text(HEAD + provides + TAIL)
    return package


def test_a_manifest_is_written_from_the_code(here: Path) -> None:
    given = "provides:\n  # gone\n  - kind: processor\n    name: p\n    entry: acme_p:P\n\n  - {kind: command, name: v, entry: 'acme_p:verb', summary: 'A: verb', features: []}\n"
    package = project(here, given, ("sql", "rowwise"))
    said = call(manifest, "--check", "--json")
    assert (said.exit_code, json.loads(said.stdout)["error"]["code"]) == (3, "scaffold.stale")
    assert (package / "plugin.yaml").read_text() == HEAD + given + TAIL, "a check wrote"
    assert call(manifest).exit_code == 0
    text = (package / "plugin.yaml").read_text()
    assert text.startswith(HEAD)
    assert text.endswith(TAIL)
    first, second = yaml.safe_load(text)["provides"]
    assert first == {"kind": "processor", "name": "p", "entry": "acme_p:P", "summary": "Does something", "features": ["rowwise", "sql"], "config": "p.schema.json"}  # fmt: skip
    assert second == {"kind": "command", "name": "v", "entry": "acme_p:verb", "summary": "A: verb", "features": []}
    assert json.loads((package / "p.schema.json").read_text())["properties"]["n"]["default"] == 1
    assert call(manifest, "--check").exit_code == 0
    assert json.loads(call(manifest, "--json").stdout)["written"] == []
    project(here, text.removeprefix(HEAD).removesuffix(TAIL), ("rowwise",), number=2)
    assert {p.name for p in declared.stale(here)} == {"plugin.yaml", "p.schema.json"}


def test_what_cannot_be_read_is_told(here: Path) -> None:
    assert json.loads(call(manifest, "--json").stdout)["error"]["code"] == "scaffold.no-manifest"
    project(here, "provides: [{kind: processor, name: p, entry: 'acme_p:Gone'}]\n")
    assert json.loads(call(manifest, "--json").stdout)["error"]["code"] == "scaffold.not-loaded"
    project(here, "provides: 3\n")
    assert json.loads(call(manifest, "--json").stdout)["error"]["code"] == "scaffold.no-manifest"
    (here / "plugin.yaml").write_text("")
    assert json.loads(call(manifest, "--json").stdout)["error"]["code"] == "scaffold.no-manifest"


WASM = """\
manifest: 1
name: acme
version: 1.0.0
api: '>=1,<2'
publisher: acme.example
isolation: wasm
provides:
  - {kind: KIND, name: p, entry: p.wasm, features: [append], config: p.schema.json}   # kept as it is
"""


def test_a_module_is_held_to_its_manifest(here: Path) -> None:
    package = here / "acme_p"
    package.mkdir()

    def said(kind: str, more: str = "", *flags: str) -> Any:
        (package / "plugin.yaml").write_text(WASM.replace("KIND", kind) + more)
        result = call(manifest, "--json", *flags)
        assert (package / "plugin.yaml").read_text() == WASM.replace("KIND", kind) + more, "it was written anew"
        return json.loads(result.stdout)

    (package / "p.schema.json").write_text("{}")
    assert said("destination")["error"]["code"] == "wasm.invalid-module"
    (package / "p.wasm").write_bytes(built(GUESTS / "post.zig"))
    refused = said("destination")["error"]
    assert (refused["code"], "net" in refused["message"]) == ("wasm.undeclared-import", True)
    net = "capabilities: {net: [{host: a.example, port: 443}]}\n"
    for flags in ((), ("--check",)):
        document = said("destination", net, *flags)
        assert (document.get("error"), document["written"]) == (None, [])
    assert "df_read" in said("source", net, "--check")["error"]["message"]
    (package / "p.schema.json").write_text("{")
    assert said("destination", net, "--check")["error"]["code"] == "wasm.invalid-module"
    assert said("destination", "limits: 3\n", "--check")["error"]["code"] == "plugin.bad-manifest"
    assert not [p for p in here.rglob("*") if p.is_file() and p.parent != package], "it left something"


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["kind", "name", "entry", "summary", "config"]), WORDS, min_size=1))
def test_any_entry_survives_being_written(entry: dict[str, str]) -> None:
    assert yaml.safe_load(declared._flow(entry)) == entry


def test_without_copier_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    document = json.loads(call(new, "--name", "acme", "--json").stdout)
    assert document["error"]["code"] == "plugin.missing-extra"
    assert document["error"]["fix"] == 'pip install "dataflare[template]"'
    assert not list(here.iterdir())


def test_without_a_compiler_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hint = 'pip install "dataflare[wasm]"'
    assert hint not in call(new, "--name", "one", "--language", "wasm-c", "--yes").output
    monkeypatch.setitem(sys.modules, "ziglang", None)
    assert hint not in call(new, "--name", "two", "--yes").output
    assert hint in call(new, "--name", "three", "--language", "wasm-zig", "--yes").output


def test_a_folder_of_the_template_is_a_language(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = here / "template"
    shutil.copytree(making.template(), copied)
    (copied / "lua").mkdir()
    (copied / "lua" / "{{ kind }}.lua.jinja").write_text("-- {{ name }} of {{ publisher }}\n")
    questions = copied / "copier.yml"
    questions.write_text(questions.read_text().replace("choices: [python", "choices: [lua, python"))
    monkeypatch.setattr(making, "template", lambda: copied)
    assert making.languages() == ("lua", *LANGUAGES)
    assert call(new, "--name", "moon", "--language", "lua", "--minimal", "--yes").exit_code == 2
    assert call(new, "--name", "moon", "--language", "lua", "--kind", "source", "--yes").exit_code == 0
    assert (here / "moon" / "source.lua").read_text() == "-- moon of moon.example\n"
