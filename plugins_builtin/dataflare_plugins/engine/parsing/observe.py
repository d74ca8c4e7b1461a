"""The monitors that `observe:` names, in one form: a list of what to build and for which signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dataflare_plugins.engine.parsing.blocks import Observe

WRONG = "expected the name of a monitor, a mapping of one name to its keys, or a list of these"


def monitors(block: Observe, wrong: Callable[[str, tuple[str | int, ...]], None]) -> list[dict[str, Any]]:
    """Return the monitors that are asked for.

    Args:
        block: the parsed block.
        wrong: told what is wrong, and where.

    Returns:
        Of each `for`: one of `SIGNALS`; `use`: its name; `with`: its keys, `${secret:}` unresolved; `path`: where those stand.
    """
    found: list[dict[str, Any]] = []
    for signal in ("metrics", "traces", "lineage"):
        for value, path in _each(getattr(block, signal), ("observe", signal)):
            if isinstance(value, str) and value:
                found.append({"for": signal, "use": str(value), "with": {}, "path": list(path)})
            elif isinstance(value, Mapping) and len(value) == 1:
                use, keys = next(iter(value.items()))
                if keys is None or isinstance(keys, Mapping):
                    found.append({"for": signal, "use": str(use), "with": dict(keys or {}), "path": [*path, str(use)]})
                else:
                    wrong("expected a mapping of the monitor's keys", (*path, str(use)))
            else:
                wrong(WRONG, path)
    for value, path in _each(block.webhook, ("observe", "webhook")):
        if isinstance(value, Mapping):
            found.append({"for": "webhook", "use": "webhook", "with": dict(value), "path": list(path)})
        else:
            wrong("expected a mapping with the keys of a webhook, or a list of these", path)
    return found


def _each(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    if isinstance(value, list):
        yield from ((inner, (*path, i)) for i, inner in enumerate(value))
    elif value is not None:
        yield value, path
