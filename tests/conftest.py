"""Makes the fixtures of test servers, of strangers' plugins and of clean environments known to every test, and interrupts known to what tests start."""

import signal

from hypothesis import settings
from tests.confining import confines
from tests.ext.strangers import place, wheels
from tests.servers.fixtures import every_postgres, own_postgres, postgres, postgres_server, postgres_servers
from tests.servers.kafka_fixtures import kafka, kafka_broker, kafka_brokers, kafka_mock, own_kafka
from tests.servers.mariadb_fixtures import mariadb, mariadb_minimal, mariadb_servers, own_mariadb
from tests.servers.mosquitto_fixtures import mosquitto, own_mosquitto
from tests.servers.nats_fixtures import nats_server, own_nats, shared_nats
from tests.servers.redis_fixtures import own_redis, redis_server, shared_redis
from tests.stepping import small_state
from tests.template.clean import clean, new_plugin

__all__ = [
    "clean",
    "confines",
    "every_postgres",
    "kafka",
    "kafka_broker",
    "kafka_brokers",
    "kafka_mock",
    "mariadb",
    "mariadb_minimal",
    "mariadb_servers",
    "mosquitto",
    "nats_server",
    "new_plugin",
    "own_kafka",
    "own_mariadb",
    "own_mosquitto",
    "own_nats",
    "own_postgres",
    "own_redis",
    "place",
    "postgres",
    "postgres_server",
    "postgres_servers",
    "redis_server",
    "shared_nats",
    "shared_redis",
    "small_state",
    "wheels",
]

settings.register_profile("suite", deadline=None)  # a loaded machine is no failure
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what it puts in the background like this, and children inherit it: `status -w` could not be ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
