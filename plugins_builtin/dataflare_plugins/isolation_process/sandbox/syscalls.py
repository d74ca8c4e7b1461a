"""System calls by number, without a library between: what confines a process must not depend on what is installed."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["ARCHITECTURES", "MACHINE", "NUMBERS", "call", "number", "prctl"]

_TABLE = """
read 0 63 | write 1 64 | open 2 - | close 3 57 | stat 4 - | fstat 5 80 | lstat 6 - | poll 7 - | lseek 8 62 | mmap 9 222 |
mprotect 10 226 | munmap 11 215 | brk 12 214 | rt_sigaction 13 134 | rt_sigprocmask 14 135 | rt_sigreturn 15 139 |
pread64 17 67 | pwrite64 18 68 | readv 19 65 | writev 20 66 | access 21 - | pipe 22 - | select 23 - | sched_yield 24 124 |
mremap 25 216 | msync 26 227 | mincore 27 232 | madvise 28 233 | dup 32 23 | dup2 33 - | pause 34 - | nanosleep 35 101 |
getitimer 36 102 | alarm 37 - | setitimer 38 103 | getpid 39 172 | sendfile 40 71 | recvfrom 45 207 | recvmsg 47 212 |
shutdown 48 210 | getsockname 51 204 | getpeername 52 205 | getsockopt 55 209 | exit 60 93 | wait4 61 260 | kill 62 129 |
uname 63 160 | fcntl 72 25 | flock 73 32 | fsync 74 82 | fdatasync 75 83 | truncate 76 45 | ftruncate 77 46 |
getdents 78 - | getdents64 217 61 | getcwd 79 17 | chdir 80 49 | fchdir 81 50 | rename 82 - | rmdir 84 - | link 86 - |
unlink 87 - | readlink 89 - | umask 95 166 | gettimeofday 96 169 | getrlimit 97 163 | getrusage 98 165 | sysinfo 99 179 |
times 100 153 | getuid 102 174 | getgid 104 176 | geteuid 107 175 | getegid 108 177 | getppid 110 173 | getpgrp 111 - |
getpgid 121 155 | getsid 124 156 | getgroups 115 158 | getresuid 118 148 | getresgid 120 150 | capget 125 90 |
rt_sigpending 127 136 | rt_sigtimedwait 128 137 | rt_sigsuspend 130 133 | sigaltstack 131 132 | utime 132 - |
statfs 137 43 | fstatfs 138 44 | getpriority 140 141 | sched_getparam 143 121 | sched_getscheduler 145 120 |
sched_get_priority_max 146 125 | sched_get_priority_min 147 126 | arch_prctl 158 - | gettid 186 178 | readahead 187 213 |
futex 202 98 | sched_getaffinity 204 123 | epoll_create 213 - | epoll_create1 291 20 | epoll_ctl 233 21 | epoll_wait 232 - |
epoll_pwait 281 22 | epoll_pwait2 441 441 | set_tid_address 218 96 | fadvise64 221 223 | clock_gettime 228 113 |
clock_getres 229 114 | clock_nanosleep 230 115 | exit_group 231 94 | tgkill 234 131 | utimes 235 - | unlinkat 263 35 |
renameat 264 38 | renameat2 316 276 | linkat 265 37 | readlinkat 267 78 | faccessat 269 48 | faccessat2 439 439 |
newfstatat 262 79 | pselect6 270 72 | ppoll 271 73 | set_robust_list 273 99 | get_robust_list 274 100 | utimensat 280 88 |
timerfd_create 283 85 | timerfd_settime 286 86 | timerfd_gettime 287 87 | eventfd 284 - | eventfd2 290 19 |
fallocate 285 47 | dup3 292 24 | pipe2 293 59 | preadv 295 69 | pwritev 296 70 | preadv2 327 286 | pwritev2 328 287 |
recvmmsg 299 243 | getcpu 309 168 | getrandom 318 278 | membarrier 324 283 | copy_file_range 326 285 | statx 332 291 |
rseq 334 293 | close_range 436 436 | sync_file_range 277 84 | restart_syscall 219 128 | ioctl 16 29 | socket 41 198 |
connect 42 203 | sendto 44 206 | sendmsg 46 211 | sendmmsg 307 269 | socketpair 53 199 | setsockopt 54 208 | clone 56 220 |
mkdir 83 - | mkdirat 258 34 | creat 85 - | openat 257 56 | chmod 90 - | fchmod 91 52 | fchmodat 268 53 | prctl 157 167 |
prlimit64 302 261 | clone3 435 435 | openat2 437 437 | capset 126 91 | seccomp 317 277 | landlock_create_ruleset 444 444 |
landlock_add_rule 445 445 | landlock_restrict_self 446 446 | open_tree 428 428 | move_mount 429 429 |
mount_setattr 442 442 | pivot_root 155 41 | umount2 166 39 | mount 165 40 | unshare 272 97 | execve 59 221 |
fchmodat2 452 452
"""
"""Name, number on x86_64, number on aarch64; `-` where an architecture does not have the call."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine to its column of the table and its AUDIT_ARCH value."""

MACHINE = platform.machine()


def _numbers() -> dict[str, tuple[int | None, int | None]]:
    found: dict[str, tuple[int | None, int | None]] = {}
    for entry in _TABLE.replace("\n", " | ").split("|"):
        if entry.strip():
            name, *both = entry.split()
            x86, arm = (None if n == "-" else int(n) for n in both)
            found[name] = (x86, arm)
    return found


NUMBERS = _numbers()
"""Name to its number on each architecture."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def number(name: str, machine: str = MACHINE) -> int | None:
    """Return a call's number on a machine, or None when the machine does not have it.

    Raises:
        OSError: nothing is known of this architecture.
    """
    if machine not in ARCHITECTURES:
        raise OSError(38, f"no system call table for {machine}")
    return NUMBERS[name][ARCHITECTURES[machine][0]]


def call(name: str, *arguments: object) -> int:
    """Make a system call.

    Args:
        name: its name.
        arguments: numbers, bytes (passed by address), None, or anything ctypes takes.

    Raises:
        OSError: as the kernel answers.
    """
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number(name) or -1), *given))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    """Call prctl with one value.

    Raises:
        OSError: as the kernel answers.
    """
    call("prctl", option, value, 0, 0, 0)
