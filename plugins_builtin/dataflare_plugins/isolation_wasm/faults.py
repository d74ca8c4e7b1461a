"""What can go wrong with a module and with its replies, and how text of a guest is told."""

from __future__ import annotations

from dataflare_sdk import DataflareError, code

INVALID = code(
    "wasm.invalid-module",
    6,
    "A WebAssembly module is not what its level allows: no module, a missing export, a wrong signature, too much memory.",
    "Build it with the PDK of this version, or raise `limits` in its manifest.",
)
UNDECLARED = code(
    "wasm.undeclared-import",
    6,
    "A WebAssembly module imports something that its manifest does not name, or that was not granted.",
    "Name it in the manifest's `capabilities` and grant it.",
)
BAD_DESCRIPTION = code(
    "wasm.bad-description", 6, "What a module says about itself does not fit its manifest or the ABI.", "Mend `df_describe` of the module."
)
BAD_REPLY = code(
    "wasm.bad-reply",
    1,
    "A module returned a pointer, a length or values that are not valid Arrow data.",
    "Mend the module; nothing of the reply was used.",
)
TRAPPED = code(
    "wasm.trapped",
    1,
    "A module trapped: it crashed, ran out of memory or stack, or over its deadline.",
    "Mend the module or the row, raise its `limits`, or set `errors.on_record`.",
)
LOST = code(
    "wasm.lost", 4, "A module with state trapped; the run goes back to its last checkpoint.", "Mend the module, or raise its `limits`."
)
QUARANTINED = code(
    "wasm.quarantined", 6, "A plugin trapped too often in a short time and is not started again.", "Mend the module, then run again."
)
REFUSED = code("wasm.refused", 1, "A module refused rows.", "Mend the rows, or set `errors.on_record`.")
TRY_LATER = code("wasm.try-later", 4, "A module failed for a reason of the moment.", "Run again; the run resumes.")
BAD_CONFIG = code("wasm.bad-config", 3, "A module does not accept its `with:` block.", "See the plugin's page for its keys.")
FAILED = code("wasm.failed", 4, "A module failed and says that no other row would help.", "See the cause it gives.")
UNSUPPORTED = code(
    "wasm.unsupported-type", 3, "A column has a type that cannot be handed to a module.", "Cast the column in a map before it."
)

_BY_CODE = {2: TRY_LATER, 3: BAD_CONFIG, 4: FAILED}
"""`code` of `df_last_error` to what it means; everything else is about rows."""

_LONGEST = 1_000


class Trapped(Exception):  # noqa: N818 - said within the plugin; what others see are the codes above
    """The guest trapped; its instance is gone."""


def told(data: bytes) -> str:
    """Return a guest's text for people: no control characters, not longer than a screen."""
    text = data[: 4 * _LONGEST].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST].strip()


_KNOWN = {"wasm trap: interrupt": "it ran over its deadline", "timeout": "it ran over its deadline", "oom": "it ran out of memory",
          "wasm trap: call stack exhausted": "it ran out of stack"}  # fmt: skip


def why(text: str) -> str:
    """Return why a guest trapped, without the backtrace."""
    cause = text.rpartition("Caused by:")[2] if "Caused by:" in text else text
    lines = [line.strip() for line in cause.splitlines()]
    plain = [line for line in lines if line and not line[:1].isdigit() and not line.startswith(("note:", "error while executing"))]
    last = next((line for line in lines if line.startswith("wasm trap")), plain[-1] if plain else "it was aborted")
    return _KNOWN.get(last, told(last.encode()))


def failure(code_: int, message: str) -> DataflareError:
    """Return the error for what `df_last_error` gave: 1 rows, 2 of the moment, 3 configuration, 4 for good."""
    declared = _BY_CODE.get(code_, REFUSED)
    text = message or "it gave no reason"
    return declared.retriable(text) if declared is TRY_LATER else declared.error(text)
