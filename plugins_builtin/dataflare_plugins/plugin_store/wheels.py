"""Wheels from strangers: read as data, checked before anything is written, unpacked without running anything.

Refused are names that leave the folder, links and devices, files that Python runs by itself (`.pth`, `sitecustomize`),
packages that stand in for DataFlare's own or for the standard library's, anything that RECORD does not list with the right
hash, and more than a plugin may take. What a wheel would put outside the folder of packages (scripts, data, headers) is left
out.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path, PurePosixPath

from dataflare_plugins.plugin_store.codes import BAD_WHEEL, NOT_A_WHEEL, SHADOWS, TOO_LARGE, UNSAFE
from dataflare_sdk.plugins import file_hash, shown
from dataflare_sdk.records import record

MAX_BYTES = 1 << 30
"""What all files of a wheel may take, unpacked."""

MAX_FILES = 20_000
MAX_RATIO = 200
"""How many times its packed size a file above `FREE_BYTES` may take."""

FREE_BYTES = 1 << 20
MAX_METADATA = 16 << 20
"""What one file of metadata may take: it is read into memory."""

MAX_LINE = 500
"""Characters of one requirement."""

HOST = frozenset(("dataflare", "dataflare_sdk", "dataflare_plugins", "pyarrow"))
"""Packages that a plugin sees through the host, and may not bring."""

_NAME = re.compile(r"(?P<name>[A-Za-z0-9](?:[\w.]*[A-Za-z0-9])?)-(?P<version>\d[\w.!+]*)(?:-\d\w*)?-[\w.]+-[\w.]+-[\w.]+\.whl", re.ASCII)
_DATA = re.compile(r"[^/]+\.data/(?P<kind>[^/]+)/(?P<rest>.+)")
_UNREADABLE = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
_BY_ITSELF = ("sitecustomize", "usercustomize")


@record
class Wheel:
    """A wheel that passed every check.

    Attributes:
        path: the file.
        name: the distribution's name as its file bears it, and its `version`.
        sha256: of the file, in hexadecimal.
        info: its folder of metadata.
        places: member of the archive to where it goes below the folder of packages.
        plugins: packages that its entry points name as plugins.
        requires: what its metadata says it depends on, and which Python it needs.
    """

    path: Path
    name: str
    version: str
    sha256: str
    info: str
    places: dict[str, str]
    plugins: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    python: str = ""

    @property
    def key(self) -> str:
        """The name in the form that all its spellings share."""
        return canonical(self.name)


def canonical(name: str) -> str:
    """Return the name of a distribution in the one form that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wheel(path: Path) -> Wheel:
    """Check a wheel.

    Raises:
        DataflareError: `plugin.not-a-wheel`, `plugin.bad-wheel`, `plugin.unsafe-wheel`, `plugin.too-large`, `plugin.shadows`.
    """
    parts = _NAME.fullmatch(path.name)
    if parts is None:
        raise NOT_A_WHEEL.error(f"{path.name!r} is no wheel", file=str(path))
    with _archive(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        _check_size(path, members)
        for member in archive.infolist():
            _check_member(path, member)
        names = [m.filename for m in members]
        if len({n.casefold() for n in names}) != len(names):
            raise UNSAFE.error("two of its files have the same name", file=str(path))
        info = _info(path, names, parts["name"], parts["version"])
        _check_record(path, archive, info, names)
        metadata = _metadata(path, archive, info, parts["name"], parts["version"])
        places = {n: place for n in names if (place := _place(path, n)) is not None}
        _check_packages(path, places)
        plugins = _entry_points(path, archive, info)
    requires, python = tuple(map(str, metadata.get_all("Requires-Dist", []))), str(metadata.get("Requires-Python", ""))
    _check_requirements(path, requires, python)
    return Wheel(path, parts["name"], parts["version"], file_hash(path), info, places, plugins, requires, python)


def unpack(wheel: Wheel, site: Path) -> None:
    """Write the files of a wheel below a folder, for reading only.

    Raises:
        DataflareError: `plugin.bad-wheel`, `plugin.shadows`: another wheel brought a file of that name.
    """
    with _archive(wheel.path) as archive:
        for member, place in wheel.places.items():
            target = site / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise SHADOWS.error(f"it brings {place!r}, which another package brings too", file=str(wheel.path))
            with archive.open(member) as source, target.open("xb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
            target.chmod(0o444)


def read_member(wheel: Wheel, name: str) -> bytes | None:
    """Return one file of a wheel by its place, or None."""
    with _archive(wheel.path) as archive:
        for member, place in wheel.places.items():
            if place == name:
                return archive.read(member)
    return None


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _UNREADABLE as error:
        raise BAD_WHEEL.error(f"it cannot be read: {error}", file=str(path)) from error
    except FileNotFoundError as error:
        raise NOT_A_WHEEL.error("there is no such file", file=str(path)) from error
    except OSError as error:
        raise BAD_WHEEL.error(f"it cannot be read: {error.strerror}", file=str(path)) from error


def _check_size(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(m.file_size for m in members)
    if total > MAX_BYTES or len(members) > MAX_FILES:
        raise TOO_LARGE.error(f"it unpacks to {len(members)} files of {total} bytes", file=str(path))
    for m in members:
        if m.file_size > FREE_BYTES and m.file_size > MAX_RATIO * max(m.compress_size, 1):
            raise TOO_LARGE.error(
                f"{shown(m.filename)!r} unpacks to {m.file_size // max(m.compress_size, 1)} times its size", file=str(path)
            )


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = name.rstrip("/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name != member.orig_filename or name != shown(name) or "\n" in name or "\t" in name or "\\" in name or ":" in name:
        raise UNSAFE.error(f"the name {shown(name)!r} is no plain path", file=str(path))
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or PurePosixPath(name).is_absolute():
        raise UNSAFE.error(f"{name!r} lies outside its folder", file=str(path))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UNSAFE.error(f"{name!r} is a link or a device", file=str(path))
    if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UNSAFE.error(f"{name!r} is encrypted, or packed as wheels never are", file=str(path))


def _info(path: Path, names: list[str], name: str, version: str) -> str:
    found = {n.partition("/")[0] for n in names if n.partition("/")[0].endswith(".dist-info")}
    info = found.pop() if len(found) == 1 else ""
    if canonical(info) != canonical(f"{name}-{version}.dist-info"):
        raise BAD_WHEEL.error("its folder of metadata is not the one that its name promises", file=str(path))
    return info


def _check_record(path: Path, archive: zipfile.ZipFile, info: str, names: list[str]) -> None:
    """Compare every file with RECORD: one that is not listed, or another one than is listed, was put there later."""
    own = {f"{info}/RECORD", f"{info}/RECORD.jws", f"{info}/RECORD.p7s"}
    text = _text(path, archive, f"{info}/RECORD")
    try:
        listed = {row[0]: row[1] for row in csv.reader(text.splitlines()) if len(row) >= 2}
    except csv.Error as error:
        raise BAD_WHEEL.error(f"its RECORD cannot be read: {error}", file=str(path)) from None
    for name in names:
        if name in own:
            continue
        algorithm, _, wanted = listed.get(name, "").partition("=")
        if algorithm not in ("sha256", "sha384", "sha512"):
            raise UNSAFE.error(f"RECORD does not list {name!r} with a hash", file=str(path))
        made = hashlib.new(algorithm)
        with archive.open(name) as file:
            while block := file.read(1 << 20):
                made.update(block)
        if base64.urlsafe_b64encode(made.digest()).rstrip(b"=").decode() != wanted:
            raise UNSAFE.error(f"{name!r} is not the file that RECORD lists", file=str(path))


def _metadata(path: Path, archive: zipfile.ZipFile, info: str, name: str, version: str) -> Message:
    found = BytesHeaderParser().parsebytes(_text(path, archive, f"{info}/METADATA").encode())
    if canonical(str(found["Name"])) != canonical(name) or canonical(str(found["Version"])) != canonical(version):
        raise BAD_WHEEL.error("its metadata names another distribution than its file name", file=str(path))
    return found


def _check_requirements(path: Path, requires: tuple[str, ...], python: str) -> None:
    """Refuse a dependency at an address: pip would fetch whatever lies there, and build it, which runs its code."""
    if any(len(line) > MAX_LINE for line in (*requires, python)):
        raise BAD_WHEEL.error(f"one of its requirements is longer than {MAX_LINE} characters", file=str(path))
    for line in requires:
        if "@" in line.partition(";")[0]:
            raise UNSAFE.error(f"it depends on a file at an address: {shown(line)!r}", file=str(path))


def _place(path: Path, name: str) -> str | None:
    """Return where a member goes below the folder of packages, or None: nowhere."""
    data = _DATA.fullmatch(name)
    if data is None:
        return name
    if data["kind"] in ("purelib", "platlib"):
        return data["rest"]
    if data["kind"] in ("scripts", "data", "headers"):
        return None
    raise UNSAFE.error(f"{name!r} goes to a place that wheels do not have", file=str(path))


def _check_packages(path: Path, places: dict[str, str]) -> None:
    for place in places.values():
        top, _, below = place.partition("/")
        stem = top.partition(".")[0]
        if (not below and top.endswith(".pth")) or stem in _BY_ITSELF:
            raise UNSAFE.error(f"Python would run {place!r} by itself", file=str(path))
        if stem in HOST or (stem in sys.stdlib_module_names and (below or place.endswith((".py", ".so", ".pyd")))):
            raise SHADOWS.error(f"it brings {place!r}, which stands in for {stem!r}", file=str(path))


def _entry_points(path: Path, archive: zipfile.ZipFile, info: str) -> tuple[str, ...]:
    """Return the packages that are named as plugins, each of which must be in the wheel itself."""
    import configparser

    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    try:
        parser.read_string(_text(path, archive, f"{info}/entry_points.txt", optional=True))
        found = tuple(parser["dataflare.plugins"].values()) if "dataflare.plugins" in parser else ()
    except configparser.Error as error:
        raise BAD_WHEEL.error(f"its entry points cannot be read: {type(error).__name__}", file=str(path)) from error
    for package in found:
        if not all(part.isidentifier() for part in package.split(".")):
            raise BAD_WHEEL.error(f"its entry point {shown(package)!r} names no package", file=str(path))
    return found


def _text(path: Path, archive: zipfile.ZipFile, name: str, *, optional: bool = False) -> str:
    try:
        if archive.getinfo(name).file_size > MAX_METADATA:
            raise TOO_LARGE.error(f"its {name!r} is larger than {MAX_METADATA >> 20} MiB", file=str(path))
        return archive.read(name).decode("utf-8")
    except KeyError:
        if optional:
            return ""
        raise BAD_WHEEL.error(f"it has no {name!r}", file=str(path)) from None
    except UnicodeDecodeError:
        raise BAD_WHEEL.error(f"{name!r} is no UTF-8 text", file=str(path)) from None
