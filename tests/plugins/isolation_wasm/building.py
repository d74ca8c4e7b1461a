"""Builds guests, once per content: what was built lies in the user's temporary folder. C and Zig with `ziglang`, Go where it is."""

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


@functools.cache
def built(source: Path, *flags: str) -> bytes:
    """Return the module that a file of C or Zig makes."""
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
def built_go(source: Path) -> bytes:
    """Return the module that a folder with a `main.go` makes, beside a copy of the PDK."""
    header = PDK / "go" / "dataflare.go"
    name = hashlib.sha256((source / "main.go").read_bytes() + header.read_bytes()).hexdigest()[:24]
    target = _folder() / f"{source.name}-{name}.wasm"
    if not target.exists():
        with tempfile.TemporaryDirectory() as place:
            shutil.copytree(source, place, dirs_exist_ok=True)
            shutil.copytree(header.parent, Path(place) / "dataflare")
            made = Path(place) / "made.wasm"
            command = ["go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", str(made), "."]
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=place, env={**os.environ, "GOOS": "wasip1", "GOARCH": "wasm"}
            )
            assert done.returncode == 0, done.stderr
            shutil.copy(made, target.with_suffix(f".{os.getpid()}"))
            target.with_suffix(f".{os.getpid()}").replace(target)
    return target.read_bytes()


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"dataflare-guests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
