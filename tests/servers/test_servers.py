"""The servers themselves: they start, take connections both ways, survive a kill, and are gone afterwards."""

import psycopg
import pytest


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
