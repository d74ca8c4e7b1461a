"""A MariaDB server for tests; it lives in the plugin, where proofs use it too."""

from dataflare_plugins.mysql.scratch.server import INSTALLER, OPTIONS, PASSWORD, PROGRAM, USER, MariadbDatabase, MariadbServer, installed

__all__ = ["INSTALLER", "OPTIONS", "PASSWORD", "PROGRAM", "USER", "MariadbDatabase", "MariadbServer", "installed"]
