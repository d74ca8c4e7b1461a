"""What a hostile plugin would try. It runs in sandboxes only: every act is the plugin's own, on files made for it."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time

import pyarrow as pa

from dataflare_sdk import Processor, config, option

if os.getpid() != 1 or os.path.exists("/proc/self"):
    raise ImportError("this file is imported in a sandbox and nowhere else")
libc = ctypes.CDLL(None, use_errno=True)
TEXT = pa.schema([("did", pa.string())])


def call(number, *arguments):
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *given) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


@config
class ActsConfig:
    """What to do."""

    act: str = option("Name of the act.")
    where: str = option("A path or host.", default="")
    port: int = option("A port.", default=0)


class Acts(Processor[ActsConfig]):
    """Does one thing per batch and says what came of it."""

    Config = ActsConfig
    features = frozenset({"rowwise"})

    def output_schemas(self, inputs):
        return {"": TEXT}

    def process(self, batch, input):
        act = getattr(self, self.config.act)
        try:
            found = act()
        except (OSError, MemoryError, RuntimeError, ValueError) as error:
            found = f"{type(error).__name__} {getattr(error, 'errno', None)}: {error}"
        yield "", batch.with_data(pa.RecordBatch.from_arrays([pa.array([str(found)] * batch.data.num_rows)], schema=TEXT))

    def close(self):
        if self.config.act == "die_late":
            os._exit(7)

    def nap(self):
        time.sleep(0.5)
        return "rested"

    def die_late(self):
        return "not yet"

    # -- files

    def read(self):
        with open(self.config.where) as file:
            return file.read()

    def write(self):
        with open(self.config.where, "w") as file:
            file.write("written by the plugin")
        return "done"

    def listing(self):
        return sorted(os.listdir(self.config.where))

    def scratch(self):
        with open(os.environ["TMPDIR"] + "/mine", "w") as file:
            file.write("x")
        return "done"

    def link(self):
        os.symlink("/etc/passwd", self.config.where)
        return "done"

    def set_id(self):
        folder, name = os.path.split(self.config.where)
        handle = os.open(folder, os.O_RDONLY)
        with open(self.config.where, "w") as file:
            ways = {
                "chmod": lambda: os.chmod(self.config.where, 0o4755),
                "fchmod": lambda: os.fchmod(file.fileno(), 0o2755),
                "fchmodat": lambda: os.chmod(name, 0o4755, dir_fd=handle),
                "open": lambda: os.open(self.config.where + "2", os.O_CREAT | os.O_WRONLY, 0o4755),
                "openat": lambda: os.open(name + "3", os.O_CREAT | os.O_WRONLY, 0o4755, dir_fd=handle),
                "mkdirat": lambda: os.mkdir(name + "4", 0o2755, dir_fd=handle),
                "mkdir": lambda: os.mkdir(self.config.where + "5", 0o2755),
            }
            return [way for way, act in ways.items() if not _refused(act)]

    def fill(self):
        with open(os.environ["TMPDIR"] + "/fill", "wb") as file:
            file.writelines(bytes(1 << 20) for _ in range(1 << 14))
        return "done"

    # -- processes

    def fork(self):
        return os.fork()

    def thread_bomb(self):
        made = []
        stop = threading.Event()
        try:
            for _ in range(1000):
                made.append(threading.Thread(target=stop.wait))
                made[-1].start()
        finally:
            stop.set()
        return "done"

    def execute(self):
        os.execv("/bin/sh", ["sh", "-c", "true"])

    def kill_all(self):
        os.kill(-1, signal.SIGKILL)
        return "nobody"

    def signal_outside(self):
        return [p for p in range(2, 40_000) if _signalled(p)]

    def trace(self):
        return call({"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, 1, 0, 0)

    def ring(self):
        return call(425, 8, bytes(120))

    def memory_file(self):
        return os.memfd_create("x")

    def unshare(self):
        return call({"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000)

    def raise_limits(self):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "done"

    def identity(self):
        return [os.getuid(), os.geteuid(), os.getgid(), sorted(os.environ), os.getpid(), os.getppid()]

    def descriptors(self):
        found = []
        for handle in range(3, 256):
            try:
                os.fstat(handle)
                found.append(handle)
            except OSError:
                continue
        return found

    # -- memory and time

    def hog(self):
        return len(bytes(4 << 30))

    def shared_hog(self):
        return len(mmap.mmap(-1, 4 << 30))

    def spin(self):
        while True:
            pass

    def sleep(self):
        time.sleep(1000)

    def die(self):
        os._exit(7)

    def die_once(self):
        if not os.path.exists(self.config.where):
            with open(self.config.where, "w"):
                os._exit(7)
        return "survived"

    def crash(self):
        ctypes.string_at(1)

    def recurse(self):
        sys.setrecursionlimit(1 << 30)
        return self.recurse()

    # -- network

    def talk(self):
        with socket.create_connection((self.config.where, self.config.port), timeout=5) as made:
            made.sendall(b"hello")
            return made.recv(100).decode()

    def talk_raw(self):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.connect((self.config.where, self.config.port))
            return "connected"

    def lookup(self):
        return socket.getaddrinfo(self.config.where, self.config.port, type=socket.SOCK_STREAM)[0][4][0]

    def udp(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            return made.sendto(b"x", (self.config.where, self.config.port))

    def unix(self):
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(self.config.where)
            return "connected"

    def multipath(self):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as made:
            made.connect((self.config.where, self.config.port))
            return "connected"

    def fast_open(self):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            return made.sendto(b"x", 0x20000000, (self.config.where, self.config.port))

    def reuse(self):
        """Disconnect a granted connection and connect it elsewhere."""
        with socket.create_connection((self.config.where, self.config.port), timeout=5) as made:
            libc.connect(made.fileno(), bytes(16), 16)
            made.connect(("127.0.0.1", self.config.port + 1))
            return "connected"

    def nowhere(self):
        """Connect to what lies at an address that no memory has, then to what was granted."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            assert libc.connect(made.fileno(), ctypes.c_void_p(2**63 + 5), 16) < 0
            told = errno.errorcode[ctypes.get_errno()]
        with socket.create_connection((self.config.where, self.config.port), timeout=5) as made:
            made.sendall(b"hello")
            return told + " " + made.recv(100).decode()

    def listen(self):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.bind(("127.0.0.1", 0))
            made.listen()
            return "listening"

    def netlink(self):
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)

    # -- talk

    def flood(self):
        for i in range(100_000):
            self.ctx.log.info(f"message {i}")
        return "done"

    def escape(self):
        self.ctx.log.warning("\x1b[2J{config} %s \u202e")
        raise KeyError("\x1b]0;owned\x07 {0.__class__}")

    def other(self):
        return self.ctx.component("lookup", "x")

    def secret(self):
        return self.ctx.secret(self.config.where)


class Remembering(Acts):
    """The same, with a state: what it did to a batch cannot be done again."""

    features = frozenset({"whole_input"})

    def snapshot(self, put):
        return {"ref": put(b"x" * 100_000)}

    def restore(self, state, get):
        self.held = get(state["ref"])

    def flush(self):
        for _ in range(200):
            yield "", pa_batch(len(getattr(self, "held", b"")))


def pa_batch(size):
    from dataflare_sdk import Batch

    return Batch("x", pa.RecordBatch.from_arrays([pa.array(["y" * size])], schema=TEXT))


class Lying(Acts):
    """Answers what is no answer."""

    def output_schemas(self, inputs):
        return {"": "no schema"} if self.config.act == "schema" else {"": TEXT}

    def process(self, batch, input):
        if self.config.act == "pair":
            return [("", "no batch")]
        if self.config.act == "bomb":
            return [("", batch.with_data(pa.record_batch({"x": pa.NullArray.from_buffers(pa.null(), (1 << 31) - 1, [None])})))]
        if self.config.act == "dictionary":
            return [("", batch.with_data(pa.record_batch({"x": pa.array(["a", "b", "a"]).dictionary_encode()})))]
        if self.config.act == "columns":
            return [("", batch.with_data(pa.record_batch({"y": ["a"], "did": ["b"]})))]
        if self.config.act == "output":
            return [("else", batch.with_data(pa.record_batch({"did": ["b"]})))]
        if self.config.act == "endless":
            return (("", batch) for _ in iter(int, 1))
        raise AssertionError(self.config.act)

    def attempt(self, batch, input):
        from dataflare_sdk import RowRejection

        return [], [RowRejection("data.x", "y", index=batch.data.num_rows)]


class Losing(Lying):
    """Says that every row gives one row, and leaves one out."""

    features = frozenset({"rowwise", "one_to_one"})

    def process(self, batch, input):
        return [("", batch.with_data(pa.record_batch({"did": ["x"] * (batch.data.num_rows - 1)})))]

    def attempt(self, batch, input):
        return [("", batch.with_data(pa.record_batch({"did": ["x"]})))], []


def _refused(act):
    try:
        act()
    except PermissionError:
        return True
    return False


def _signalled(process):
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


class Other:
    """Of a kind that does not run here."""
