import pytest

from dataflare.errors import DataflareError
from dataflare.manifest import Component, Manifest
from dataflare.registry import Registry


def plugin(name: str, *components: str, origin: str = "", version: str = "1.0", isolation: str = "inprocess") -> Manifest:
    provides = tuple(Component(*c.split("/"), f"{name}:X") for c in components)
    return Manifest(name, version, "1", f"{name}.example", isolation, provides, origin=origin or f"{name} {version}")


BUILT_IN = plugin("dataflare-files", "source/csv", "destination/csv", origin="dataflare 0.1.0")
SQUATTER = plugin("evil", "source/csv")
ACME = plugin("acme", "source/thing", version="1.4")
OTHER = plugin("other", "source/thing", version="2.0", isolation="wasm")


def found(use: str, *manifests: Manifest, kind: str = "source", **prefer: str) -> str:
    registry = Registry(manifests, {k.replace("__", "/"): v for k, v in prefer.items()})
    return registry.find(kind, use).manifest.name


def test_kinds_are_apart() -> None:
    assert found("csv", BUILT_IN, kind="destination") == "dataflare-files"
    with pytest.raises(DataflareError, match=r"plugin\.unknown"):
        found("csv", BUILT_IN, kind="processor")


def test_a_built_in_name_wins_over_a_squatter_unless_preferred() -> None:
    assert found("csv", SQUATTER, BUILT_IN) == "dataflare-files"
    assert [e.manifest.name for e in Registry([SQUATTER, BUILT_IN]).all("source")] == ["dataflare-files"]
    assert found("csv", SQUATTER, BUILT_IN, source__csv="evil") == "evil"
    assert found("evil/csv", SQUATTER, BUILT_IN) == "evil"


def test_two_strangers_are_ambiguous_and_both_origins_named() -> None:
    with pytest.raises(DataflareError) as caught:
        found("thing", ACME, OTHER)
    assert caught.value.code == "plugin.ambiguous"
    assert "acme 1.4" in str(caught.value)
    assert "other 2.0" in str(caught.value)
    assert found("thing", ACME, OTHER, source__thing="other") == "other"


@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("acme/thing", "acme"),
        ("other.example/thing", "other"),
        ("thing@>=1,<2", "acme"),
        ("thing@2.0", "other"),
        ("wasm:thing", "other"),
        ("acme/thing@~=1.2", "acme"),
    ],
)
def test_forms_of_use(use: str, name: str) -> None:
    assert found(use, ACME, OTHER) == name


@pytest.mark.parametrize("use", ["thing@>3", "nobody/thing", "process:thing"])
def test_what_is_installed_is_named_when_nothing_fits(use: str) -> None:
    with pytest.raises(DataflareError, match=r"installed: acme 1\.4"):
        found(use, ACME)


@pytest.mark.parametrize(("use", "fix"), [("thign", "did you mean 'thing'?"), ("", "there are: thing"), ("a/b/c", "there are: thing")])
def test_unknown_names_the_nearest(use: str, fix: str) -> None:
    with pytest.raises(DataflareError) as caught:
        found(use, ACME)
    assert caught.value.exit_code == 3
    assert caught.value.problems[0].fix == fix
