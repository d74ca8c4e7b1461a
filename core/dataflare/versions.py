"""Version ranges, as manifests and `use: NAME@RANGE` write them."""

from __future__ import annotations

import re

__all__ = ["in_range", "older"]


def in_range(version: str, versions: str) -> bool:
    """Return whether a version lies in a range like `>=1,<2`, `1.2` (any 1.2.x) or `~=1.4`.

    Only the numbers of a release are compared; what follows them (`rc1`, `+local`) is not.
    """
    have = _numbers(version)
    return all(_satisfies(have, part.strip()) for part in versions.split(",") if part.strip())


def _satisfies(have: tuple[int, ...], part: str) -> bool:
    found = re.fullmatch(r"(>=|<=|==|!=|~=|>|<|)\s*([\d.]+)(?:\.\*)?", part)
    if not found:
        return False
    operator, wanted = found[1], _numbers(found[2])
    if operator == "":
        return have[: len(wanted)] == wanted
    if operator == "~=":
        return have >= wanted and have[: len(wanted) - 1] == wanted[:-1]
    width = max(len(have), len(wanted))
    a, b = have + (0,) * (width - len(have)), wanted + (0,) * (width - len(wanted))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, ">": a > b, "<": a < b}[operator]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.match(r"[\d.]*", version)[0].split(".") if n)  # type: ignore[index]


def older(version: str, than: str) -> bool:
    """Return whether a version comes before another, by the numbers of their releases."""
    a, b = _numbers(version), _numbers(than)
    width = max(len(a), len(b))
    return a + (0,) * (width - len(a)) < b + (0,) * (width - len(b))
