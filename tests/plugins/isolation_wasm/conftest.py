"""A place to install WebAssembly plugins into: distributions with metadata and no Python code, found through entry points."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.plugins.isolation_wasm.building import EXAMPLES, example

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a folder with a manifest and its modules: `install(name, manifest, {"x.wasm": bytes})`; cache and settings are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(name: str, manifest: str, modules: dict[str, bytes]) -> Path:
        package = name.replace("-", "_")
        folder = site / package
        folder.mkdir()
        (folder / "plugin.yaml").write_text(manifest)
        for file, wasm in modules.items():
            (folder / file).write_bytes(wasm)
        info = site / f"{package}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{package} = {package}\n")
        return folder

    return installed


@pytest.fixture
def installed(install: Install, tmp_path: Path) -> Callable[[str], Path]:
    """Install an example and return a copy of its folder to run its workflow in: `installed("wasm-c-total")`."""

    def copied(name: str) -> Path:
        place = EXAMPLES / name
        file, wasm = example(name)
        install(f"example-{name}", (place / "plugin.yaml").read_text(), {file: wasm})
        folder = tmp_path / name
        shutil.copytree(place, folder)
        return folder

    return copied
