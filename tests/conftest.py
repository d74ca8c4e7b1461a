"""Makes the fixtures of the test servers known to every test."""

from tests.servers.fixtures import every_postgres, own_postgres, postgres, postgres_server, postgres_servers

__all__ = ["every_postgres", "own_postgres", "postgres", "postgres_server", "postgres_servers"]
