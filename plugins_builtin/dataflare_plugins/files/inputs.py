"""Which files a path means: a file, a glob, a folder, a URL; packed ones are unpacked."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare_sdk import CODES, code, platform
from dataflare_sdk.records import record

CHANGED = code(
    "source.changed",
    4,
    "An input changed while a run over it was not finished.",
    "Run again; start over with `dataflare state reset` if it asks.",
)
BAD_ARCHIVE = code("source.bad-archive", 4, "A packed input cannot be unpacked.", "Pack exactly one file into the archive.")
UNREACHABLE = code("world.unreachable", 4, "A server does not answer.", "Check the address and the network; run again.")
PACKED = (".gz", ".zst", ".zip")
TIMEOUT = 60.0


def dataset(path: str, base: Path) -> tuple[str, str]:
    """Return namespace and name of what a path means, without user, password and parameters of an address."""
    parts = urllib.parse.urlsplit(path)
    if parts.scheme in ("http", "https"):
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}", parts.path or "/"
    return "file", os.path.normpath((base / path).absolute())


@record
class InputFile:
    """One file to read, pinned.

    Attributes:
        name: as people know it: relative to the workflow, or the URL.
        path: where its bytes are, absolute.
        size: bytes.
        mtime: nanoseconds since 1970.
    """

    name: str
    path: str
    size: int
    mtime: int

    @classmethod
    def of(cls, name: str, path: Path) -> InputFile:
        """Pin a file as it is now."""
        status = path.stat()
        return cls(name, str(path.absolute()), status.st_size, status.st_mtime_ns)

    def to_json(self) -> dict[str, Any]:
        """Return it for a plan."""
        return {"name": self.name, "path": self.path, "size": self.size, "mtime": self.mtime}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> InputFile:
        """Read what `to_json` gave."""
        return cls(raw["name"], raw["path"], raw["size"], raw["mtime"])

    def check(self) -> None:
        """Refuse a file that is not the one that was pinned.

        Raises:
            DataflareError: `source.changed`.
        """
        try:
            now = Path(self.path).stat()
        except OSError as error:
            raise CHANGED.error(f"the file '{self.name}' is gone: {error.strerror}", file=self.name) from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime):
            raise CHANGED.error(f"the file '{self.name}' changed since the run was planned", file=self.name)


def is_url(path: str) -> bool:
    """Return True for an http(s) address."""
    return path.startswith(("http://", "https://"))


def find(path: str, base: Path, endings: Sequence[str], staging: Path, *, offline: bool) -> list[InputFile]:
    """Return the files a path means, by name; none when it means nothing yet.

    Args:
        path: file, glob, folder or URL.
        base: where relative paths start.
        endings: of the format, `.csv`; a folder is searched for them.
        staging: where downloads and unpacked files are kept.
        offline: no network: a URL gives nothing.

    Raises:
        DataflareError: `world.unreachable`, `source.bad-archive`, `world.permission`.
    """
    if is_url(path):
        return [] if offline else [_unpacked(_download(path, staging), path, staging)]
    found = []
    for one in local(path, base, endings):
        try:
            name = str(one.relative_to(base)) if one.is_relative_to(base) else str(one)
            with one.open("rb"):
                found.append(_unpacked(one, name, staging))
        except PermissionError as error:
            raise CODES["world.permission"].error(f"the file '{one}' may not be read", file=str(one)) from error
    return found


def local(path: str, base: Path, endings: Sequence[str]) -> list[Path]:
    """Return the local files a path means, packed or not, by name."""
    target = base / path
    if target.is_file():
        return [target]
    if target.is_dir():
        wanted = tuple(e + p for e in endings for p in ("", *PACKED))
        inside = [Path(root) / name for root, _, names in os.walk(target) for name in names]
        visible = [p for p in inside if not any(part.startswith((".", "_")) for part in p.relative_to(target).parts)]
        return sorted(p for p in visible if p.name.endswith(wanted))
    if glob.has_magic(path):
        found = (Path(p) for p in glob.glob(str(target), recursive=True))  # noqa: PTH207 - absolute patterns
        return sorted(p for p in found if p.is_file())
    return []


def missing(path: str, base: Path) -> Exception:
    """Return the error for a path that means no file."""
    target = base / path
    what = "holds no file of this format" if target.is_dir() else "does not exist" if not glob.has_magic(path) else "matches no file"
    return CODES["world.missing-input"].error(f"'{path}' {what}", path="path")


def _download(url: str, staging: Path) -> Path:
    from urllib import error as errors
    from urllib import request

    name = Path(urllib.parse.urlsplit(url).path).name or "download"
    target = staging / "http" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{name}.part")
    try:
        with request.urlopen(_asked(url), timeout=TIMEOUT) as answer, staged.open("wb") as file:  # noqa: S310 - http(s) only
            shutil.copyfileobj(answer, file, 1 << 20)
            wanted = answer.headers.get("Content-Length")
    except errors.HTTPError as error:
        kind = CODES["world.missing-input"] if error.code in (404, 410) else UNREACHABLE
        raise kind.error(f"'{_shown(url)}' answers {error.code} {error.reason}", path="path") from None
    except (OSError, ValueError) as error:
        raise UNREACHABLE.error(f"'{_shown(url)}' cannot be read: {error}", path="path") from None
    if wanted is not None and int(wanted) != staged.stat().st_size:
        raise UNREACHABLE.error(f"'{_shown(url)}' broke off after {staged.stat().st_size} of {wanted} bytes", path="path")
    if target.exists() and target.stat().st_size == staged.stat().st_size and target.read_bytes() == staged.read_bytes():
        staged.unlink()  # the same bytes keep their time, and so their place in offsets
    else:
        platform.replace(staged, target)
    return target


def _asked(url: str) -> Any:
    """Return the request for an address; a user and password in it go where HTTP wants them."""
    from base64 import b64encode
    from urllib import request

    parts = urllib.parse.urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    made = request.Request(urllib.parse.urlunsplit(parts._replace(netloc=place)))  # noqa: S310 - http(s) only
    if at:
        name, _, password = user.partition(":")
        text = f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(password)}"
        made.add_unredirected_header("Authorization", f"Basic {b64encode(text.encode()).decode()}")
    return made


def _shown(url: str) -> str:
    """Return an address without user, password and query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))


def _unpacked(path: Path, name: str, staging: Path) -> InputFile:
    """Pin a file; of a zip its one member, unpacked. DuckDB and Arrow read .gz and .zst themselves."""
    name = _shown(name) if is_url(name) else name
    if path.suffix != ".zip":
        return InputFile.of(name, path)
    key = hashlib.sha256(f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = staging / "unzipped" / key / path.stem
    if not target.exists():
        import zipfile

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
                if len(members) != 1:
                    raise BAD_ARCHIVE.error(f"'{name}' holds {len(members)} files", file=name)
                staged = target.with_name(f".{target.name}.part")
                with archive.open(members[0]) as packed, staged.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                platform.replace(staged, target)
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
            raise BAD_ARCHIVE.error(f"'{name}' cannot be unpacked: {error}", file=name) from error
    return InputFile.of(name, target)
