"""Builds guests, once per content: what was built lies in the user's temporary folder. Examples by their own Makefiles."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "plugins"
GUESTS = Path(__file__).parent / "guests"
PDK = ROOT / "sdk" / "dataflare_sdk" / "pdk"
C_FLAGS = [
    "-target",
    "wasm32-freestanding",
    "-mcpu=generic+simd128+bulk_memory",
    "-O3",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wall",
    "-Wextra",
    "-Werror",
]

ZIG_FLAGS = [
    "-target",
    "wasm32-freestanding",
    "-mcpu=generic+simd128+bulk_memory",
    "-OReleaseFast",
    "-fno-entry",
    "-rdynamic",
    "--stack",
    "65536",
    "-fstrip",
]


RUST_TARGET = "wasm32-unknown-unknown"
RUST_FLAGS = [
    "--edition=2021",
    f"--target={RUST_TARGET}",
    "--crate-type=cdylib",
    "-Copt-level=3",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Ctarget-feature=+simd128,+bulk-memory",
    "-Dwarnings",
]


@functools.cache
def rustc() -> str | None:
    """Return the first compiler of Rust on the PATH that can make modules, as the example's Makefile finds it."""
    for folder in os.get_exec_path():
        found = shutil.which("rustc", path=folder)
        if found is not None:
            asked = subprocess.run([found, "--print", "target-libdir", "--target", RUST_TARGET], capture_output=True, text=True)
            if asked.returncode == 0 and Path(asked.stdout.strip()).is_dir():
                return found
    return None


def _built_rust(source: Path, flags: tuple[str, ...]) -> bytes:
    """Return the module that a file of Rust makes, with the header as a module `dataflare` beside it."""
    header = PDK / "rust" / "dataflare.rs"
    compiler = rustc()
    assert compiler is not None
    text = source.read_bytes() + header.read_bytes()
    name = hashlib.sha256(text + " ".join([compiler, *RUST_FLAGS, *flags]).encode()).hexdigest()[:24]
    target = _folder() / f"{source.stem}-{name}.wasm"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as place:
            for file in (source, header):
                shutil.copy(file, place)
            made = Path(place) / "made.wasm"
            done = subprocess.run([compiler, *RUST_FLAGS, *flags, "-o", str(made), source.name], capture_output=True, text=True, cwd=place)
            assert done.returncode == 0, done.stderr
            made.replace(target)
    return target.read_bytes()


@functools.cache
def built_go(source: Path) -> bytes:
    """Return the module that a folder of Go makes, as the example's Makefile makes it."""
    header = PDK / "go" / "dataflare.go"
    name = hashlib.sha256((source / "main.go").read_bytes() + header.read_bytes()).hexdigest()[:24]
    target = _folder() / f"go-{name}.wasm"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            place = Path(folder)
            (place / "dataflare").mkdir()
            shutil.copy(header, place / "dataflare")
            shutil.copy(source / "main.go", place)
            (place / "go.mod").write_text("module guest\n\ngo 1.24\n")
            command = ["go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", "made.wasm", "."]
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=place, env={**os.environ, "GOOS": "wasip1", "GOARCH": "wasm"}
            )
            assert done.returncode == 0, done.stderr
            (place / "made.wasm").replace(target)
    return target.read_bytes()


@functools.cache
def built_assemblyscript(source: Path) -> bytes:
    """Return the module that a file of AssemblyScript makes, as the example's Makefile makes it."""
    header = PDK / "assemblyscript" / "dataflare.ts"
    name = hashlib.sha256(source.read_bytes() + header.read_bytes()).hexdigest()[:24]
    target = _folder() / f"{source.stem}-{name}.wasm"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as place:
            for file in (source, header):
                shutil.copy(file, place)
            command = ["asc", source.name, "--runtime", "stub", "--use", "abort=", "-O3", "-o", "made.wasm"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=place)
            assert done.returncode == 0, done.stderr
            (Path(place) / "made.wasm").replace(target)
    return target.read_bytes()


@functools.cache
def built(source: Path, *flags: str) -> bytes:
    """Return the module that a file of C, Rust or Zig makes."""
    if source.suffix == ".rs":
        return _built_rust(source, flags)
    zig = source.suffix == ".zig"
    header = PDK / "zig" / "dataflare.zig" if zig else PDK / "c" / "dataflare.h"
    text = source.read_bytes() + header.read_bytes()
    name = hashlib.sha256(text + " ".join([*C_FLAGS, *ZIG_FLAGS, *flags]).encode()).hexdigest()[:24]
    folder = _folder()
    target = folder / f"{source.stem}-{name}.wasm"
    if not target.exists():
        made = folder / f"{name}.{os.getpid()}.wasm"
        c = ["cc", *C_FLAGS, *flags, "-I", str(PDK / "c"), "-I", str(GUESTS), "-o", str(made), str(source)]
        command = (
            ["build-exe", *ZIG_FLAGS, f"-femit-bin={made}", "--dep", "dataflare", f"-Mroot={source}", f"-Mdataflare={header}"] if zig else c
        )
        done = subprocess.run([sys.executable, "-m", "ziglang", *command], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        made.replace(target)
    return target.read_bytes()


@functools.cache
def example(name: str) -> tuple[str, bytes]:
    """Return the file name and the bytes of the module that an example's own Makefile makes."""
    source = EXAMPLES / name
    files = [p for p in sorted(source.iterdir()) if p.is_file()] + [p for p in sorted(PDK.rglob("*")) if p.is_file()]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:24]
    kept = _folder() / f"{name}-{key}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as place:
            shutil.copytree(source, Path(place) / name)
            done = subprocess.run(["make", "-s", f"PYTHON={sys.executable}"], capture_output=True, text=True, cwd=Path(place) / name)
            assert done.returncode == 0, done.stderr
            (made,) = (Path(place) / name).glob("*.wasm")
            (Path(place) / "kept").mkdir()
            made.rename(Path(place) / "kept" / made.name)
            try:
                (Path(place) / "kept").rename(kept)
            except OSError:  # another process was faster
                assert kept.exists()
    (wasm,) = kept.glob("*.wasm")
    return wasm.name, wasm.read_bytes()


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"dataflare-guests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
