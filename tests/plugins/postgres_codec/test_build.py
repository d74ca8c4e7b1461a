"""The committed guest is what its source compiles to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataflare_plugins.postgres.codec.build import build
from dataflare_plugins.postgres.codec.memory import GUEST


def test_the_guest_is_its_source(tmp_path: Path) -> None:
    try:
        import ziglang  # noqa: F401
    except ModuleNotFoundError:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("ziglang is not installed")
    build(tmp_path / "guest.wasm")
    assert (tmp_path / "guest.wasm").read_bytes() == GUEST.read_bytes()
