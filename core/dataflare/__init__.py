"""DataFlare: one workflow file moves rows from sources through processors to destinations.

::

    import dataflare

    run = dataflare.run("orders.yaml", params={"since": "2026-01-01"})
    print(run.status, run.rows)

Names are loaded on first use: `import dataflare` itself imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataflare.api import Run as Run
    from dataflare.api import run as run
    from dataflare.api import run_async as run_async
    from dataflare.errors import DataflareError as DataflareError
    from dataflare.errors import Problem as Problem

__all__ = ["DataflareError", "Problem", "Run", "run", "run_async"]

_HOME = {"DataflareError": "errors", "Problem": "errors", "Run": "api", "run": "api", "run_async": "api"}


def __getattr__(name: str) -> object:
    """Load a public name from the room it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
