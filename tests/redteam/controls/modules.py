"""A bare wasmtime without deadline, limits and checks, and a host that believes every pointer of a guest."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import struct
from collections.abc import Callable
from typing import Any

from . import OVER, control, data, kills, never_ends

ARRAY, SCHEMA = struct.Struct("<5q5I4x"), struct.Struct("<3I4x2q4I")


class Bare:
    """A module in a store that holds it to nothing."""

    def __init__(self, wasm: bytes, **settings: Any) -> None:
        import wasmtime

        self.tool = wasmtime
        config = wasmtime.Config()
        for name, value in settings.items():
            setattr(config, name, value)
        self.engine = wasmtime.Engine(config)
        self.store = wasmtime.Store(self.engine)
        self.module = wasmtime.Module(self.engine, wasm)

    def start(self) -> Any:
        """Make an instance with whatever it imports."""
        linker = self.tool.Linker(self.engine)
        for wanted in self.module.imports:
            if isinstance(wanted.type, self.tool.FuncType):
                results = len(wanted.type.results)
                linker.define_func(wanted.module, wanted.name, wanted.type, lambda *_, results=results: 0 if results else None)
            else:
                table = self.tool.Table(self.store, wanted.type, None)
                linker.define(self.store, wanted.module, wanted.name, table)
        return linker.instantiate(self.store, self.module).exports(self.store)


@control
def start_a_module(target: Any, given: dict[str, Any]) -> str:
    """Make an instance: its code runs, or never ends."""
    made = Bare(data(given, "wasm"))
    if never_ends(made.start):
        return OVER
    made.start()
    return OVER


@control
def start_a_module_with_any_import(target: Any, given: dict[str, Any]) -> str:
    """Give a module whatever it asks for: its code runs."""
    Bare(data(given, "wasm")).start()
    return OVER


@control
def run_a_module(target: Any, given: dict[str, Any]) -> str:
    """Call a module that never returns."""
    return never_ends(lambda: Naive(data(given, "wasm"), given["call"]).process())


@control
def run_a_module_without_a_stack_limit(target: Any, given: dict[str, Any]) -> str:
    """Let a module use up the stack of its host."""
    return kills(lambda: Naive(data(given, "wasm"), given["call"], max_wasm_stack=1 << 30).process())


@control
def grow_a_memory(target: Any, given: dict[str, Any]) -> str:
    """Let a module's memory grow as it likes."""
    made = Naive(data(given, "wasm"))
    made.process()
    return OVER if made.size > 512 << 20 else ""


@control
def read_the_environment_by_wasi(target: Any, given: dict[str, Any]) -> str:
    """Give a module the WASI of the library, with the environment as it is."""
    made = Bare(data(given, "wasm"))
    linker, settings = made.tool.Linker(made.engine), made.tool.WasiConfig()
    settings.inherit_env()
    made.store.set_wasi(settings)
    linker.define_wasi()
    found = linker.instantiate(made.store, made.module).exports(made.store)
    found["_initialize"](made.store)
    memory = bytes(found["memory"].read(made.store, 0, 65536))
    return " ".join(word.decode() for word in memory.split(b"\0") if word.startswith(b"SECRET="))


@control
def take_machine_code(target: Any, given: dict[str, Any]) -> str:
    """Run machine code that came from somebody else."""
    import wasmtime

    engine = wasmtime.Engine()
    module = wasmtime.Module.deserialize(engine, data(given, "wasm"))
    wasmtime.Instance(wasmtime.Store(engine), module, [])
    return OVER


class Naive:
    """Lays rows out as the ABI says, and reads what comes back as if it were true."""

    def __init__(self, wasm: bytes, do: str = "good", **settings: Any) -> None:
        self.bare = Bare(wasm, **settings)
        self.exports = self.bare.start()
        self.memory = self.exports["memory"]
        self.config = json.dumps({"do": do}).encode()
        self.do = do

    @property
    def base(self) -> int:
        """Where the memory lies in this process."""
        return ctypes.addressof(self.memory.data_ptr(self.bare.store).contents)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return int(self.memory.data_len(self.bare.store))

    def call(self, name: str, *arguments: int) -> int:
        """Call an export."""
        found = self.exports[name](self.bare.store, *arguments)
        return 0 if found is None else int(found) & 0xFFFFFFFF

    def put(self, content: bytes) -> int:
        """Copy bytes in."""
        place = self.call("df_alloc", max(len(content), 8))
        self.memory.write(self.bare.store, content, place)
        return place

    def get(self, place: int, size: int) -> bytes:
        """Copy bytes out, wherever they are said to lie."""
        return ctypes.string_at(self.base + place, size)

    def process(self, text: bytes = b"row 1row 13row 2") -> tuple[int, int]:
        """Hand three rows in, of which one is unlucky, and return where the answer lies."""
        config = self.put(struct.pack("<II", self.put(self.config), len(self.config)))
        self.call("df_init", config)
        numbers = self.put(struct.pack("<3q", 1, 13, 2))
        offsets = self.put(struct.pack("<4i", 0, 5, 11, 16))
        words = self.put(text)
        if self.do == "log":  # a module that reads text alone is told what to do by it
            offsets, words = self.put(struct.pack("<4i", 0, 1, 2, 3)), self.put(b"www")
        columns = [
            (self.put(ARRAY.pack(3, 0, 0, len(b), 0, self.put(struct.pack(f"<{len(b)}I", *b)), 0, 0, 1, 0)))
            for b in ((0, numbers), (0, offsets, words))
        ]
        if self.do == "log":
            columns = columns[1:]
        table = self.put(
            ARRAY.pack(3, 0, 0, 1, len(columns), self.put(bytes(4)), self.put(struct.pack(f"<{len(columns)}I", *columns)), 0, 1, 0)
        )
        field = self.put(SCHEMA.pack(self.put(b"l\0"), self.put(b"n\0"), 0, 2, 0, 0, 0, 1, 0))
        schema = self.put(SCHEMA.pack(self.put(b"+s\0"), self.put(b"\0"), 0, 0, 1, self.put(struct.pack("<I", field)), 0, 1, 0))
        out = self.put(bytes(8))
        status = self.call("df_process", table, schema, out)
        if status:
            place, size, _ = struct.unpack("<IIi", self.get(self.call("df_last_error"), 12))
            self.get(place, size)
        self.given = table
        return struct.unpack("<II", self.get(out, 8))

    def head(self, place: int) -> tuple[int, ...]:
        """Return a structure that describes an array."""
        return ARRAY.unpack(self.get(place, ARRAY.size))

    def words(self, place: int, count: int) -> tuple[int, ...]:
        """Return addresses."""
        table = self.get(place, min(4 * count, 1 << 28))
        return struct.unpack(f"<{len(table) // 4}I", table)

    def column(self, place: int, kind: Any) -> Any:
        """Return a column without a look at what it is made of."""
        import pyarrow as pa

        length, _, _, buffers, _, table, *_ = self.head(place)
        places = self.words(table, buffers)
        if kind != pa.string():
            lent = [pa.foreign_buffer(self.base + p, 1 << 40, self) if p else None for p in places]
            return pa.Array.from_buffers(kind, length, lent)
        offsets = self.get(places[1], min(4 * (length + 1), 1 << 28))
        (last,) = struct.unpack_from("<I", offsets, 4 * length)
        text = self.get(places[2], min(last, 1 << 28))
        return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _text(made: Naive) -> str:
    """Read the rows of a text column; more, fewer or other ones than were given, or none at all, show that a lie was believed."""
    import pyarrow as pa

    array, _ = made.process()
    rows, _, _, _, count, _, table, *_ = made.head(array)
    places = made.words(table, count)
    found = made.column(places[1], pa.string())
    if len(found) != 3 or rows != 3:
        return OVER
    return OVER if found.take(pa.array([0, 1, 2, 2])).to_pylist()[:3] != ["row 1", "row 13", "row 2"] else ""


def _number(made: Naive) -> str:
    import pyarrow as pa

    array, _ = made.process()
    return str(made.column(made.words(made.head(array)[6], 1)[0], pa.int64()).to_pylist())


def _overlap(made: Naive) -> str:
    import pyarrow as pa

    array, _ = made.process()
    numbers = made.column(made.words(made.head(array)[6], 1)[0], pa.int64()).to_pylist()
    return OVER if numbers != [1, 13, 2] else ""


def _schema(made: Naive) -> str:
    _, schema = made.process()
    form, _, _, _, _, table, *_ = SCHEMA.unpack(made.get(schema, SCHEMA.size))
    (field,) = made.words(table, 1)
    _, name, *_ = SCHEMA.unpack(made.get(field, SCHEMA.size))
    return str((ctypes.string_at(made.base + form), ctypes.string_at(made.base + name)))


def _nested(made: Naive) -> str:
    array, _ = made.process()

    def depth(place: int) -> int:
        count, table = made.head(place)[4], made.head(place)[6]
        return 1 + max([0, *(depth(p) for p in made.words(table, count))]) if count else 0

    return str(depth(array))


def _description(made: Naive) -> str:
    place, size = struct.unpack("<II", made.get(made.call("df_describe"), 8))
    return made.get(place, size).decode()


def _error(made: Naive) -> str:
    made.process()
    return ""


def _log(made: Naive) -> str:
    """Log what a guest points at."""
    linker = made.bare.tool.Linker(made.bare.engine)
    store = made.bare.store

    def log(_level: int, place: int, length: int) -> None:
        os.write(2, ctypes.string_at(made.base + (place & 0xFFFFFFFF), length & 0xFFFFFFFF))

    for wanted in made.bare.module.imports:
        results = len(wanted.type.results)
        linker.define_func(
            wanted.module, wanted.name, wanted.type, log if wanted.name == "log" else lambda *_, results=results: 0 if results else None
        )
    made.exports = linker.instantiate(store, made.bare.module).exports(store)
    made.memory, made.do = made.exports["memory"], "log"
    made.process()
    return ""


READERS: dict[str, Callable[[Naive], str]] = {
    "s": _text, "n": _number, "schema": _schema, "nested": _nested, "description": _description, "error": _error, "overlap": _overlap, "log": _log,
}  # fmt: skip


@control
def believe_a_module(target: Any, given: dict[str, Any]) -> str:
    """Read what a module answers without a look: the process ends, or rows come that nobody gave."""

    def read() -> None:
        import sys

        sys.setrecursionlimit(1 << 30)
        if OVER in READERS[given["column"]](Naive(data(given, "wasm"), given["do"])):
            os.kill(os.getpid(), signal.SIGKILL)  # told in the one way that nothing else can be told any more

    return kills(read)


@control
def take_a_row_again_and_again(target: Any, given: dict[str, Any]) -> str:
    """Take a row as often as a few bytes say."""
    import pyarrow as pa

    wide = pa.record_batch({"wide": ["x" * 1_000_000]})
    taken = wide.take(pa.array([0] * 300, pa.int8()))
    return OVER if taken.nbytes > 256 << 20 else ""


@control
def columns_of_nothing(target: Any, given: dict[str, Any]) -> str:
    """Give NULLs a type that has a place for each."""
    import pyarrow as pa

    made = pa.nulls(1 << 24).cast(pa.int32())
    return OVER if made.nbytes >= 4 << 24 else ""


@control
def call_extism(target: Any, given: dict[str, Any]) -> str:
    """Give a module to Extism with its own HTTP, its own log, and no limits."""
    import threading
    from http.server import HTTPServer

    from extism import Plugin
    from extism.extism import Function
    from extism_sys import ffi

    from .requests import Echo, _serve

    os.environ["EXTISM_CACHE_CONFIG"] = ""  # its cache would lie in a home that is not there
    nothing = ffi.callback("void(ExtismCurrentPlugin*, const ExtismVal*, ExtismSize, ExtismVal*, ExtismSize, void*)", lambda *_: None)
    functions = []
    for name, takes, gives in (("metric", [1, 3], []), ("clock", [], [1]), ("state_get", [1], [1]), ("state_put", [1, 1], [])):
        made = Function("extism:host/user", f"dataflare_{name}", [], [], nothing)
        made.args, made.returns = takes, gives
        functions.append(made)
    wasm = {"wasm": [{"data": base64.b64encode(data(given, "wasm")).decode()}], "allowed_hosts": ["127.0.0.1"]}
    plugin = Plugin(wasm, wasi=False, functions=functions)
    how = given["how"]
    if how == "S":
        return never_ends(lambda: plugin.call("process", b'{"s": "S"}\n'))
    if how == "H":
        with open(target.secret) as file:
            Echo.to = f"http://169.254.169.254:{_serve('169.254.169.254', file.read())}/"
        first = HTTPServer(("127.0.0.1", 0), Echo)
        first.said = ""  # type: ignore[attr-defined]
        threading.Thread(target=first.serve_forever, daemon=True).start()
        how = f"Hhttp://127.0.0.1:{first.server_address[1]}/go"
    try:
        return bytes(plugin.call("process", json.dumps({"s": how}).encode() + b"\n")).decode()
    except Exception as error:
        return OVER if "no end" in str(error) else f"stopped: {error}"


@control
def take_any_record(target: Any, given: dict[str, Any]) -> str:
    """Take whatever keys a record has."""
    found = [json.loads(line) for line in ('{"s": "a"}', '{"other": 1}')]
    return OVER if {key for record in found for key in record} != {"s"} else ""
