"""How to reach the brokers: the keys that source and destination share."""

from __future__ import annotations

from typing import Literal

from dataflare_sdk import config, option


@config
class Security:
    """How a connection is secured and who connects."""

    protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = option("Whether connections are encrypted, and who logs in.")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = option("SASL: how the user logs in.", default=None)
    username: str | None = option("SASL: the user.", default=None, example="etl")
    password: str | None = option("SASL: the password.", default=None, example="${secret:kafka_password}")
    ca: str | None = option("TLS: file of the certificates to trust; by default the system's.", default=None)
    certificate: str | None = option("TLS: file of the client's own certificate.", default=None)
    key: str | None = option("TLS: file of the client's own key.", default=None)
    key_password: str | None = option("TLS: password of that key.", default=None, example="${secret:kafka_key}")
    verify: bool = option("TLS: whether the broker has to prove its name.", default=True)


BROKERS = option("Addresses to begin at, `host:port`.", example="kafka-1:9092,kafka-2:9092")
SECURITY = option("How connections are secured; by default not at all.", default=None)
CLIENT = option("More properties of librdkafka, by their names.", default_factory=dict, example={"client.rack": "eu-1a"})
TIMEOUT = option("How long the brokers may take to answer.", default=10.0, example="10s")
