"""Builds guest.wasm from guest/*: `python -m dataflare_plugins.postgres.codec.build`, with `ziglang` from the extra `wasm`.

The file is committed beside its source, so that nobody who installs DataFlare needs a compiler; a test builds it again
and compares.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = (
    "-target", "wasm32-freestanding", "-mcpu=generic+simd128+bulk_memory", "-O3", "-std=c11", "-Wall", "-Wextra", "-Werror",
    "-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--export=__heap_base",
)  # fmt: skip


def build(to: Path) -> None:
    """Compile the guest to the file `to`.

    Raises:
        subprocess.CalledProcessError: the source does not compile.
        ModuleNotFoundError: `ziglang` is not installed.
    """
    import ziglang  # noqa: F401 - the module is the compiler; say at once that it is missing

    subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(to), "guest.c"], cwd=HERE / "guest", check=True)


if __name__ == "__main__":
    build(HERE / "guest.wasm")
