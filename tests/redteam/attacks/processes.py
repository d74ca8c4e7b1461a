"""Other processes, and more of one's own."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from typing import Any

from . import attack


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _stack(pid: int) -> tuple[int, int]:
    with open(f"/proc/{pid}/maps") as maps:
        place = next(line.split()[0] for line in maps if "[stack]" in line)
    begin, end = (int(p, 16) for p in place.split("-"))
    return begin, end


def _secrets(memory: bytes) -> str:
    return " ".join(m.decode() for m in re.findall(rb"secret-[0-9a-f]{16}", memory))


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


@attack("victim")
def kill_another_process(target: Any) -> str:
    """Send SIGKILL to a process of the same user."""
    os.kill(target.victim, signal.SIGKILL)
    return ""


@attack("victim")
def kill_everybody(target: Any) -> str:
    """Send SIGTERM to every process that can be reached."""
    os.kill(-1, signal.SIGTERM)
    return ""


@attack("victim")
def trace_another_process(target: Any) -> str:
    """Attach to a process as a debugger does, and end it."""
    libc = _libc()
    _checked(libc.ptrace(16, target.victim, None, None), "ptrace")
    os.kill(target.victim, signal.SIGKILL)
    return ""


@attack("victim")
def read_the_memory_of_another_process(target: Any) -> str:
    """Read another process's memory through /proc."""
    begin, end = _stack(target.victim)
    with open(f"/proc/{target.victim}/mem", "rb", 0) as memory:
        memory.seek(begin)
        return _secrets(memory.read(end - begin))


@attack("victim")
def signal_by_pidfd(target: Any) -> str:
    """Send a signal by a process's file descriptor instead of its number."""
    libc = _libc()
    handle = _checked(libc.syscall(434, target.victim, 0), "pidfd_open")
    _checked(libc.syscall(424, handle, signal.SIGKILL, None, 0), "pidfd_send_signal")
    return ""


@attack()
def start_a_shell(target: Any) -> str:
    """Start a program."""
    return subprocess.run(["/bin/sh", "-c", f"echo {'OV' + 'ER'}"], capture_output=True, text=True, check=True).stdout


@attack()
def start_an_interpreter(target: Any) -> str:
    """Start the very interpreter again."""
    return subprocess.run([sys.executable, "-I", "-S", "-c", "print('OV' + 'ER')"], capture_output=True, text=True, check=True).stdout


@attack()
def run_a_program_from_memory(target: Any) -> str:
    """Write a program into memory that has no path, and run it."""
    handle = os.memfd_create("x")
    with open("/bin/true", "rb") as program:
        os.write(handle, program.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(handle, ["true"], {})
        except OSError:
            os._exit(9)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise PermissionError("it did not run")
    return "OVER"


@attack()
def fork_without_an_end(target: Any) -> str:
    """Make more processes than the plugin may have threads."""
    children = []
    try:
        for _ in range(target.many):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
        return "OVER"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@attack()
def make_namespaces(target: Any) -> str:
    """Become root in a namespace of one's own."""
    _checked(_libc().unshare(0x10000000 | 0x20000), "unshare")
    return "OVER"


@attack()
def rename_the_machine(target: Any) -> str:
    """Give the machine another name."""
    import socket

    socket.sethostname("owned")
    return "OVER" if socket.gethostname() == "owned" else ""


@attack()
def gain_rights_by_a_program(target: Any) -> str:
    """Leave a program with the set-user-id bit behind."""
    path = os.path.join(target.out, "suid")
    with open(path, "wb") as made:
        made.write(b"#!/bin/sh\n")
    os.chmod(path, 0o4755)
    if not os.stat(path).st_mode & 0o4000:
        raise PermissionError("the bit did not stay")
    return "OVER"


@attack()
def handle_page_faults(target: Any) -> str:
    """Ask to handle page faults, which stops the kernel where an attacker wants it to."""
    os.close(_checked(_libc().syscall(323, 1), "userfaultfd"))
    return "OVER"


@attack("victim")
def read_memory_by_process_vm(target: Any) -> str:
    """Read another process's memory by the system call made for it."""
    begin, end = _stack(target.victim)
    there = (ctypes.c_uint64 * 2)(begin, end - begin)
    buffer = ctypes.create_string_buffer(end - begin)
    here = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), end - begin)
    _checked(_libc().syscall(310, target.victim, here, 1, there, 1, 0), "process_vm_readv")
    return _secrets(buffer.raw)


@attack()
def share_memory_by_a_key(target: Any) -> str:
    """Make memory that any process of the machine can find by its key."""
    _checked(_libc().shmget(0x5EC2E7, 4096, 0o1666), "shmget")
    return "OVER"


@attack()
def keep_a_key(target: Any) -> str:
    """Leave data in the kernel's keyring for the next process."""
    _checked(_libc().syscall(248, b"user", b"k", b"v", 1, -3), "add_key")
    return "OVER"
