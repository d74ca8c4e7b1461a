"""A PostgreSQL server for tests; it lives in the plugin, where proofs use it too."""

from dataflare_plugins.postgres.scratch.server import OPTIONS, PASSWORD, USER, Binaries, Database, PostgresServer, installed

__all__ = ["OPTIONS", "PASSWORD", "USER", "Binaries", "Database", "PostgresServer", "installed"]
