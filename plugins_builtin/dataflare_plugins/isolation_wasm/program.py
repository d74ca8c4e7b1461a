"""A program: one module of a plugin, verified and compiled, and the instances that components make of it."""

from __future__ import annotations

import json
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.isolation_wasm.describe import Description, parse
from dataflare_plugins.isolation_wasm.faults import LOST, QUARANTINED, TRAPPED, Trapped
from dataflare_plugins.isolation_wasm.guest import Guest
from dataflare_plugins.isolation_wasm.imports import HostFunctions
from dataflare_plugins.isolation_wasm.limits import Limits
from dataflare_sdk import DataflareError, config_schema
from dataflare_sdk.grants import expand
from dataflare_sdk.values import plain

FAILURES, WITHIN = 5, 60.0
"""A plugin that loses its state so often in so many seconds is not started again."""


class Program:
    """One module.

    Args:
        plugin: name of the plugin.
        file: file name of the module.
        name: name of the component.
        kind: `processor`, `source` or `destination`.
        features: what the manifest says it can do.
        wasm: its bytes.
        module: compiled and verified.
        grants: what the plugin was granted, not yet concrete.
        limits: what an instance may use.
        schema: JSON Schema of the configuration, None when there is none.
    """

    def __init__(
        self,
        plugin: str,
        file: str,
        name: str,
        kind: str,
        features: frozenset[str],
        wasm: bytes,
        module: Any,
        grants: Mapping[str, Any],
        limits: Limits,
        schema: Any = None,
    ) -> None:
        self.schema = schema
        self.plugin, self.file, self.name, self.kind, self.features = plugin, file, name, kind, features
        self.wasm, self.module, self.grants, self.limits = wasm, module, grants, limits
        self.started = 0
        self._lost: deque[float] = deque(maxlen=FAILURES)

    def configured(self, raw: Any, path: Sequence[str | int]) -> Mapping[str, Any]:
        """Return a `with:` block that fits the schema.

        Raises:
            DataflareError: `config.invalid`.
        """
        if self.schema is not None:
            config_schema.check(self.schema, raw or {}, path)
        found: Mapping[str, Any] = raw or {}
        return found

    def trapped(self, trap: Trapped) -> DataflareError:
        """Return the error for rows that made it trap."""
        return TRAPPED.error(f"'{self.name}' trapped: {trap}")

    def lost(self, trap: Trapped) -> DataflareError:
        """Return the error for a trap that took state with it: the run goes back to its checkpoint, unless it happens too often."""
        now = time.monotonic()
        self._lost.append(now)
        if len(self._lost) == FAILURES and now - self._lost[0] < WITHIN:
            return QUARANTINED.error(f"'{self.name}' of the plugin '{self.plugin}' trapped {FAILURES} times within {WITHIN:.0f} s: {trap}")
        return LOST.retriable(f"'{self.name}' trapped: {trap}")


class Instances:
    """The instance of one component: made when it is first needed, made anew after a trap.

    Args:
        program: what it is an instance of.
        config: the `with:` block, as the operator wrote it.
        ctx: the component's context.
    """

    def __init__(self, program: Program, config: Mapping[str, Any], ctx: Any) -> None:
        self.program = program
        self._config = json.dumps({k: plain(v) for k, v in (config or {}).items()}).encode()
        self._grants = expand(program.grants, config or {})
        self._ctx = ctx
        self._guest: Guest | None = None
        self._description: Description | None = None

    @property
    def guest(self) -> Guest:
        """The instance, begun with its configuration.

        Raises:
            Trapped: it trapped at its start.
            DataflareError: it does not take its configuration, or describes itself wrongly.
        """
        if self._guest is None or self._guest.closed:
            self._guest = self._started()
        return self._guest

    @property
    def description(self) -> Description:
        """What the guest says about itself with this configuration."""
        if self._description is None:
            _ = self.guest
        assert self._description is not None
        return self._description

    def exports(self, name: str) -> bool:
        """Whether the module has an optional export."""
        return any(e.name == name for e in self.program.module.exports)

    def _started(self) -> Guest:
        host = HostFunctions(self._ctx, self._grants, self.program.limits.deadline)
        guest = Guest(self.program.module, self.program.limits, host)
        self.program.started += 1
        try:
            place = guest.put(self._config)
            guest.ask("df_init", guest.put(struct.pack("<II", place, len(self._config))))
            self._description = parse(guest.get(guest.call("df_describe"), "description", 1 << 20), self.program.kind)
            guest.reset()
        except BaseException:
            guest.close()
            raise
        return guest

    def discard(self) -> None:
        """Give the instance up, with all it holds; the next use makes another."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()

    def close(self) -> None:
        """End the instance, with its own `df_close` if it has one and still lives."""
        guest, self._guest = self._guest, None
        if guest is None or guest.closed:
            return
        try:
            if "df_close" in guest.exports:
                guest.call("df_close")
        except (Trapped, DataflareError) as error:
            self._ctx.log.warning("a module failed while it was closed: {}", str(error))
        finally:
            guest.close()
