"""Arrow's compute functions. They are made at run time, so no type checker knows them: here they are `Any`."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute
"""The module `pyarrow.compute`."""
