"""A place to install small plugins into: real distributions with metadata, found through entry points."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MANIFEST = """\
manifest: 1
name: {name}
version: 1.0.0
api: ">=1,<2"
publisher: {name}.example
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install plugins: `install(name, code, manifest_lines)`; the cache and the user's settings are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed: list[str] = []

    def made(name: str, code: str = "", lines: str = "", *, distribution: str = "", manifest: str | None = None) -> Path:
        package = name.replace("-", "_")
        folder = site / package
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        (folder / "plugin.yaml").write_text(MANIFEST.format(name=name) + lines if manifest is None else manifest)
        info = site / f"{package}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{package} = {package}\n")
        installed.append(package)
        return folder

    yield made
    for package in installed:
        for module in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
            del sys.modules[module]
