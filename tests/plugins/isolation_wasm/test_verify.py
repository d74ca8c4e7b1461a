"""Before anything of a module runs: its imports, exports, memory and ABI; and what is switched off stays off."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from tests.plugins.isolation_wasm.building import GUESTS, built, example
from tests.plugins.isolation_wasm.loading import component, factory, plugin

from dataflare.manifest import read
from dataflare_plugins.isolation_wasm import machine
from dataflare_plugins.isolation_wasm.loader import WasmLoader
from dataflare_sdk import DataflareError

EXPORTS = {
    "dataflare_abi_version": '(func (export "dataflare_abi_version") (result i32) i32.const 1)',
    "df_alloc": '(func (export "df_alloc") (param i32) (result i32) i32.const 0)',
    "df_reset": '(func (export "df_reset"))',
    "df_last_error": '(func (export "df_last_error") (result i32) i32.const 0)',
    "df_describe": '(func (export "df_describe") (result i32) i32.const 0)',
    "df_init": '(func (export "df_init") (param i32) (result i32) i32.const 0)',
    "df_process": '(func (export "df_process") (param i32 i32 i32) (result i32) i32.const 0)',
    "memory": '(memory (export "memory") 1 4)',
}


def wat(imports: str = "", more: str = "", **other: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {imports} {' '.join({**EXPORTS, **other}.values())} {more})"))


def refused(folder: Path, wasm: bytes, **more: Any) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        factory(folder, wasm, **more)
    return caught.value


def test_the_plain_module_is_taken(tmp_path: Path) -> None:
    assert factory(tmp_path, wat()).program.kind == "processor"


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_every_export_of_the_abi_is_needed(tmp_path: Path, name: str) -> None:
    error = refused(tmp_path, wat(**{name: ""}))
    assert (error.code, error.exit_code) == ("wasm.invalid-module", 6)
    assert name in str(error)


def test_a_signature_must_be_the_one_of_the_abi(tmp_path: Path) -> None:
    error = refused(tmp_path, wat(df_alloc='(func (export "df_alloc") (param i64) (result i32) i32.const 0)'))
    assert "(i64) → (i32)" in str(error)
    assert refused(tmp_path, wat(more='(func (export "df_ack"))')).code == "wasm.invalid-module", "an optional one too"


def test_a_kind_needs_its_own(tmp_path: Path) -> None:
    assert "df_read" in str(refused(tmp_path, wat(), kind="source"))
    assert "df_flush" in str(
        refused(tmp_path, wat(more='(func (export "df_write") (param i32 i32) (result i32) i32.const 0)'), kind="destination")
    )
    assert "monitor" in str(refused(tmp_path, wat(), kind="monitor"))


LOG = '(import "dataflare" "log" (func (param i32 i32 i32)))'


@pytest.mark.parametrize(
    ("imports", "says"),
    [
        (LOG, "'log'"),
        ('(import "dataflare" "http_send" (func (param i32 i32) (result i32)))', "'net'"),
        ('(import "dataflare" "state_put" (func (param i32 i32 i32 i32) (result i32)))', "'state'"),
        ('(import "dataflare" "open_file" (func (param i32) (result i32)))', "no host gives"),
        ('(import "env" "log" (func (param i32 i32 i32)))', "no host gives"),
        ('(import "dataflare" "clock" (func (result i32)))', "() → (i64)"),
        ('(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))', "'wasi'"),
        ('(import "dataflare" "log" (global i32))', "no function"),
        ('(import "dataflare" "table" (table 1 funcref))', "no function"),
    ],
)
def test_imports_are_what_was_granted(tmp_path: Path, imports: str, says: str) -> None:
    error = refused(tmp_path, wat(imports))
    assert (error.code, error.exit_code) == ("wasm.undeclared-import", 6)
    assert says in str(error)


def test_a_function_may_be_imported_twice(tmp_path: Path) -> None:
    import pyarrow as pa

    wasm = wat(LOG + LOG, df_alloc='(func (export "df_alloc") (param i32) (result i32) i32.const 1024)')
    guest = component(tmp_path, wasm, lines="capabilities: {host: [log]}\n")
    with pytest.raises(DataflareError) as caught:
        guest.output_schemas({"in": pa.schema([("n", pa.int64())])})
    assert caught.value.code == "wasm.bad-reply", "it was begun, and describes itself at address 0"


def test_a_manifest_alone_grants_nothing(tmp_path: Path) -> None:
    asks = "capabilities: {host: [log]}\n"
    assert factory(tmp_path / "a", wat(LOG), lines=asks).program.kind == "processor"
    assert refused(tmp_path / "b", wat(LOG), lines=asks, grants={}).code == "wasm.undeclared-import"


@pytest.mark.parametrize("memory", ['(memory (export "memory") 300)', '(memory (export "memory") 1 300)'], ids=["begins", "may-grow"])
def test_memory_beyond_the_limit_is_refused(tmp_path: Path, memory: str) -> None:
    lines = "limits: {memory: 16MiB}\n"
    assert "its limit is 16777216" in str(refused(tmp_path, wat(memory=memory), lines=lines))
    assert factory(tmp_path, wat(memory='(memory (export "memory") 1 256)'), lines=lines)


@pytest.mark.parametrize("limits", ["{memory: lots}", "{memory: 1KiB}", "{memory: 5GiB}", "{deadline: soon}"])
def test_limits_that_are_none(tmp_path: Path, limits: str) -> None:
    assert refused(tmp_path, wat(), lines=f"limits: {limits}\n").code == "wasm.invalid-module"


@pytest.mark.parametrize(
    "more",
    [
        '(memory $b 1)',
        '(memory $m i64 1)',
        '(memory $s 1 2 shared)',
        '(tag $t (param i32))',
        '(type $s (struct (field i32)))',
        '(func (result i32) (return_call 0))',
    ],
    ids=["multi-memory", "memory64", "shared-memory", "exceptions", "gc", "tail-calls"],
)  # fmt: skip
def test_what_is_switched_off_does_not_compile(tmp_path: Path, more: str) -> None:
    alone = more.startswith(("(memory $m", "(memory $s"))
    wasm = wat(memory="", more=more) if alone else wat(more=more)
    error = refused(tmp_path, wasm)
    assert error.code == "wasm.invalid-module"
    assert "cannot be compiled" in str(error)


def test_another_abi_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    later = '(func (export "dataflare_abi_version") (result i32) i32.const 2)'
    guest = component(tmp_path, wat(dataflare_abi_version=later))
    with pytest.raises(DataflareError, match="ABI 2"):
        guest.output_schemas({"in": pa.schema([("n", pa.int64())])})


def test_a_start_function_has_a_deadline_too(tmp_path: Path) -> None:
    import pyarrow as pa

    wasm = wat(more="(func $f (loop br 0)) (start $f)")
    guest = component(tmp_path, wasm, lines="limits: {deadline: 100ms}\n")
    with pytest.raises(DataflareError) as caught:
        guest.output_schemas({"in": pa.schema([("n", pa.int64())])})
    assert caught.value.code == "wasm.trapped"


@pytest.mark.parametrize("data", [b"", b"not wasm", b"\0asm\x01\0\0\0\xff\xff", b"\0asm"], ids=["empty", "text", "broken", "cut"])
def test_what_is_no_module(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path, data).code == "wasm.invalid-module"


def test_machine_code_of_a_package_is_never_taken(tmp_path: Path) -> None:
    """A compiled module is code of the host's processor: only what this host compiled itself is run."""
    code = bytes(machine.compiled(wat()).serialize())
    assert refused(tmp_path, code).code == "wasm.invalid-module"
    manifest = plugin(tmp_path, wat())
    (Path(manifest.folder) / "guest.cwasm").write_bytes(code)
    with pytest.raises(DataflareError, match=r"no \.wasm file"):
        WasmLoader(manifest, {})._path("guest.cwasm")


def test_a_module_lies_beside_its_manifest(tmp_path: Path) -> None:
    manifest = plugin(tmp_path, wat())
    (tmp_path / "outside.wasm").write_bytes(wat())
    (Path(manifest.folder) / "link.wasm").symlink_to(tmp_path / "outside.wasm")
    loader = WasmLoader(manifest, {})
    for file in ("../outside.wasm", str(tmp_path / "outside.wasm"), "link.wasm", "missing.wasm"):
        with pytest.raises(DataflareError) as caught:
            loader._path(file)
        assert caught.value.code == "wasm.invalid-module"


def test_the_cache_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.compiled(wat())
    folder = tmp_path / "dataflare" / "wasm"
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # What is in the cache is what is run: another module under this name shows it.
    other = wat(more='(func (export "other"))')
    kept.write_bytes(bytes(machine.compiled(other).serialize()))
    names = lambda: {e.name for e in machine.compiled(wat()).exports}  # noqa: E731
    assert "other" in names()
    kept.chmod(0o666)
    assert "other" not in names(), "what others may write is not believed"
    kept.write_bytes(b"torn")
    kept.chmod(0o600)
    assert "df_alloc" in names(), "what is broken is compiled again"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert machine.cache_folder() is None, "nor a folder that a link leads to"
    assert os.listdir(folder)


def test_a_description_that_does_not_fit(tmp_path: Path) -> None:
    import pyarrow as pa

    guest = component(tmp_path, built(GUESTS / "rows.c"), features="rowwise, one_to_one")
    with pytest.raises(DataflareError) as caught:
        guest.output_schemas({"in": pa.schema([("n", pa.int64())])})
    assert caught.value.code == "wasm.bad-description"
    wrong = component(tmp_path / "b", example("wasm-c-total")[1], features="rowwise")
    with pytest.raises(DataflareError, match="must be DOUBLE"):
        wrong.output_schemas({"in": pa.schema([("price", pa.string()), ("quantity", pa.int64())])})


def test_a_configuration_is_held_to_the_schema_beside_the_manifest(tmp_path: Path) -> None:
    manifest = plugin(tmp_path, wat())
    lines = (Path(manifest.folder) / "plugin.yaml").read_text().replace('summary: "A guest"', "config: guest.schema.json")
    (Path(manifest.folder) / "plugin.yaml").write_text(lines)
    manifest = read(Path(manifest.folder) / "plugin.yaml")
    with pytest.raises(DataflareError, match="beside the manifest"):
        WasmLoader(manifest, {}).factory("guest.wasm")
    (Path(manifest.folder) / "guest.schema.json").write_text('{"properties": {"n": {"type": "integer"}}, "additionalProperties": false}')
    made = WasmLoader(manifest, {}).factory("guest.wasm")
    assert made.configure({"n": 1}) == {"n": 1}
    with pytest.raises(DataflareError) as caught:
        made.configure({"m": 1}, ("processors", 0, "with"))
    assert caught.value.code == "config.invalid"
