"""Plain immutable data: what a frozen dataclass with slots is, defined in a third of its time.

`dataclass` compiles six methods for every class. A run imports more than a hundred such classes and uses a few, and has to
start in a tenth of a second: here one method serves all of them, and `__init__` is compiled when it is first asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar, dataclass_transform

__all__ = ["Initialiser", "field", "record"]

T = TypeVar("T")
_set = object.__setattr__


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Turn a class of annotated fields into an immutable one with `__init__`, `==`, `hash` and `repr` over its fields.

    All that `dataclasses` offers for such classes (`field`, `replace`, `fields`, `asdict`) works on it.
    """
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    made.__init__ = Initialiser(made, _set)
    for name, method in _SHARED.items():
        if name not in cls.__dict__:
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


class Initialiser:
    """Stands in a class for `__init__`, and puts the compiled one in its place as soon as somebody asks for it.

    Several threads may ask at once: each compiles the same.

    Args:
        home: the class it stands in.
        assign: called with instance, name and value for every field.
        keywords: fields are given by name only.
    """

    def __init__(self, home: type[Any], assign: Callable[[Any, str, Any], None], *, keywords: bool = False) -> None:
        self._home = home
        self._assign = assign
        self._keywords = keywords

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        made: Any = self._compiled()
        setattr(self._home, "__init__", made)  # noqa: B010 - no type checker allows it otherwise
        return made if instance is None else made.__get__(instance, owner)

    def _compiled(self) -> Any:
        fields = dataclasses.fields(self._home)
        scope: dict[str, Any] = {"_set": self._assign, "_absent": dataclasses.MISSING}
        heads, lines = [], []
        for f in fields:
            head, value = f.name, f.name
            if f.default is not dataclasses.MISSING:
                head, scope[f"_default_{f.name}"] = f"{f.name}=_default_{f.name}", f.default
            elif f.default_factory is not dataclasses.MISSING:
                head, scope[f"_make_{f.name}"] = f"{f.name}=_absent", f.default_factory
                value = f"_make_{f.name}() if {f.name} is _absent else {f.name}"
            heads.append(head)
            lines.append(f" _set(self, {f.name!r}, {value})\n")
        given = ["self", *(["*"] if self._keywords and heads else []), *heads]
        exec(f"def __init__({', '.join(given)}):\n{''.join(lines) or ' pass'}", scope)  # noqa: S102 - names of fields only
        made = scope["__init__"]
        made.__annotations__ = {**{f.name: f.type for f in fields}, "return": None}
        made.__qualname__ = f"{self._home.__qualname__}.__init__"
        return made


def _held(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__dataclass_fields__])


def _same(self: Any, other: object) -> Any:
    return _held(self) == _held(other) if type(self) is type(other) else NotImplemented


def _hashed(self: Any) -> int:
    return hash(_held(self))


def _shown(self: Any) -> str:
    inner = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({inner})"


def _no_change(_self: Any, name: str, _value: Any = None) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to or delete field {name!r}")


def _restored(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__dataclass_fields__, state, strict=True):
        _set(self, name, value)


_SHARED = {
    "__eq__": _same,
    "__hash__": _hashed,
    "__repr__": _shown,
    "__setattr__": _no_change,
    "__delattr__": _no_change,
    "__getstate__": _held,
    "__setstate__": _restored,
}
