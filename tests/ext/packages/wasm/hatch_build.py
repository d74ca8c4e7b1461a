"""Compiles luhn.c when the wheel is built; the module lies in the wheel alone, the tree stays as it is."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    "-target",
    "wasm32-freestanding",
    "-mcpu=generic+simd128+bulk_memory",
    "-O3",
    "-s",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wall",
    "-Werror",
]


class ModuleBuilder(BuildHookInterface):
    """Puts `ext_luhn/luhn.wasm` into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile it beside the wheel."""
        sdk = find_spec("dataflare_sdk")
        assert sdk is not None
        assert sdk.origin is not None
        module = Path(self.directory) / "luhn.wasm"
        module.parent.mkdir(parents=True, exist_ok=True)
        command = ["cc", *FLAGS, "-I", str(Path(sdk.origin).parent / "pdk" / "c"), "-o", str(module), "luhn.c"]
        subprocess.run([sys.executable, "-m", "ziglang", *command], cwd=self.root, check=True)
        build_data["force_include"][str(module)] = "ext_luhn/luhn.wasm"
