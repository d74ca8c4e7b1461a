"""Makes the fixtures of the test servers known to every test, and interrupts known to what tests start."""

import signal

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

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what it puts in the background like this, and children inherit it: `status -w` could not be ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
