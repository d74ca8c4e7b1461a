"""Files that were not granted."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from . import attack


def _text(path: str) -> str:
    return Path(path).read_text()


def _with_a_secret(environment: str) -> str:
    if "SECRET=" not in environment:
        raise LookupError("there is no secret in it")
    return environment


@attack()
def read_a_secret_file(target: Any) -> str:
    """Open a file by its path."""
    return _text(target.secret)


@attack()
def read_through_a_symlink(target: Any) -> str:
    """Make a link in the folder that may be written, pointing at the secret, and read the link."""
    link = Path(target.out) / "link"
    link.symlink_to(target.secret)
    return _text(str(link))


@attack()
def read_through_dots(target: Any) -> str:
    """Walk out of the granted folder by `..`."""
    return _text(os.path.join(target.granted, "..", os.path.relpath(target.secret, os.path.dirname(target.granted))))


@attack()
def read_through_proc_root(target: Any) -> str:
    """Go through /proc/self/root."""
    return _text("/proc/self/root" + target.secret)


@attack()
def read_through_proc_cwd(target: Any) -> str:
    """Go through /proc/1/root, which may be another's root."""
    return _text("/proc/1/root" + target.secret)


@attack()
def read_with_another_system_call(target: Any) -> str:
    """Call openat2 past the libraries."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = (ctypes.c_uint64 * 3)(0, 0, 0)
    handle = libc.syscall(437, -100, target.secret.encode(), how, 24)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    return os.read(handle, 4096).decode()


@attack()
def hard_link_into_the_folder(target: Any) -> str:
    """Link the secret into the folder that may be written, and read it there."""
    to = os.path.join(target.out, "hard")
    os.link(target.secret, to)
    return _text(to)


@attack()
def rename_into_the_folder(target: Any) -> str:
    """Move the secret into the folder that may be written, and read it there."""
    to = os.path.join(target.out, "moved")
    os.rename(target.secret, to)
    return _text(to)


@attack()
def read_the_environment_of_another(target: Any) -> str:
    """Look for the secret among the processes' environments."""
    found = ""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += (folder / "environ").read_text(errors="replace")
        except OSError:
            continue
    return _with_a_secret(found)


@attack()
def read_own_environment(target: Any) -> str:
    """Look for the secret in the process's own environment."""
    return _with_a_secret(" ".join(f"{k}={v}" for k, v in os.environ.items()))


@attack()
def write_beside_the_folder(target: Any) -> str:
    """Write where nothing was granted."""
    Path(target.written).write_text("owned")
    return ""


@attack()
def write_a_granted_file(target: Any) -> str:
    """Write in a folder that may be read only."""
    (Path(target.granted) / "new").write_text("owned")
    return ""


@attack()
def remove_a_file(target: Any) -> str:
    """Remove a file that was not granted."""
    os.remove(target.victim_file)
    return ""


@attack()
def change_a_mode(target: Any) -> str:
    """Open a file to everybody."""
    os.chmod(target.victim_file, 0o777)
    return ""


@attack()
def truncate_a_file(target: Any) -> str:
    """Empty a file by its path, without opening it."""
    os.truncate(target.victim_file, 0)
    return ""


@attack()
def write_into_the_installed_code(target: Any) -> str:
    """Change code that the host will import."""
    Path(target.code).write_text("owned")
    return ""


@attack()
def mount_over_a_folder(target: Any) -> str:
    """Mount a file system over the granted folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", target.granted.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    (Path(target.granted) / "new").write_text("owned")
    return ""


@attack()
def bind_the_folder(target: Any) -> str:
    """Bind the folder of the secret over a granted one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.path.dirname(target.secret).encode(), target.granted.encode(), None, 0x1000, None):
        raise OSError(ctypes.get_errno(), "mount")
    return _text(os.path.join(target.granted, os.path.basename(target.secret)))


@attack()
def read_by_io_uring(target: Any) -> str:
    """Set up an io_uring, whose requests pass no filter of system calls."""
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(ring)
    return "OVER"
