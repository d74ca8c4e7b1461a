"""Whether this machine can confine a worker at all."""

import subprocess
import sys

import pytest

PROBE = """
import ctypes, os
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(64000, 64000, 64000)
    os.setresuid(64000, 64000, 64000)
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000 | 0x40000000):
    print("no user namespaces:", os.strerror(ctypes.get_errno()))
elif libc.syscall(444, None, 0, 1) < 1:
    print("no Landlock:", os.strerror(ctypes.get_errno()))
elif libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None):
    print("no mounts in a user namespace:", os.strerror(ctypes.get_errno()))
"""


@pytest.fixture(scope="session")
def confines() -> None:
    """Skip, and say why, where the machine cannot confine a worker: nothing of a plugin runs otherwise.

    The machine is asked, not the sandbox: one that is broken is a failure.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("NOT RUN: the isolation level process needs Linux")
    lacking = subprocess.run([sys.executable, "-I", "-S", "-c", PROBE], capture_output=True, text=True, cwd="/").stdout.strip()
    if lacking:
        pytest.skip(f"NOT RUN: {lacking}")
