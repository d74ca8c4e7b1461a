"""A place to install small plugins into: real distributions with metadata, found through entry points."""

import json
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
    """Install plugins: `install(name, code, manifest_lines)`; the cache and the user's settings are empty but for their trust.

    With `trusted=False` the policy says nothing of the plugin.
    """
    for variable in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable.lower()))
    settings = tmp_path / "config" / "dataflare"
    settings.mkdir(parents=True, exist_ok=True)
    inside: dict[str, str] = {}
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed: list[str] = []

    def made(name: str, code: str = "", lines: str = "", *, manifest: str | None = None, trusted: bool = True) -> Path:
        package = name.replace("-", "_")
        folder = site / package
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        (folder / "plugin.yaml").write_text(MANIFEST.format(name=name) + lines if manifest is None else manifest)
        info = site / f"{package}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{package} = {package}\n")
        installed.append(package)
        if trusted:
            inside[name] = "inprocess"
            (settings / "policy.yaml").write_text(json.dumps({"isolation": inside}))
        return folder

    yield made
    for package in installed:
        for module in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
            del sys.modules[module]
