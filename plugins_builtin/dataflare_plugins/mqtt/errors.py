"""What can go wrong with a broker, as codes."""

from __future__ import annotations

import ssl
from typing import Any

from dataflare_sdk import DataflareError, RetriableError, code

NO_CLIENT = code("mqtt.no-client", 4, "The library paho-mqtt is not installed.", "pip install 'dataflare[mqtt]'")
BAD_URL = code("mqtt.bad-url", 3, "The URL is none of an MQTT broker.", "Write mqtt://host:1883 or mqtts://host:8883.")
BAD_TOPIC = code(
    "mqtt.bad-topic", 3, "A topic or topic filter is not one of MQTT.", "Use levels divided by `/`; `+` and a final `#` are for sources."
)
UNREACHABLE = code("mqtt.unreachable", 4, "The broker cannot be reached.", "Check `url`, and that the broker runs.")
TLS_FAILED = code("mqtt.tls", 4, "The encrypted connection to the broker failed.", "Check `tls`, and the certificate of the broker.")
DENIED = code("mqtt.denied", 4, "The broker refuses the user or the password.", "Check `username` and `password`.")
REFUSED = code("mqtt.refused", 4, "The broker refuses the connection.", "See the broker's reason, and its log.")
NOT_ALLOWED = code("mqtt.not-allowed", 4, "The broker does not let this client use a topic.", "Ask whoever runs the broker for the right.")
LOST = code("mqtt.connection-lost", 4, "The connection to the broker was lost and does not come back.", "Run again; the run resumes.")

_DENIED = (0x86, 0x87, 0x8C)
_BUSY = (0x88, 0x89, 0x97, 0x9F)


def client_module() -> Any:
    """Return `paho.mqtt.client`.

    Raises:
        DataflareError: `mqtt.no-client`.
    """
    try:
        import paho.mqtt.client as client
    except ImportError as error:
        raise NO_CLIENT.error("MQTT needs paho-mqtt, which is not installed") from error
    return client


def of_socket(error: OSError, place: str) -> DataflareError:
    """Return what a failure to connect means; that of a certificate is none of the moment."""
    if isinstance(error, ssl.SSLError):
        return TLS_FAILED.error(f"{place}: {error.reason or error}", path="tls")
    if isinstance(error, FileNotFoundError):
        return TLS_FAILED.error(f"{place}: there is no file '{error.filename}'", path="tls")
    return RetriableError(UNREACHABLE.problem(f"{place}: {error.strerror or error}", path="url"))


def of_connack(reason: Any, place: str) -> DataflareError:
    """Return what the broker's refusal of a connection means."""
    if reason.value in _DENIED:
        return DENIED.error(f"{place}: {reason}", path="username")
    problem = REFUSED.problem(f"{place}: {reason}", path="url")
    return RetriableError(problem) if reason.value in _BUSY else DataflareError(problem)
