"""Wheels made by hand, good ones and malicious ones: zip files whose every byte the test decides."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

MANIFEST = """\
manifest: 1
name: {name}
version: {version}
api: ">=1,<2"
publisher: acme.example
provides:
  - {{kind: lookup, name: {package}, entry: "{package}:Thing", summary: "A thing"}}
"""
CODE = "from dataflare_sdk import Component, NoConfig\nclass Thing(Component):\n    Config = NoConfig\n    said = {said}\n"


def wheel(
    folder: Path,
    name: str = "acme",
    version: str = "1.0.0",
    lines: str = "",
    *,
    said: str = "1",
    files: Mapping[str, str | bytes] | None = None,
    requires: tuple[str, ...] = (),
    manifest: str | None = None,
    change: Callable[[zipfile.ZipFile], None] | None = None,
    record: Callable[[str], str] = str,
    points: str | None = None,
) -> Path:
    """Write a wheel; by default one that holds a plugin with one component.

    Args:
        folder: where to.
        name: the distribution's, from which the package's is made; its `version`.
        lines: more lines of its manifest.
        said: an expression that its code evaluates; whoever runs the code can tell by it.
        files: more files, or others in the place of its own.
        requires: distributions it depends on.
        manifest: the whole manifest.
        change: does something to the archive before RECORD is written.
        record: makes another RECORD of the right one.
        points: the whole `entry_points.txt`.
    """
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
    texts: dict[str, str | bytes] = {
        f"{package}/__init__.py": CODE.format(said=said),
        f"{package}/plugin.yaml": manifest or MANIFEST.format(name=name, version=version, package=package) + lines,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[dataflare.plugins]\n{package} = {package}\n" if points is None else points,
        **(files or {}),
    }
    return packed(folder / f"{package}-{version}-py3-none-any.whl", info, texts, change, record)


def library(folder: Path, name: str, version: str, code: str) -> Path:
    """Write a wheel with one module in a package, and no plugin."""
    info = f"{name}-{version}.dist-info"
    texts: dict[str, str | bytes] = {
        f"{name}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return packed(folder / f"{name}-{version}-py3-none-any.whl", info, texts)


def packed(
    path: Path,
    info: str,
    texts: Mapping[str, str | bytes],
    change: Callable[[zipfile.ZipFile], None] | None = None,
    record: Callable[[str], str] = str,
) -> Path:
    """Write the archive with its RECORD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in texts.items():
            data = content.encode() if isinstance(content, str) else content
            archive.writestr(member, data)
            lines += f"{member},sha256={digest(data)},{len(data)}\n"
        if change is not None:
            change(archive)
        archive.writestr(f"{info}/RECORD", record(lines + f"{info}/RECORD,,\n"))
    return path


def digest(data: bytes) -> str:
    """Return the SHA-256 as RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
