"""Modules in WebAssembly that loop, grow, lie, ask for more than they were granted, or carry a request elsewhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import wasmtime
from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.server import Server, serving
from tests.plugins.isolation_wasm.test_verify import wat
from tests.redteam import control
from tests.redteam.bench import Bench, Done, Seen, judged
from tests.redteam.families import case
from tests.redteam.families.parts import HEAD

HOSTILE = control.HERE / "guests" / "hostile.c"
LIMITS = "limits: {memory: 32MiB, deadline: 300ms}\n"
MANIFEST = (
    HEAD
    + """\
isolation: wasm
provides:
  - {{kind: processor, name: attacker, entry: {entry}, summary: "Attacks", features: [rowwise{more}]}}
"""
)
ASKS = "capabilities:\n  host: [log, metric, clock]\n  state: {{}}\n  net: [{{host: 127.0.0.1, port: {port}, private: true}}]\n  secrets: [{{ref: token}}]\n"
GRANT = {"state": {"max_bytes": "1MiB"}, "secrets": [{"ref": "token"}]}
WIDE = 64 << 30
"""Address space for a bare wasmtime, which reserves 4 GiB for a memory."""


def hostile(deed: str) -> bytes:
    """Return a module that does one deed of `hostile.c`."""
    return built(HOSTILE, f"-DDEED={deed}")


def attacked(
    bench: Bench,
    wasm: bytes,
    *,
    entry: str = "attacker.wasm",
    more: str = ", one_to_one",
    lines: str = "",
    do: str | None = None,
    columns: dict[str, str] | None = None,
) -> Done:
    """Install a module and run a workflow with it."""
    bench.install("redteam", MANIFEST.format(entry=entry, more=more) + (lines or LIMITS), {entry: wasm})
    (bench.work / "policy.yaml").write_text("trust: [redteam]\n")
    bench.workflow("attacker", {} if do is None else {"do": do}, columns or {"n": "13", "s": "'row ' || i"})
    return bench.run_workflow()


def judge(bench: Bench, done: Done, *codes: str) -> Seen:
    """Tell what came of a module: one that must be stopped has breached when its rows arrived."""
    seen = judged(bench, done, codes, memory=1200 << 20)
    return Seen("breached", f"{len(bench.rows)} rows arrived") if codes and bench.rows and seen.outcome == "broken" else seen


def bare(how: str, make: Callable[[], bytes], **more: Any) -> Callable[[], control.Outcome]:
    """Return the control that gives a module to a wasmtime without limits, deadline or checks."""
    return lambda: control.run_with(how, {"wasm": make(), **more}, ("wasmtime",), WIDE)


def naive(make: Callable[[], bytes], do: str = "good", column: str = "s") -> Callable[[], control.Outcome]:
    """Return the control that lays rows out in a module's memory and believes every pointer that comes back."""
    return lambda: control.run_with("believe-a-module", {"wasm": make(), "do": do, "column": column}, ("wasmtime", "pyarrow"), WIDE)


def unruly() -> bytes:
    """Return the module of the tests that does what its configuration says."""
    return built(GUESTS / "unruly.c")


START = "(func $f (loop br 0)) (start $f)"
HELLO = "(func $f nop) (start $f)"


@case("wasm", "refused", bare("run-a-module", unruly, call="spin"))
def wasm_endless_loop(bench: Bench) -> Seen:
    """Turn in a circle in df_process."""
    return judge(bench, attacked(bench, unruly(), do="spin"), "wasm.trapped")


@case("wasm", "refused", bare("start-a-module", lambda: wat(more=START)))
def wasm_endless_start(bench: Bench) -> Seen:
    """Turn in a circle in the start function, before anything is called."""
    return judge(bench, attacked(bench, wat(more=START)), "wasm.trapped")


@case("wasm", "refused", bare("grow-a-memory", lambda: hostile("GROW")))
def wasm_grow_memory(bench: Bench) -> Seen:
    """Grow the memory by 512 MiB."""
    return judge(bench, attacked(bench, hostile("GROW")), "wasm.refused")


HUGE = '(memory (export "memory") 16384)'


@case("wasm", "refused", bare("start-a-module", lambda: wat(memory=HUGE, more=HELLO)))
def wasm_huge_memory(bench: Bench) -> Seen:
    """Begin with a memory of 1 GiB."""
    return judge(bench, attacked(bench, wat(memory=HUGE, more=HELLO)), "wasm.invalid-module")


TABLE = "(table $t 1 funcref) (func $g (if (i32.eq (table.grow $t (ref.null func) (i32.const 20000000)) (i32.const -1)) (then unreachable))) (start $g)"


@case("wasm", "refused", bare("start-a-module", lambda: wat(more=TABLE)))
def wasm_grow_table(bench: Bench) -> Seen:
    """Grow a table to twenty million entries: memory that no limit of a memory sees."""
    return judge(bench, attacked(bench, wat(more=TABLE)), "wasm.trapped")


@case("wasm", "refused", bare("run-a-module-without-a-stack-limit", unruly, call="deep"))
def wasm_deep_recursion(bench: Bench) -> Seen:
    """Recur until the host's own stack ends."""
    return judge(bench, attacked(bench, unruly(), do="deep"), "wasm.trapped")


def _lie(name: str, what: str, do: str) -> None:
    def attack(bench: Bench) -> Seen:
        return judge(bench, attacked(bench, unruly(), do=do), "wasm.bad-reply")

    attack.__name__, attack.__doc__ = f"wasm_{name}", what
    case("wasm", "refused", naive(unruly, do))(attack)


_lie("pointer_outside", "Say that text lies beyond the memory.", "outside")
_lie("offsets_at_the_end", "Say that offsets lie on the last bytes of the memory.", "offsets")
_lie("offset_in_the_middle", "Give text an offset in the middle that leads a gigabyte away.", "middle")
_lie("negative_offset", "End the offsets of text below zero.", "negative")
_lie("one_row_more", "Give a row more than there are values for.", "length")
_lie("no_rows_for_some", "Give a column fewer rows than the others.", "short")
_lie("buffers_without_end", "Say that a column has a trillion buffers.", "buffers")
_lie("children_without_end", "Say that a table has a billion columns.", "children")
_lie("rows_without_end", "Say that there are a trillion rows.", "huge_rows")


@case("wasm", "refused", naive(lambda: hostile("ARRAY"), column="n"))
def wasm_array_outside(bench: Bench) -> Seen:
    """Answer with an array that lies beyond the memory."""
    return judge(bench, attacked(bench, hostile("ARRAY")), "wasm.bad-reply")


@case("wasm", "refused", naive(lambda: hostile("SCHEMA"), column="schema"))
def wasm_schema_outside(bench: Bench) -> Seen:
    """Answer with a schema that lies beyond the memory."""
    return judge(bench, attacked(bench, hostile("SCHEMA"), more=""), "wasm.bad-reply")


@case("wasm", "refused", naive(lambda: hostile("NAME"), column="schema"))
def wasm_name_outside(bench: Bench) -> Seen:
    """Name a column by text that lies beyond the memory."""
    return judge(bench, attacked(bench, hostile("NAME"), more=""), "wasm.bad-reply")


@case("wasm", "refused", naive(lambda: hostile("DESCRIPTION"), column="description"))
def wasm_description_outside(bench: Bench) -> Seen:
    """Describe oneself by text that lies beyond the memory."""
    return judge(bench, attacked(bench, hostile("DESCRIPTION")), "wasm.bad-reply", "wasm.bad-description")


@case("wasm", "refused", naive(lambda: hostile("ERROR_TEXT"), column="error"))
def wasm_error_outside(bench: Bench) -> Seen:
    """Fail with a reason that lies beyond the memory."""
    return judge(bench, attacked(bench, hostile("ERROR_TEXT")), "wasm.bad-reply")


@case("wasm", "refused", naive(lambda: hostile("CYCLE"), column="nested"))
def wasm_column_that_holds_itself(bench: Bench) -> Seen:
    """Answer with a table that is its own column, without an end."""
    return judge(bench, attacked(bench, hostile("CYCLE")), "wasm.bad-reply")


@case("wasm", "denied", naive(lambda: hostile("SAME_BUFFER"), column="overlap"))
def wasm_buffers_that_overlap(bench: Bench) -> Seen:
    """Give the very structure that describes the rows as their values: what is read is what was checked, and numbers are numbers."""
    seen = judge(bench, attacked(bench, hostile("SAME_BUFFER")))
    numbers = [r["n"] for r in bench.rows]
    return seen if seen.outcome != "denied" or (len(numbers) == 3 and 13 not in numbers) else Seen("broken", f"{numbers}")


@case("wasm", "refused", lambda: control.run_with("take-a-row-again-and-again", {}, ("pyarrow",), 64 << 30))
def wasm_take_a_row_again_and_again(bench: Bench) -> Seen:
    """Name one row of a megabyte four million times, a byte for each."""
    columns = {"n": "i", "wide": "repeat('x', 1000000)"}
    return judge(bench, attacked(bench, hostile("TAKE"), more="", columns=columns), "wasm.bad-reply")


@case("wasm", "refused", lambda: control.run_with("columns-of-nothing", {}, ("pyarrow",), 64 << 30))
def wasm_columns_of_nothing(bench: Bench) -> Seen:
    """Give 512 columns of sixteen million NULLs, which take no memory of the guest's and gigabytes of the host's."""
    return judge(bench, attacked(bench, hostile("NULLS"), more=""), "wasm.bad-reply")


SEND = '(import "dataflare" "http_send" (func (param i32 i32) (result i32)))'
FILES = '(import "dataflare" "open_file" (func (param i32) (result i32)))'
CLOCK = '(import "dataflare" "clock" (func (result i32)))'
LISTED = '(import "dataflare" "table" (table 1 funcref))'
ENVIRONMENT = (
    '(import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))'
)  # fmt: skip
READS = '(func (export "_initialize") (drop (call $get (i32.const 64) (i32.const 4096))))'


def _import(name: str, what: str, imports: str, more: str = "", how: str = "start-a-module-with-any-import") -> None:
    def attack(bench: Bench) -> Seen:
        return judge(bench, attacked(bench, wat(imports, more=more)), "wasm.undeclared-import")

    attack.__name__, attack.__doc__ = f"wasm_{name}", what
    case("wasm", "refused", bare(how, lambda: wat(imports, more=more or HELLO)))(attack)


_import("undeclared_import", "Import requests over the network, which the manifest does not name.", SEND)
_import("import_that_nobody_gives", "Import a function that opens files.", FILES)
_import("import_of_another_type", "Import the clock with another signature.", CLOCK)
_import("import_that_is_no_function", "Import a table of the host's.", LISTED)
_import("environment_by_wasi", "Import the environment by WASI, which was not granted.", ENVIRONMENT, READS, "read-the-environment-by-wasi")


@case("wasm", "refused", bare("start-a-module", lambda: wat(df_process="", more=HELLO)))
def wasm_missing_export(bench: Bench) -> Seen:
    """Leave out what a processor must have, and run code at the start all the same."""
    return judge(bench, attacked(bench, wat(df_process="", more=HELLO)), "wasm.invalid-module")


LATER = '(func (export "dataflare_abi_version") (result i32) i32.const 2)'


@case("wasm", "refused", bare("start-a-module", lambda: wat(dataflare_abi_version=LATER, more=HELLO)))
def wasm_another_abi(bench: Bench) -> Seen:
    """Say that structures are laid out as a later version does."""
    return judge(bench, attacked(bench, wat(dataflare_abi_version=LATER)), "wasm.invalid-module")


@functools.cache
def _machine_code() -> bytes:
    engine = wasmtime.Engine()
    return bytes(wasmtime.Module(engine, wat(more=HELLO)).serialize())


@case("wasm", "refused", bare("take-machine-code", _machine_code))
def wasm_machine_code(bench: Bench) -> Seen:
    """Bring a module that is compiled already: machine code that nobody can check."""
    return judge(bench, attacked(bench, _machine_code(), entry="attacker.cwasm"), "wasm.invalid-module")


@case("wasm", "refused", bare("take-machine-code", _machine_code))
def wasm_machine_code_under_another_name(bench: Bench) -> Seen:
    """Bring machine code that is named like a module."""
    return judge(bench, attacked(bench, _machine_code()), "wasm.invalid-module")


# -- what a guest asks of the host -----------------------------------------------------------------------------


def asked(bench: Bench, server: Server, request: dict[str, Any] | str, *, rows: int = 1) -> Done:
    """Let a granted guest ask for something, from a server on loopback that it may reach."""
    text = request if isinstance(request, str) else "h" + json.dumps(request)
    bench.install(
        "redteam", MANIFEST.format(entry="attacker.wasm", more=", one_to_one") + LIMITS.replace("300ms", "5s") + ASKS.format(port=server.port),
        {"attacker.wasm": built(GUESTS / "caller.c")},
    )  # fmt: skip
    net = [{"host": "127.0.0.1", "port": server.port, "private": True}]
    entry = {"version": "1.0.0", "capabilities": {**GRANT, "net": net}}
    (bench.work / "dataflare.lock").write_text(json.dumps({"plugins": {"redteam": entry}}))
    (bench.work / "dataflare.yaml").write_text("")
    (bench.work / "secrets").mkdir(exist_ok=True)
    # In pieces, or the workflow's own reader would take a reference to a secret for the operator's.
    quoted = text.replace("'", "''").replace("${", "$' || '{")
    bench.workflow("attacker", {}, {"s": f"'{quoted}'" + (" || i" if rows > 1 else "")}, rows)
    return bench.run_workflow("-v")


def reached(bench: Bench, other: Server) -> None:
    """Note that somebody came to a server that was not granted."""
    bench.heard += [bench.mark for _ in other.asked]


def _redirect(name: str, what: str, to: str, codes: tuple[str, ...] = ("wasm.address-refused",)) -> None:
    def attack(bench: Bench) -> Seen:
        with serving() as server, serving() as other:
            server.answers["/go"] = (302, {"Location": to.format(port=other.port)}, b"")
            done = asked(bench, server, {"url": f"http://127.0.0.1:{server.port}/go"})
            reached(bench, other)
            return judge(bench, done, *codes)

    attack.__name__, attack.__doc__ = f"wasm_{name}", what
    case("wasm", "refused", lambda: control.run_with("follow-redirects", {"to": to}))(attack)


_redirect(
    "redirect_to_the_metadata",
    "Be led from a granted host to the address at which a cloud hands out credentials.",
    "http://169.254.169.254:{port}/",
)
_redirect("redirect_to_another_port", "Be led from a granted host to a server beside it.", "http://127.0.0.1:{port}/")
_redirect("redirect_by_another_name", "Be led to the same machine by a name that was not granted.", "http://localhost:{port}/")
_redirect("redirect_to_a_file", "Be led from a granted host to a file.", "file:///tmp/world/hidden/secret", ("wasm.bad-request",))


@case("wasm", "refused", lambda: control.run_with("follow-redirects", {"to": "http://169.254.169.254:{port}/", "direct": True}))
def wasm_ask_for_the_metadata(bench: Bench) -> Seen:
    """Ask for the credentials of the cloud without any way round."""
    with serving() as server:
        return judge(bench, asked(bench, server, {"url": "http://169.254.169.254/latest"}), "wasm.address-refused")


@case("wasm", "refused", lambda: control.run_with("put-secrets-into-requests", {"reads_back": False}))
def wasm_another_secret(bench: Bench) -> Seen:
    """Have a secret sent that was not granted: it lies in the environment, where the granted one lies too."""
    with serving() as server:
        done = asked(bench, server, {"url": f"http://127.0.0.1:{server.port}/", "headers": {"X-Token": "${secret:SECRET}"}})
        bench.heard += [bench.mark for a in server.asked if bench.secret in str(a.headers)]
        return judge(bench, done, "capability.denied", "wasm.address-refused", "wasm.bad-request")


@case("wasm", "denied", lambda: control.run_with("put-secrets-into-requests", {"reads_back": True}))
def wasm_read_the_secret_back(bench: Bench) -> Seen:
    """Have the granted secret sent to a server that sends it back."""
    with serving() as server:
        server.answers["/echo"] = (200, {"X-Note": f"you sent {bench.secret}"}, f"you sent {bench.secret}".encode())
        bench.extra = {"token": bench.secret}
        done = asked(bench, server, {"url": f"http://127.0.0.1:{server.port}/echo", "headers": {"X-Token": "${secret:token}"}})
        seen = judge(bench, done)
        sent = [a.headers.get("X-Token") for a in server.asked]
        right = sent == [bench.secret] and [r["s"] for r in bench.rows] == ["you sent ***"]
        return seen if seen.outcome != "denied" or right else Seen("broken", f"{bench.rows}")


@case("wasm", "denied", lambda: control.run_with("print-as-it-is", {"text": "\x1b[2J\x1b]0;owned\x07"}))
def wasm_control_characters_in_the_log(bench: Bench) -> Seen:
    """Clear the terminal, and forge a line, by a message for the log."""
    with serving() as server:
        text = "l\x1b[2J\x1b]0;owned\x07\u202e\nall is well, says nobody"
        seen = judge(bench, asked(bench, server, text))
        return seen if "owned" in seen.detail or "owned" in (bench.root / "stderr").read_text() else Seen("broken", "nothing was logged")


@case("wasm", "denied", lambda: control.run_with("print-again-and-again", {"times": 20_000}))
def wasm_flood_the_log(bench: Bench) -> Seen:
    """Write twenty thousand messages into the log."""
    with serving() as server:
        done = asked(bench, server, "lflood", rows=20_000)
        lines = done.err.count("flood")
        return judge(bench, done) if 0 < lines <= 1_000 else Seen("breached" if lines else "broken", f"{lines} lines")


@case("wasm", "refused", naive(lambda: built(GUESTS / "caller.c"), column="log"))
def wasm_log_from_outside(bench: Bench) -> Seen:
    """Have text logged that lies beyond the memory."""
    with serving() as server:
        return judge(bench, asked(bench, server, "w"), "wasm.bad-reply")


# -- the record lane: JSON lines through Extism ----------------------------------------------------------------


def recorder() -> bytes:
    """Return the module of the tests that does what the first letter of a record says."""
    return built(GUESTS / "recorder.c")


def recorded(bench: Bench, server: Server, *texts: str) -> Done:
    """Hand records to a granted guest of the record lane."""
    lines = "limits: {memory: 32MiB, deadline: 1s}\n" + ASKS.format(port=server.port)
    bench.install("redteam", MANIFEST.format(entry="attacker.wasm", more="") + lines, {"attacker.wasm": recorder()})
    net = [{"host": "127.0.0.1", "port": server.port, "private": True}]
    entry = {"version": "1.0.0", "capabilities": {**GRANT, "net": net}}
    (bench.work / "dataflare.lock").write_text(json.dumps({"plugins": {"redteam": entry}}))
    cases = " ".join(f"WHEN i = {i} THEN '{text}'" for i, text in enumerate(texts))
    bench.extra = {"token": "granted-token"}
    bench.workflow("attacker", {}, {"s": f"CASE {cases} END"}, len(texts))
    return bench.run_workflow("-v")


def extism(how: str) -> Callable[[], control.Outcome]:
    """Return the control that gives the module to Extism as it comes."""
    packages = ("extism", "extism_sys", "cffi", "_cffi_backend")
    return lambda: control.run_with("call-extism", {"wasm": recorder(), "how": how}, packages, WIDE)


@case("wasm", "refused", extism("S"))
def record_endless_loop(bench: Bench) -> Seen:
    """Turn in a circle in `process`."""
    with serving() as server:
        return judge(bench, recorded(bench, server, "S"), "wasm.trapped")


@case("wasm", "refused", extism("G"))
def record_grow_memory(bench: Bench) -> Seen:
    """Grow the memory until there is no more."""
    with serving() as server:
        done = recorded(bench, server, "G")
        return (
            Seen("breached", "it found no end") if "no end" in done.out + done.err else judge(bench, done, "wasm.refused", "wasm.trapped")
        )


@case("wasm", "refused", extism("H"))
def record_redirect_to_another_port(bench: Bench) -> Seen:
    """Be led from a granted host to a server beside it: Extism itself looks at the first address only."""
    with serving() as server, serving() as other:
        server.answers["/go"] = (302, {"Location": f"http://127.0.0.1:{other.port}/"}, b"")
        done = recorded(bench, server, f"Hhttp://127.0.0.1:{server.port}/go")
        reached(bench, other)
        return judge(bench, done, "wasm.address-refused")


@case("wasm", "denied", lambda: control.run_with("put-secrets-into-requests", {"reads_back": True}))
def record_read_the_secret_back(bench: Bench) -> Seen:
    """Have the granted secret sent to a server that sends it back, as a record."""
    with serving() as server:
        server.answers["/echo"] = (200, {}, b"you sent granted-token")
        done = recorded(bench, server, f"Hhttp://127.0.0.1:{server.port}/echo")
        said = [r["s"] for r in bench.rows]
        if "granted-token" in done.out + done.err + str(said):
            return Seen("breached", f"{said}")
        return judge(bench, done) if said == ["you sent ***"] else Seen("broken", f"{said} {done.err[-200:]}")


@case("wasm", "refused", lambda: control.run_with("take-any-record", {}))
def record_column_that_was_not_announced(bench: Bench) -> Seen:
    """Answer with a record of other columns."""
    with serving() as server:
        return judge(bench, recorded(bench, server, "U"), "wasm.bad-reply")
