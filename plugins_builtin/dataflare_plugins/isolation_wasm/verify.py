"""What is asked of a module before any of it runs: its lane, its imports against what was granted, its exports, its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.isolation_wasm.faults import INVALID, UNDECLARED
from dataflare_plugins.isolation_wasm.limits import PAGE, Limits

Signature = tuple[tuple[str, ...], tuple[str, ...]]

W, L, D = "i32", "i64", "f64"
REQUIRED: Mapping[str, Signature] = {
    "dataflare_abi_version": ((), (W,)),
    "df_alloc": ((W,), (W,)),
    "df_reset": ((), ()),
    "df_last_error": ((), (W,)),
    "df_describe": ((), (W,)),
    "df_init": ((W,), (W,)),
}
"""Exports of every columnar guest. All addresses are i32; what is returned as i32 is an address or 0 for success."""
BY_KIND: Mapping[str, Mapping[str, Signature]] = {
    "processor": {"df_process": ((W, W, W), (W,))},
    "source": {"df_read": ((W, W, W, W), (W,))},
    "destination": {"df_write": ((W, W), (W,)), "df_flush": ((W,), (W,))},
}
OPTIONAL: Mapping[str, Signature] = {
    "df_discover": ((W,), (W,)),
    "df_ack": ((W, W), (W,)),
    "df_snapshot": ((W,), (W,)),
    "df_restore": ((W, W), (W,)),
    "df_close": ((), ()),
    "_initialize": ((), ()),
}
IMPORTS: Mapping[tuple[str, str], tuple[Signature, str]] = {
    ("dataflare", "log"): (((W, W, W), ()), "log"),
    ("dataflare", "metric"): (((W, W, D), ()), "metric"),
    ("dataflare", "clock"): (((), (L,)), "clock"),
    ("dataflare", "state_get"): (((W, W, W, W), (W,)), "state"),
    ("dataflare", "state_put"): (((W, W, W, W), (W,)), "state"),
    ("dataflare", "http_send"): (((W, W), (W,)), "net"),
    ("dataflare", "http_body"): (((W, W), (W,)), "net"),
    ("dataflare", "http_header"): (((W, W, W, W), (W,)), "net"),
}
"""What a columnar guest may import: module and name to signature and the capability it takes."""
WASI = "wasi_snapshot_preview1"
KERNEL = "extism:host/env"
RECORD_IMPORTS: Mapping[str, str] = {
    "http_request": "net", "http_status_code": "net", "http_headers": "net",
    **dict.fromkeys(("log_trace", "log_debug", "log_info", "log_warn", "log_error", "get_log_level"), "log"),
}  # fmt: skip
"""Extism's own functions that reach outside, to the capability each takes; the rest only moves bytes."""
USER_IMPORTS: Mapping[str, tuple[Signature, str]] = {
    "dataflare_metric": (((L, D), ()), "metric"),
    "dataflare_clock": (((), (L,)), "clock"),
    "dataflare_state_get": (((L,), (L,)), "state"),
    "dataflare_state_put": (((L, L), ()), "state"),
}
"""Ours for the record lane, in `extism:host/user`."""


def granted(grants: Mapping[str, Any]) -> frozenset[str]:
    """Return the words imports are checked against: the entries of `host`, and `net`, `state`, `secrets` where granted."""
    words = {str(w) for w in grants.get("host", ()) if isinstance(w, str)}
    return frozenset(words | {kind for kind in ("net", "state", "secrets") if grants.get(kind)})


def lane(module: Any) -> str:
    """Return `columnar` or `record`, as the module's exports tell.

    Raises:
        DataflareError: `wasm.invalid-module`.
    """
    exports = {e.name for e in module.exports}
    if "dataflare_abi_version" in exports:
        return "columnar"
    if exports & {"process", "read", "write"} or any(i.module == KERNEL for i in module.imports):
        return "record"
    raise INVALID.error("it exports neither `dataflare_abi_version` (columnar lane) nor `process`, `read` or `write` (record lane)")


def check(module: Any, kind: str, grants: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a module that asks for more than was granted or lacks what its kind needs; nothing of it has run.

    Raises:
        DataflareError: `wasm.undeclared-import`, `wasm.invalid-module`.
    """
    columnar = lane(module) == "columnar"
    have = granted(grants)
    for found in module.imports:
        _import(found, have, columnar=columnar)
    exports = {e.name: e.type for e in module.exports}
    if columnar:
        _functions(exports, {**REQUIRED, **BY_KIND[kind]}, required=True)
        _functions(exports, OPTIONAL, required=False)
        if type(exports.get("memory")).__name__ != "MemoryType":
            raise INVALID.error("it does not export its `memory`")
    else:
        name = {"processor": "process", "source": "read", "destination": "write"}[kind]
        _functions(exports, {name: ((), (W,))}, required=True)
    for name, exported in exports.items():
        if type(exported).__name__ == "MemoryType":
            _memory(name, exported, limits)


def _import(found: Any, have: frozenset[str], *, columnar: bool) -> None:
    name = f"{found.module}.{found.name}"
    if type(found.type).__name__ != "FuncType":
        raise UNDECLARED.error(f"it imports '{name}', which is no function")
    if found.module == WASI:
        wanted: tuple[Signature | None, str] | None = (None, "wasi")
    elif columnar:
        wanted = IMPORTS.get((found.module, found.name or ""))
    elif found.module == KERNEL:
        wanted = (None, RECORD_IMPORTS.get(found.name or "", ""))
    else:
        wanted = USER_IMPORTS.get(found.name or "") if found.module == "extism:host/user" else None
    if wanted is None:
        raise UNDECLARED.error(f"it imports '{name}', which no host gives", fix="Build it with the PDK of this version.")
    signature, capability = wanted
    if signature is not None and _signature(found.type) != signature:
        raise UNDECLARED.error(f"it imports '{name}' as {_shown(_signature(found.type))}; it is {_shown(signature)}")
    if capability and capability not in have:
        raise UNDECLARED.error(f"it imports '{name}', which takes the capability '{capability}'")


def _functions(exports: Mapping[str, Any], wanted: Mapping[str, Signature], *, required: bool) -> None:
    for name, signature in wanted.items():
        found = exports.get(name)
        if found is None:
            if required:
                raise INVALID.error(f"it does not export '{name}'")
        elif type(found).__name__ != "FuncType":
            raise INVALID.error(f"its export '{name}' is no function")
        elif _signature(found) != signature:
            raise INVALID.error(f"it exports '{name}' as {_shown(_signature(found))}; it must be {_shown(signature)}")


def _memory(name: str, memory: Any, limits: Limits) -> None:
    least, most = memory.limits.min, memory.limits.max
    if least * PAGE > limits.memory:
        raise INVALID.error(f"its '{name}' begins with {least * PAGE} bytes; its limit is {limits.memory}")
    if most is not None and most * PAGE > limits.memory:
        raise INVALID.error(f"its '{name}' may grow to {most * PAGE} bytes; its limit is {limits.memory}")


def _signature(kind: Any) -> Signature:
    return tuple(str(p) for p in kind.params), tuple(str(r) for r in kind.results)


def _shown(signature: Signature) -> str:
    def side(kinds: Sequence[str]) -> str:
        return f"({', '.join(kinds)})"

    return f"{side(signature[0])} → {side(signature[1])}"
