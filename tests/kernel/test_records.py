"""A `record` behaves as the frozen dataclass with slots that it stands for; the standard library is the oracle."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.records import field, record


@record
class Mine:
    """One of ours."""

    a: int
    b: str = "x"
    c: Mapping[str, int] = field(default_factory=dict)
    secret: str = field(default="s", repr=False)

    def double(self) -> int:
        return 2 * self.a


@dataclasses.dataclass(frozen=True, slots=True)
class Oracle:
    """The same, by the standard library."""

    a: int
    b: str = "x"
    c: Mapping[str, int] = field(default_factory=dict)
    secret: str = field(default="s", repr=False)


@record
class Nothing:
    """No fields."""


@record
class More(Mine):
    """Inherited fields come first."""

    d: int = 5


@record
class Loose:
    """Says itself what is equal."""

    a: int

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7


values = st.fixed_dictionaries(
    {"a": st.integers()}, optional={"b": st.text(), "c": st.dictionaries(st.text(max_size=3), st.integers()), "secret": st.text()}
)


@given(values, values)
def test_it_is_built_shown_and_compared_as_a_dataclass_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert repr(Mine(**one)) == repr(Oracle(**one)).replace("Oracle", "Mine")
    assert (Mine(**one) == Mine(**other)) == (Oracle(**one) == Oracle(**other))
    assert dataclasses.asdict(Mine(**one)) == dataclasses.asdict(Oracle(**one))
    assert dataclasses.replace(Mine(**one), a=1) == Mine(**{**one, "a": 1})


@given(values)
def test_it_can_be_copied_and_sent(one: dict[str, Any]) -> None:
    made = Mine(**one)
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == copy.deepcopy(made) == made


def test_equal_ones_hash_alike_and_other_classes_are_never_equal() -> None:
    assert hash(Nothing()) == hash(Nothing())
    assert {Mine(1, c=()): 1}[Mine(1, c=())] == 1  # type: ignore[arg-type]
    assert Mine(1) != Oracle(1)
    assert More(1) != Mine(1)
    with pytest.raises(TypeError):
        hash(Mine(1))  # a dict inside, as with a dataclass


def test_its_own_comparison_is_kept() -> None:
    assert Loose(1) == Loose(2)
    assert hash(Loose(1)) == 7


def test_nothing_can_be_changed() -> None:
    made = Mine(1)
    for change in (lambda: setattr(made, "a", 2), lambda: setattr(made, "new", 2), lambda: delattr(made, "a")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert made == Mine(1)
    assert not hasattr(made, "__dict__")


def test_every_instance_has_its_own_default() -> None:
    assert Mine(1).c is not Mine(1).c
    assert More(1, d=3) == More(1, "x", {}, "s", 3)


def test_it_is_called_and_matched_as_a_dataclass_is() -> None:
    mine, oracle = (str(inspect.signature(c)).replace(" ", "") for c in (Mine, Oracle))
    assert [p.partition("=")[0] for p in mine.split(",")] == [p.partition("=")[0] for p in oracle.split(",")]
    assert Mine.__match_args__ == Oracle.__match_args__  # type: ignore[attr-defined]
    for wrong in ((), (1, 2, 3, 4, 5)):
        with pytest.raises(TypeError):
            Mine(*wrong)
    with pytest.raises(TypeError):
        Mine(1, z=2)  # type: ignore[call-arg]


def test_two_threads_may_ask_for_the_first_one_at_once() -> None:
    """Both have looked the stand-in up before either has put the compiled method in its place."""

    @record
    class Fresh:
        a: int
        b: tuple[int, ...] = ()

    looked_up = Fresh.__dict__["__init__"]
    first, second = (looked_up.__get__(None, Fresh) for _ in range(2))
    for init in (first, second):
        made = Fresh.__new__(Fresh)
        init(made, 1, b=(2,))
        assert made == Fresh(1, (2,))
