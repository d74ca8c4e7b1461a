"""A stranger's JSON Schema checks a configuration; nothing of it is fetched or run."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataflare_sdk import DataflareError
from dataflare_sdk.config_schema import LONGEST, check, load


def schema(folder: Path, made: Any) -> Any:
    (folder / "x.json").write_text(made if isinstance(made, str) else json.dumps(made))
    return load(folder / "x.json")


def problems(made: Any, raw: Any) -> list[tuple[str, str | None]]:
    with pytest.raises(DataflareError) as caught:
        check(made, raw, ("sources", "a", "with"))
    return [(p.code, p.path) for p in caught.value.problems]


def test_every_problem_with_its_path(tmp_path: Path) -> None:
    made = schema(
        tmp_path,
        {
            "type": "object",
            "required": ["url"],
            "properties": {"n": {"type": "integer"}, "l": {"items": {"$ref": "#/$defs/t"}}},
            "$defs": {"t": {"type": "string"}},
        },
    )
    check(made, {"url": "x", "n": 3, "l": ["a"]})
    assert problems(made, {"n": "x", "l": ["a", 1]}) == [
        ("config.invalid", "sources.a.with"),
        ("config.invalid", "sources.a.with.l[1]"),
        ("config.invalid", "sources.a.with.n"),
    ]


def test_no_pattern_is_run(tmp_path: Path) -> None:
    """`(a+)+$` over these letters would take longer than the age of the universe."""
    made = schema(tmp_path, {"properties": {"a": {"pattern": "(a+)+$"}}, "patternProperties": {"(a+)+$": {"type": "null"}}})
    check(made, {"a": "a" * 60 + "!", "a" * 60 + "!": 1})


@pytest.mark.parametrize(
    "made",
    [{"$ref": "http://127.0.0.1/x"}, {"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "{", "[" * 100_000, " " * (LONGEST + 1)],
    ids=["http", "file", "cut", "deep", "long"],
)
def test_schemas_that_are_not_taken(tmp_path: Path, made: Any) -> None:
    with pytest.raises(ValueError):
        schema(tmp_path, made)


@pytest.mark.parametrize(
    "made", [{"$ref": "#"}, {"type": 7}, {"$ref": "#/nowhere"}, {"properties": 1}], ids=["endless", "no-type", "nowhere", "no-map"]
)
def test_schemas_that_are_none_are_told(made: Any, tmp_path: Path) -> None:
    assert problems(schema(tmp_path, made), {"a": 1}) == [("config.invalid", "sources.a.with")]


def test_references_that_double_each_other_end(tmp_path: Path) -> None:
    parts = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)}
    made = schema(tmp_path, {"$ref": "#/$defs/a0", "$defs": {**parts, "a60": {"type": "object"}}})
    assert problems(made, {"n": 1}) == [("config.invalid", "sources.a.with")]
    check({**made, "$ref": "#/$defs/a52"}, {"n": 1})
    made = schema(tmp_path, {"unevaluatedProperties": False, "$ref": "#/$defs/a0", "$defs": {**parts, "a60": True}})
    assert "unevaluatedProperties" not in made, "it follows references by itself"
