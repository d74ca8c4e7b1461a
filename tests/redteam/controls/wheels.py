"""Archives unpacked and installed as somebody does who trusts them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from . import OVER, control, data
from .texts import printed

SITE = Path("/tmp/world/out/a/site")


def _unpacked(given: dict[str, Any], site: Path = SITE, *, links: bool = False, separator: str = "/", fold: bool = False) -> Path:
    """Write every member below a folder, by its name."""
    site.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(data(given, "wheel"))) as archive:
        for member in archive.infolist():
            name = member.orig_filename.replace("\\", "/") if separator == "\\" else member.filename
            parts = name.split("/")
            if parts[0].endswith(".data") and len(parts) > 2 and parts[1] in ("purelib", "platlib"):
                name = "/".join(parts[2:])
            path = os.path.join(site, name.casefold() if fold else name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            content = archive.read(member)
            if links and stat.S_ISLNK(member.external_attr >> 16):
                os.symlink(content, path)
                continue
            with open(path, "wb") as file:
                file.write(content)
    return site


def _bad(site: Path) -> str:
    """Return `OVER` when what must not come is there."""
    files = [p for p in site.rglob("*") if p.is_file()]
    evil = any("evil" in p.name or (p.stat().st_size < 100 and b"evil" in p.read_bytes()) for p in files)
    return OVER if evil or sum(p.stat().st_size for p in files) > 256 << 20 or len(files) > 20_000 else ""


@control
def unpack_a_wheel(target: Any, given: dict[str, Any]) -> str:
    """Unpack it: a file is written elsewhere, or what must not come is there."""
    found = _bad(_unpacked(given))
    return found or (OVER if "dataflare_files" in os.listdir(SITE) else "")


@control
def unpack_a_wheel_beside(target: Any, given: dict[str, Any]) -> str:
    """Unpack it as deep below the root as its dots go up."""
    _unpacked(given, Path("/tmp/world/out/a/b/c/site"))
    return OVER if os.path.exists("/tmp/world/hidden/new") or os.path.exists("/tmp/world/out/hidden/new") else ""


@control
def unpack_as_on_windows(target: Any, given: dict[str, Any]) -> str:
    """Unpack it where a backslash separates."""
    _unpacked(given, separator="\\")
    return OVER if (SITE.parent / "evil.py").exists() else ""


@control
def unpack_with_links(target: Any, given: dict[str, Any]) -> str:
    """Unpack it as `unzip` does, which makes links."""
    _unpacked(given, links=True)
    return ""


@control
def unpack_where_case_does_not_count(target: Any, given: dict[str, Any]) -> str:
    """Unpack it where two names are one: the second file replaces the first."""
    site = _unpacked(given, fold=True)
    return OVER if "evil" in (site / "acme" / "plugin_code.py").read_text() else ""


@control
def start_python_beside(target: Any, given: dict[str, Any]) -> str:
    """Start a Python that has the folder as one of its own."""
    site = _unpacked(given)
    subprocess.run([sys.executable, "-c", f"import site; site.addsitedir({str(site)!r})"], check=False, env={"PYTHONPATH": str(site)})
    return ""


@control
def import_json_beside(target: Any, given: dict[str, Any]) -> str:
    """Import a module of the standard library with the folder before it."""
    site = _unpacked(given)
    subprocess.run([sys.executable, "-c", "import json"], env={"PYTHONPATH": str(site)}, check=True, capture_output=True)
    return ""


@control
def unpack_what_overlaps(target: Any, given: dict[str, Any]) -> str:
    """Unpack every name from where the directory of the archive says that it lies."""
    whole, made = data(given, "wheel"), 0
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for member in archive.infolist():
            name, extra = struct.unpack_from("<HH", whole, member.header_offset + 26)
            start = member.header_offset + 30 + name + extra
            made += len(zlib.decompress(whole[start : start + member.compress_size], -15))
    return OVER if made > 1 << 30 else ""


@control
def list_a_wheel(target: Any, given: dict[str, Any]) -> str:
    """Print the names of what is in it."""
    with zipfile.ZipFile(io.BytesIO(data(given, "wheel"))) as archive:
        names = archive.namelist()
    return OVER if "\x1b" in printed(lambda: print("\n".join(names))) else ""


@control
def install_scripts(target: Any, given: dict[str, Any]) -> str:
    """Put scripts where an installer puts them: beside the packages, on the path of the shell."""
    _unpacked(given)
    prefix = SITE.parent / "bin"
    prefix.mkdir()
    for script in SITE.glob("*.data/scripts/*"):
        (prefix / script.name).write_bytes(script.read_bytes())
    return OVER if (prefix / "evil").exists() else ""


@control
def fetch_with_pip(target: Any, given: dict[str, Any]) -> str:
    """Ask pip for wheels only, and for a file at an address: it builds the file, whose code runs."""
    backend = f"open({target.written!r}, 'w').close()\n"
    texts = {"pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n', "backend.py": backend}
    made = "/tmp/world/out/evil-1.0.0.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"evil-1.0.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    shutil.copytree("/proc/self/cwd/packages", "/tmp/world/out/packages")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-index",
        "--only-binary",
        ":all:",
        "--dest",
        "/tmp/world/out/dest",
        f"evil @ file://{made}",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": "/tmp/world/out/packages", "HOME": "/tmp"}
    )
    sys.stderr.write(done.stderr[-300:].replace("\n", " "))
    return ""


@control
def trust_a_lock(target: Any, given: dict[str, Any]) -> str:
    """Compare the version of a plugin with what was granted, and run it: a file of it was changed meanwhile."""
    code = Path("/tmp/world/out/step.py")
    code.write_text("pass\n")
    granted = {"version": "1.0.0"}
    code.write_text(f"open({target.written!r}, 'w').close()\n")
    if granted["version"] == "1.0.0":
        subprocess.run([sys.executable, str(code)], check=True)
    return ""
