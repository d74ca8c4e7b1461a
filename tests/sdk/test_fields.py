"""Properties of declared configuration: parse, to_plain and json_schema agree about every value."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.config import Substituted
from dataflare.errors import DataflareError
from dataflare_sdk.fields import (
    Duration,
    Query,
    Size,
    Sql,
    config,
    documented,
    json_schema,
    nearest,
    option,
    parse,
    parse_duration,
    parse_size,
    to_plain,
)


@config
class Inner:
    """A block within a block."""

    table: str = option("Which table.")
    limit: int = option("How many.", default=10, minimum=1, maximum=100)


@config
class Outer:
    """Everything that a block may have."""

    url: str = option("Where it is.", example="https://acme.example")
    page: int = option("Rows per request.", default=500, minimum=1, maximum=10_000)
    share: float = option("How much.", default=0.5, minimum=0.0, maximum=1.0)
    strict: bool = option("Whether to be strict.", default=False)
    mode: Literal["fast", "safe"] = option("Which way.", default="safe")
    since: Duration | None = option("How far back.", default=None)
    wait: Duration = option("How long.", default=0.5)
    memory: Size = option("How much memory.", default=1 << 20)
    where: Sql | None = option("Which rows.", default=None)
    query: Query | None = option("What to read.", default=None)
    names: list[str] = option("Some names.", default_factory=list)
    pair: tuple[int, ...] = option("Some numbers.", default=())
    limits: dict[str, int] = option("Limits by name.", default_factory=dict)
    pauses: list[Duration] = option("Pauses.", default_factory=list)
    sizes: dict[str, Size] = option("Sizes by name.", default_factory=dict)
    inner: Inner | None = option("A block.", default=None)
    inners: list[Inner] = option("Blocks.", default_factory=list)
    by_name: dict[str, Inner] = option("Blocks by name.", default_factory=dict)
    key: str | list[str] = option("One name or several.", default="id")
    from_: str = option("Python's own word.", default="here")


# Text that ${…} would stand for is resolved before a block is parsed.
text = st.text(max_size=8).filter(lambda s: "${" not in s)
durations = st.builds("{}{}".format, st.integers(0, 10_000), st.sampled_from(["ms", "s", "m", "h", "d"]))
sizes = st.builds("{}{}".format, st.integers(0, 10_000), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
inners = st.fixed_dictionaries({"table": text}, optional={"limit": st.integers(1, 100)})
sql = st.one_of(st.integers(), st.booleans(), st.text(min_size=1, max_size=8).filter(str.strip))
OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "page": st.integers(1, 10_000),
    "share": st.one_of(st.floats(0, 1), st.integers(0, 1)),
    "strict": st.booleans(),
    "mode": st.sampled_from(["fast", "safe"]),
    "since": durations,
    "wait": durations,
    "memory": sizes,
    "where": sql,
    "query": st.just("SELECT 1"),
    "names": st.lists(text, max_size=3),
    "pair": st.lists(st.integers(), max_size=3),
    "limits": st.dictionaries(text, st.integers(), max_size=3),
    "pauses": st.lists(durations, max_size=3),
    "sizes": st.dictionaries(text, sizes, max_size=3),
    "inner": inners,
    "inners": st.lists(inners, max_size=2),
    "by_name": st.dictionaries(text, inners, max_size=2),
    "key": st.one_of(text, st.lists(text, max_size=2)),
    "from": text,
}
blocks = st.fixed_dictionaries({"url": text}, optional=OPTIONAL)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 200), st.floats(allow_nan=False, allow_infinity=False), text, durations, sizes),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(text, inner, max_size=2)),
    max_leaves=4,
)
VALIDATOR = jsonschema.Draft202012Validator(json_schema(Outer))


@given(blocks)
def test_what_was_parsed_is_written_back_and_parsed_to_the_same(raw: dict[str, Any]) -> None:
    made = parse(Outer, raw)
    plain = to_plain(made)
    assert parse(Outer, plain) == made
    assert to_plain(parse(Outer, plain)) == plain


@given(blocks)
def test_the_schema_accepts_what_parse_accepts(raw: dict[str, Any]) -> None:
    parse(Outer, raw)
    VALIDATOR.validate(raw)
    VALIDATOR.validate(to_plain(parse(Outer, raw)))


@given(st.sampled_from(sorted(OPTIONAL)), anything)
def test_no_value_makes_parse_fall_over_and_the_schema_is_never_stricter(key: str, value: Any) -> None:
    raw = {"url": "u", key: value}
    try:
        made = parse(Outer, raw)
    except DataflareError as error:
        assert all(p.path and p.path.startswith(key) for p in error.problems)
        return
    assert parse(Outer, to_plain(made)) == made
    if value is not None:  # an empty key is taken for an absent one; editors may still ask for a value
        VALIDATOR.validate(raw)


@given(st.dictionaries(st.sampled_from(["url2", "pages", "shared", "modes"]), anything, min_size=1))
def test_every_unknown_key_is_named_with_the_nearest(extra: dict[str, Any]) -> None:
    with pytest.raises(DataflareError) as caught:
        parse(Outer, {"url": "u", **extra}, ("sources", "a", "with"))
    near = {"url2": "url", "pages": "page", "shared": "share", "modes": "mode"}
    assert {(p.code, p.path, p.fix) for p in caught.value.problems} == {
        ("config.unknown-key", f"sources.a.with.{key}", f"did you mean '{near[key]}'?") for key in extra
    }


def test_all_problems_come_at_once_each_at_its_place() -> None:
    raw = {"pgae": 1, "page": 0, "share": "much", "mode": "slow", "inner": {"limit": 1000}, "names": ["a", 2], "pauses": ["1s", "1"]}
    with pytest.raises(DataflareError) as caught:
        parse(Outer, raw)
    assert {(p.code, p.path) for p in caught.value.problems} == {
        ("config.unknown-key", "pgae"),
        ("config.missing-key", "url"),
        ("config.invalid", "page"),
        ("config.invalid", "share"),
        ("config.invalid", "mode"),
        ("config.missing-key", "inner.table"),
        ("config.invalid", "inner.limit"),
        ("config.invalid", "names[1]"),
        ("config.invalid", "pauses[1]"),
    }


@pytest.mark.parametrize("raw", [[], "text", 1, True])
def test_a_block_is_a_mapping(raw: Any) -> None:
    with pytest.raises(DataflareError, match="expected a mapping"):
        parse(Outer, raw)


@pytest.mark.parametrize(
    ("key", "value"), [("page", True), ("strict", 1), ("mode", True), ("names", "abc"), ("where", " "), ("wait", 5), ("memory", 5)]
)
def test_a_neighbouring_type_is_refused(key: str, value: Any) -> None:
    with pytest.raises(DataflareError) as caught:
        parse(Outer, {"url": "u", key: value})
    assert [(p.code, p.path) for p in caught.value.problems] == [("config.invalid", key)]


def test_text_from_the_environment_is_read_as_the_fields_type() -> None:
    made = parse(Outer, {"url": Substituted("u"), "page": Substituted("7"), "share": Substituted("0.25"), "strict": Substituted("true")})
    assert (made.url, made.page, made.share, made.strict) == ("u", 7, 0.25, True)
    with pytest.raises(DataflareError, match="expected a whole number"):
        parse(Outer, {"url": "u", "page": Substituted("many")})


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations_are_seconds(count: int, unit: tuple[str, float]) -> None:
    assert parse_duration(f" {count}{unit[0]} ") == pytest.approx(count * unit[1])


@given(
    st.integers(0, 10**6),
    st.sampled_from([("B", 1), ("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)]),
)
def test_sizes_are_bytes(count: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{count}{unit[0]}") == count * unit[1]


@pytest.mark.parametrize("wrong", ["", "5", "s", "-1s", "1.5h", "1 s", "1MiB"])
def test_what_is_no_duration_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(wrong)


def test_a_configuration_is_frozen_hashable_and_compared_by_value() -> None:
    one, same = parse(Inner, {"table": "t"}), parse(Inner, {"table": "t"})
    assert one == same
    assert hash(one) == hash(same)
    assert one != parse(Inner, {"table": "u"})
    assert repr(one) == "Inner(table='t', limit=10)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.table = "u"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.table


def test_every_key_is_documented() -> None:
    docs = {d.name: d for d in documented(Outer)}
    assert list(docs) == list(json_schema(Outer)["properties"])
    assert docs["url"].required
    assert docs["url"].example == "https://acme.example"
    assert not docs["page"].required
    assert docs["from"].doc == "Python's own word."
    assert all(d.type and d.doc for d in docs.values())


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=5))
def test_the_nearest_word_is_one_of_the_words(word: str, words: list[str]) -> None:
    assert nearest(word, words) in (*words, None)
    assert nearest(word, [*words, word]) == word
