"""Grants made concrete: `${config.host}` stands for what the operator's workflow says, never for a default of the plugin.

expand({"net": [{"host": "${config.host}", "port": "${config.port}"}]}, {"host": "db.example", "port": 5432})
== {"net": [{"host": "db.example", "port": 5432}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLACE = re.compile(r"\$\{config\.([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}")


def expand(grants: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return grants in which every `${config.x}` is the workflow's value.

    An entry that is nothing but a placeholder takes the value's type; a list gives an entry for each of its values. An
    entry whose placeholder the workflow leaves out is dropped: nothing is allowed by it.

    Args:
        grants: effective capabilities of a plugin, by kind, as a loader is given them.
        config: the `with:` block of the node, as the operator wrote it.
    """
    made: dict[str, Any] = {}
    for kind, asked in grants.items():
        if isinstance(asked, Mapping | str) or not isinstance(asked, Sequence):
            made[kind] = asked
        else:
            made[kind] = [entry for one in asked for entry in _entries(one, config)]
    return made


def _entries(entry: Any, config: Mapping[str, Any]) -> Iterator[Any]:
    if not isinstance(entry, Mapping):
        yield entry
        return
    made: list[dict[str, Any]] = [{}]
    for key, value in entry.items():
        # `why` is for people; what it says grants nothing.
        found = [value] if key == "why" else _values(value, config)
        made = [{**one, key: v} for one in made for v in found]
    yield from made


def _values(value: Any, config: Mapping[str, Any]) -> list[Any]:
    if not isinstance(value, str):
        return [value]
    whole = _PLACE.fullmatch(value)
    if whole:
        given = _look(whole[1], config)
        many = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        return [v for v in many if isinstance(v, str | int | float) and not isinstance(v, bool)]
    found = [_look(m[1], config) for m in _PLACE.finditer(value)]
    if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in found):
        return []
    return [_PLACE.sub(lambda m: str(_look(m[1], config)), value)]


def _look(path: str, config: Mapping[str, Any]) -> Any:
    found: Any = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
