"""Makes the fixtures of the test servers known to every test."""

from tests.servers.fixtures import every_postgres, own_postgres, postgres, postgres_server, postgres_servers
from tests.servers.mariadb_fixtures import mariadb, mariadb_minimal, mariadb_servers, own_mariadb

__all__ = [
    "every_postgres",
    "mariadb",
    "mariadb_minimal",
    "mariadb_servers",
    "own_mariadb",
    "own_postgres",
    "postgres",
    "postgres_server",
    "postgres_servers",
]
