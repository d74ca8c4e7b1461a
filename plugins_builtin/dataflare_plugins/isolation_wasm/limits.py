"""Limits of one plugin, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_plugins.isolation_wasm.faults import INVALID
from dataflare_sdk.fields import parse_duration, parse_size
from dataflare_sdk.records import record

PAGE = 65_536
MOST = 4 << 30


@record
class Limits:
    """What one instance may use.

    Attributes:
        memory: bytes of linear memory.
        deadline: seconds a call may take, by the clock; a guest cannot wait for anything but its own work and HTTP.
    """

    memory: int = 256 << 20
    deadline: float = 30.0

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Limits:
        """Read `limits` of a manifest: `memory`, `deadline`, `cpu_per_batch`; the stricter of the two times counts.

        Raises:
            DataflareError: `wasm.invalid-module`.
        """
        try:
            memory = parse_size(str(asked.get("memory", "256MiB")))
            times = [parse_duration(str(asked[name])) for name in ("deadline", "cpu_per_batch") if name in asked]
        except ValueError as error:
            raise INVALID.error(f"its limits cannot be read: {error}") from None
        if not PAGE <= memory <= MOST:
            raise INVALID.error(f"its limit of memory is {memory} bytes; it must be between {PAGE} and {MOST}")
        return cls(memory, min(times, default=30.0))
