import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.config import KNOWN, Configuration, Layer, Substituted, explain, hide, merge, reveal, substitute
from dataflare.errors import DataflareError


def refused(*args: Any, **options: Any) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        substitute(*args, **options)
    return caught.value


def test_precedence_of_all_five_layers(tmp_path: Path) -> None:
    (tmp_path / ".dataflare").mkdir()
    file = tmp_path / ".dataflare" / "config.yaml"
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}

    def level(**options: Any) -> tuple[str, str]:
        found = Configuration.load(tmp_path, **{"env": env, **options}).explain()["log.level"]
        return found["value"], found["origin"]

    assert level() == ("warning", "default")
    file.write_text("log: {level: info}\nprofiles: {edge: {log: {level: error}}}\n")
    assert level() == ("info", str(file))
    assert level(profile="edge") == ("error", f"profile edge in {file}")
    env["DATAFLARE_LOG_LEVEL"] = "debug"
    assert level(profile="edge") == ("debug", "DATAFLARE_LOG_LEVEL")
    assert level(profile="edge", flags={"log.level": "off"}) == ("off", "flag")
    over = Configuration.load(tmp_path, profile="edge", flags={"log.level": "off"}, env=env).explain()["log.level"]
    assert [o["value"] for o in over["overrides"]] == ["debug", "error", "info", "warning"]


@given(st.lists(st.dictionaries(st.sampled_from(["a.b", "a.c", "d"]), st.integers()), min_size=1, max_size=6))
def test_the_last_layer_that_names_a_key_wins(layers: list[dict[str, int]]) -> None:
    found = explain([Layer(str(i), values) for i, values in enumerate(layers)])
    for key in {k for values in layers for k in values}:
        says = [i for i, values in enumerate(layers) if key in values]
        assert (found[key]["value"], found[key]["origin"]) == (layers[says[-1]][key], str(says[-1]))
        assert [o["origin"] for o in found[key]["overrides"]] == [str(i) for i in reversed(says[:-1])]


def test_environment_values_take_the_type_of_the_setting(tmp_path: Path) -> None:
    env = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "DATAFLARE_LOG_JSON": "true",
        "DATAFLARE_SECRETS_PROVIDERS": "file, env",
        "DATAFLARE_PLUGINS_PREFER": "source/csv=acme",
    }
    made = Configuration.load(tmp_path, env=env)
    assert made.get("log.json") is True
    assert made.get("secrets.providers") == ["file", "env"]
    assert made.get("plugins.prefer") == {"source/csv": "acme"}


@pytest.mark.parametrize(
    ("text", "code", "path"),
    [
        ("log: {levle: info}", "config.unknown-key", "log.levle"),
        ("log: {json: 'yes'}", "config.invalid", "log.json"),
        ("log: 3", "config.unknown-key", "log"),
        ("- a", "config.bad-file", None),
        ("a: [", "config.bad-file", None),
    ],
)
def test_what_is_unknown_or_wrong_is_refused(tmp_path: Path, text: str, code: str, path: str | None) -> None:
    (tmp_path / ".dataflare").mkdir()
    (tmp_path / ".dataflare" / "config.yaml").write_text(text)
    with pytest.raises(DataflareError) as caught:
        Configuration.load(tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert (caught.value.code, caught.value.problems[0].path) == (code, path)
    assert caught.value.exit_code == 3


def test_every_setting_has_a_default() -> None:
    assert set(Configuration().explain()) == set(KNOWN)


def test_merge_is_deep_and_replaces_lists() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": 4}) == {"a": {"b": 1, "c": [3]}, "d": 4}


def test_substitution() -> None:
    env = {"HOST": "db", "PORT": "5432", "EMPTY": ""}
    params = {"n": 7, "on": True, "since": "2026-01-01"}
    document = {
        "${env:HOST}": "${env:HOST}",
        "port": "${env:PORT}",
        "url": "pg://${env:HOST}:${env:PORT}/${param:since}?on=${param:on}",
        "n": "${param:n}",
        "default": ["${env:NOPE:-x:-y}", "${env:EMPTY:-filled}", "${env:EMPTY}", "${env:NOPE:-}"],
        "escaped": "$${env:HOST} ${secret:file/a} $HOME ${other}",
        "kept": [1, None, True, 2.5],
    }
    made = substitute(document, env, params)
    assert made == {
        "${env:HOST}": "db",
        "port": "5432",
        "url": "pg://db:5432/2026-01-01?on=true",
        "n": 7,
        "default": ["x:-y", "filled", "", ""],
        "escaped": "${env:HOST} ${secret:file/a} $HOME ${other}",
        "kept": [1, None, True, 2.5],
    }
    assert isinstance(made["port"], Substituted)
    assert not isinstance(made["url"], Substituted)


def test_a_value_never_becomes_structure_or_another_reference() -> None:
    env = {"EVIL": "{a: 1}", "LOOP": "${env:LOOP} $${x}"}
    assert substitute(["${env:EVIL}", "x${env:LOOP}"], env, {}) == ["{a: 1}", "x${env:LOOP} $${x}"]


def test_all_that_is_unset_is_reported_with_its_path() -> None:
    error = refused({"a": [{"b": "${env:NO}"}], "c": "x${param:sinse}"}, {}, {"since": 1}, ("with",))
    assert [(p.code, p.path) for p in error.problems] == [
        ("config.unset-variable", "with.a[0].b"),
        ("config.unknown-param", "with.c"),
    ]
    assert error.problems[1].fix == "did you mean 'since'?"
    assert error.exit_code == 3


@given(st.recursive(st.text() | st.integers() | st.none(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_what_has_no_reference_is_left_alone(value: Any) -> None:
    assert "${" in repr(value) or substitute(value, {}, {}) == value


@given(st.text())
def test_an_escaped_text_comes_out_as_it_was(text: str) -> None:
    plain = text.replace("$", "")
    assert substitute("$${" + plain, {}, {}) == "${" + plain


def test_what_came_from_the_environment_is_a_reference_in_documents() -> None:
    env = {"PASSWORD": "canary-4711", "URL": "postgresql://app:canary-4711@db/shop", "T": "t"}
    document = {
        "url": "${env:URL}",
        "dsn": "user=app password=${env:PASSWORD} dbname=${param:db}",
        "table": "${env:T}",
        "port": "${env:PORT:-5432}",
        "plain": "t",
        "kept": "$${env:PASSWORD} ${secret:token}",
    }
    made = substitute(document, env, {"db": "shop ${x}"})
    # A text that was made of one of them holds it too.
    made = {**made, "statement": f"ATTACH '{made['url']}'", "list": [made["dsn"], 5, None]}
    shown = hide(made)
    assert "canary" not in repr(shown)
    assert shown["url"] == "${env:URL}"
    assert shown["dsn"] == "user=app password=${env:PASSWORD} dbname=shop $${x}"
    assert shown["statement"] == "ATTACH '${env:URL}'"
    assert (shown["table"], shown["plain"], shown["port"]) == ("${env:T}", "t", "${env:PORT:-5432}")
    assert reveal(json.loads(json.dumps(shown)), env) == made
    with pytest.raises(DataflareError) as caught:
        reveal(shown, {})
    assert {p.code for p in caught.value.problems} == {"config.unset-variable"}


TEXTS = st.text(st.sampled_from("$${}abc:env secret:"), max_size=20)


@given(
    st.dictionaries(st.sampled_from("abc"), st.one_of(TEXTS, st.lists(TEXTS), st.integers())), st.text("abc$ {}", min_size=1, max_size=12)
)
def test_hiding_loses_nothing(document: dict[str, Any], value: str) -> None:
    made = {**document, "v": substitute("${env:V}", {"V": value}, {}), "w": substitute("x${env:V}y", {"V": value}, {})}
    assert reveal(hide(made), {"V": value}) == made
