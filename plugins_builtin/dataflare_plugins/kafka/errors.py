"""What can go wrong with a broker, as codes; and the client's own errors turned into them."""

from __future__ import annotations

from typing import Any

from dataflare_sdk import DataflareError, code
from dataflare_sdk.fence import FENCED

UNREACHABLE = code("kafka.unreachable", 4, "No broker can be reached.", "Check `brokers`, and that they run.")
DENIED = code("kafka.denied", 4, "The brokers refuse who connects.", "Check `security`: protocol, mechanism, user, password, certificates.")
PERMISSION = code("kafka.permission", 4, "The user lacks a right.", "Let an administrator grant it (see the list in the README).")
NO_TOPIC = code("kafka.no-topic", 4, "The topic does not exist.", "Check its name, or create it.")
BUSY = code("kafka.busy", 4, "The brokers cannot do it at this moment.", "The run tries again by itself.")
BAD_OPTION = code("kafka.bad-option", 3, "The client does not take an option, or not this value.", "See `security` and `client`.")
TOO_LARGE = code(
    "kafka.too-large", 4, "The brokers refuse a message because of its size.", "Lower `max_message`, or raise the topic's limit."
)
NO_DRIVER = code("kafka.no-driver", 4, "The library confluent-kafka is not installed.", "pip install 'dataflare[kafka]'")
FAILED = code("kafka.failed", 4, "A broker failed.", "See its message; the run has tried again already.")


def named(text: str) -> frozenset[str]:
    """Return the names in a text."""
    return frozenset(text.split())


_UNREACHABLE = named(
    "_TRANSPORT _ALL_BROKERS_DOWN _RESOLVE _TIMED_OUT _TIMED_OUT_QUEUE _MSG_TIMED_OUT REQUEST_TIMED_OUT NETWORK_EXCEPTION "
    "BROKER_NOT_AVAILABLE"
)
_DENIED = named("_AUTHENTICATION _SSL SASL_AUTHENTICATION_FAILED UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE")
_PERMISSION = named(
    "TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED "
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED POLICY_VIOLATION"
)
_NO_TOPIC = named("UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC _UNKNOWN_PARTITION TOPIC_EXCEPTION UNKNOWN_TOPIC_ID")
_BUSY = named(
    "LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR "
    "CONCURRENT_TRANSACTIONS NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND NOT_CONTROLLER "
    "KAFKA_STORAGE_ERROR THROTTLING_QUOTA_EXCEEDED INVALID_TXN_STATE UNKNOWN_PRODUCER_ID INVALID_PRODUCER_ID_MAPPING "
    "_NOENT OUT_OF_ORDER_SEQUENCE_NUMBER _PURGE_QUEUE _PURGE_INFLIGHT"
)
_TOO_LARGE = named("MSG_SIZE_TOO_LARGE RECORD_LIST_TOO_LARGE INVALID_MSG_SIZE")
_FENCED = named("_FENCED PRODUCER_FENCED INVALID_PRODUCER_EPOCH")


def driver() -> Any:
    """Return confluent_kafka.

    Raises:
        DataflareError: `kafka.no-driver`.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise NO_DRIVER.error("Kafka needs confluent-kafka, which is not installed") from error
    return confluent_kafka


def administration() -> Any:
    """Return the part of confluent_kafka that administers."""
    driver()
    from confluent_kafka import admin

    return admin


def reason(error: Any) -> Any:
    """Return the `KafkaError` within an exception of the client."""
    return error.args[0] if isinstance(error, Exception) and error.args else error


def explained(error: Any, place: str, path: str | None = None) -> DataflareError:
    """Return what an error of the client means.

    Args:
        error: a `KafkaException` or `KafkaError`.
        place: what was being done with which brokers; there is no secret in it.
        path: the key of the `with:` block it is about.
    """
    if isinstance(error, DataflareError):
        return error
    found = reason(error)
    name = found.name() if hasattr(found, "name") else ""
    message = f"{place}: {found.str() if hasattr(found, 'str') else found}"
    if name in _UNREACHABLE:
        return UNREACHABLE.retriable(message, path=path or "brokers")
    if name in _DENIED:
        return DENIED.error(message, path=path or "security")
    if name in _PERMISSION:
        return PERMISSION.error(message, path=path)
    if name in _NO_TOPIC:
        return NO_TOPIC.error(message, path=path or "topic")
    if name in _TOO_LARGE:
        return TOO_LARGE.error(message, path=path or "max_message")
    if name in _FENCED:
        # Whether a newer run has claimed it is seen when it is opened again; another's claim may have failed half way.
        return FENCED.retriable(message)
    if name in _BUSY or (hasattr(found, "retriable") and found.retriable()):
        return BUSY.retriable(message, path=path)
    if name == "_INVALID_ARG":
        return BAD_OPTION.error(message, path=path or "client")
    return FAILED.retriable(message, path=path)
