"""Arrow's compute functions. They are made at run time, so no type checker knows them: here they are `Any`."""

from __future__ import annotations

import importlib
from typing import Any


class _Compute:
    """Stands for `pyarrow.compute` and imports it when the first function is asked for.

    The import costs 15 ms, a tenth of a run over ten rows, and a run in the bulk lane calls none of it.
    """

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module("pyarrow.compute"), name)
        setattr(self, name, value)
        return value


pc: Any = _Compute()
"""The module `pyarrow.compute`."""
