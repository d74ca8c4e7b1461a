"""W1, W2: broken workflow files give their code at their line and column, offline; no text ends in a traceback."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime

FOLDER = Path(__file__).parent / "broken"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECT = re.compile(r"# expect: (\S+) (\S+):(\S+) exit (\d)")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(FOLDER) as made:
        yield made


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_broken_file_is_told_where_and_what(path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("validate opened a socket")

    monkeypatch.setattr(socket, "socket", no_network)
    expected = EXPECT.match(path.read_text().splitlines()[0])
    assert expected is not None
    try:
        found = runtime.validate(runtime.parse(path))
        assert not found.valid, "it is valid"
        problems = [p for p in found.problems if p.severity == "error"]
    except DataflareError as error:
        problems = error.problems
    first = problems[0]
    assert (first.code, str(first.line), str(first.column)) == expected.groups()[:3]
    assert DataflareError(*problems).exit_code == int(expected[4]) == 3
    assert first.file == str(path)
    assert first.message
    assert first.fix


def test_json_and_yaml_give_the_same_model(runtime: Runtime, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "flights" / "flights.yaml"
    document = yaml.safe_load(re.sub(r"\bon:", "'on':", example.read_text()))
    (tmp_path / "flights.json").write_text(json.dumps(document))
    (tmp_path / "flights.yaml").write_text(example.read_text())
    one, other = (runtime.parse(tmp_path / f"flights.{ending}") for ending in ("yaml", "json"))
    assert one.nodes == other.nodes
    assert (one.name, one.settings) == (other.name, other.settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("yes", "yes"), ("012", 12), ("0o14", 12), ("0x1F", 31), ("1:30", "1:30"), ("1_000", "1_000"), ("true", True),
     ("TRUE", True), ("~", None), ("null", None), ("1e3", 1000.0), (".5", 0.5), ("-.inf", float("-inf")), ("2026-01-01", "2026-01-01"),
     ("'5'", "5"), ("!!str 5", "5"), ("+7", 7), ("1.", 1.0), (".", "."), ("-", "-")],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

    if text == "-":
        return
    found = load_yaml(f"a: {text}\n").value["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_billion_laughs_are_cut_short() -> None:
    from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(DataflareError) as caught:
        load_yaml(text)
    assert caught.value.code == "workflow.too-big"


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_three_thousand_levels_are_refused(ending: str, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / f"deep.{ending}"
    path.write_text('{"a": ' + "[" * 3000 + "]" * 3000 + "}")
    with pytest.raises(DataflareError) as caught:
        runtime.parse(path)
    assert caught.value.code == "workflow.too-big"


def test_pairs_of_surrogates_in_json_are_one_character(tmp_path: Path) -> None:
    from dataflare_plugins.engine.parsing.json_loader import load_json

    assert load_json('{"a": "\\ud83d\\ude00"}').value == {"a": "😀"}
    with pytest.raises(DataflareError):
        load_json('{"a": "\\ud83d"}')


@settings(max_examples=300, deadline=None)
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                          lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20))  # fmt: skip
def test_json_is_read_as_python_reads_it(value: object) -> None:
    from dataflare_plugins.engine.parsing.json_loader import load_json

    try:
        text = json.dumps(value)
        text.encode()
        wanted = json.loads(text)
        json.dumps(wanted, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert load_json(text).value == wanted


VALID = (Path(__file__).parents[2] / "examples" / "flights" / "flights.yaml").read_text()


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid workflow with a few pieces cut out, doubled, or replaced by noise."""
    text = VALID
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 40)))
        noise = draw(
            st.sampled_from(
                ["", text[start:stop] * 2, "\t", "{", "]", ": ", "- ", "'", "&a ", "*a", "!!int ", "\x00", "null", "{}", "[]", "…", "|\n"]
            )
        )
        text = text[:start] + noise + text[stop:]
    return text


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=80) | mutated(), ending=st.sampled_from(["yaml", "json"]))
def test_no_text_ends_in_a_traceback(text: str, ending: str, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{ending}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        runtime.parse(path)
    except DataflareError as error:
        assert all(p.code and p.message for p in error.problems)
        assert "internal.bug" not in [p.code for p in error.problems]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=60))
def test_no_bytes_end_in_a_traceback(raw: bytes, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(raw)
    try:
        runtime.parse(path)
    except DataflareError as error:
        assert error.exit_code in (3, 4)
