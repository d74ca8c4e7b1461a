"""A MariaDB server: its own data folder, a loopback port, a binary log with rows, a user that is not root."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_sdk.servers import ServerProcess, as_user

USER, PASSWORD = "app", "correct-horse"
OPTIONS = {
    "bind-address": "127.0.0.1",
    "log-bin": "binlog",
    "server-id": "1",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "binlog-row-metadata": "FULL",
    "innodb-buffer-pool-size": "64M",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-log-file-size": "64M",
    "sync-binlog": "0",
    "skip-name-resolve": "1",
    "performance-schema": "0",
    "character-set-server": "utf8mb4",
    "max-allowed-packet": "64M",
}
PROGRAM = next((p for p in ("/usr/sbin/mariadbd", "/usr/sbin/mysqld", "/usr/libexec/mariadbd") if Path(p).exists()), None)
INSTALLER = shutil.which("mariadb-install-db")


def installed() -> bool:
    """Whether MariaDB is here."""
    return PROGRAM is not None and INSTALLER is not None


class MariadbServer(ServerProcess):
    """One server; `start` makes its data folder at the first time, `kill` and `start` again is a crash.

    Args:
        options: settings beside `OPTIONS`, named as on the command line.
    """

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.options = {**OPTIONS, **(options or {})}
        super().__init__("my")
        self._numbers = itertools.count(1)

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URL over TCP, with a password."""
        return f"mysql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = None, **more: Any) -> Any:
        """Return a PyMySQL connection of the administrator, in autocommit."""
        import pymysql

        return pymysql.connect(
            unix_socket=str(self.folder / "sock"), user="root", database=database, charset="utf8mb4", **{"autocommit": True, **more}
        )

    def execute(self, sql: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return its rows."""
        db = self.connect(database)
        try:
            with db.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            db.close()

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> MariadbServer:
        """Start it and wait until it answers."""
        data = self.folder / "data"
        fresh = not data.exists()
        if fresh:
            self._init(data)
        settings = [f"--{name}={value}" for name, value in self.options.items()]
        places = [f"--datadir={data}", f"--socket={self.folder / 'sock'}", f"--port={self.port}", f"--tmpdir={self.folder}"]
        self.begin([str(PROGRAM), "--no-defaults", *places, *settings], self._answers)
        if fresh:
            self.execute(f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'")
            self.execute(f"GRANT ALL ON *.* TO {USER}@'%'")
        return self

    def _init(self, data: Path) -> None:
        command = [str(INSTALLER), "--no-defaults", f"--datadir={data}", "--skip-test-db", "--auth-root-authentication-method=normal"]
        command += ["--innodb-log-file-size=64M"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **as_user())
        assert done.returncode == 0, done.stdout + done.stderr

    def _answers(self) -> bool:
        import pymysql

        # Asked by hand first: PyMySQL leaves a socket open that could not connect.
        with socket.socket(socket.AF_UNIX) as knock:
            if knock.connect_ex(str(self.folder / "sock")):
                return False
        try:
            self.connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    # -- databases -----------------------------------------------------------------------------------------

    def create_database(self) -> str:
        """Make a fresh database and return its name."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return name


class MariadbDatabase:
    """A fresh database of a server, for one test.

    Attributes:
        server: the server it is in.
        name: its name.
        url: its URL, with a password.
    """

    def __init__(self, server: MariadbServer, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)
        self._db: Any = None
        self._made: list[Any] = []

    def connect(self, **more: Any) -> Any:
        """Return a connection of the administrator to this database; closed with it."""
        self._made.append(self.server.connect(self.name, **more))
        return self._made[-1]

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements on one connection that is kept, in autocommit, and return the rows of the last."""
        if self._db is None:
            self._db = self.connect()
        with self._db.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)
            return list(cursor.fetchall())

    def close(self) -> None:
        """Close every connection."""
        for made in self._made:
            if made.open:
                made.close()
        self._made, self._db = [], None

    def drop(self) -> None:
        """Close every connection and drop the database."""
        self.close()
        # A test that failed may have left a transaction open elsewhere, which would hold the database for ever.
        for (held,) in self.server.execute(f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{self.name}'"):
            self.server.execute(f"KILL {held}")
        self.server.execute(f"DROP DATABASE {self.name}")
