"""The `with:` keys that source and destination share: which broker, and as whom."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from dataflare_plugins.mqtt.errors import BAD_TOPIC, BAD_URL
from dataflare_sdk import Duration, config, option


@config
class TlsConfig:
    """How the connection of `mqtts://` is secured; paths are relative to the workflow."""

    ca: str | None = option("File with the certificates that may sign the broker's; by default those the system trusts.", default=None)
    cert: str | None = option("File with the client's own certificate.", default=None)
    key: str | None = option("File with the key of that certificate.", default=None)
    verify: bool = option("Check that the broker is who it says it is.", default=True)


@config
class BrokerConfig:
    """Which broker, and as whom."""

    url: str = option("The broker, `mqtt://host:1883`, or `mqtts://host:8883` for TLS.", example="mqtts://broker.example:8883")
    username: str | None = option("The user.", default=None)
    password: str | None = option("The user's password.", default=None, example="${secret:env/MQTT_PASSWORD}")
    client_id: str | None = option(
        "Name of this client, of which the broker lets one connect at a time; by default one that stays the same from run to run.",
        default=None,
    )
    protocol: Literal["v3.1.1", "v5"] = option("Version of MQTT.", default="v5")
    keepalive: Duration = option("Longest silence before the broker is asked whether it is there.", default=60.0, example="60s")
    tls: TlsConfig | None = option("How the connection is secured.", default=None)


def address(config: BrokerConfig) -> tuple[str, int, bool]:
    """Return host, port and whether the connection is encrypted.

    Raises:
        DataflareError: `mqtt.bad-url`.
    """
    try:
        parts = urlsplit(config.url)
        port = parts.port
    except ValueError as error:
        raise BAD_URL.error("`url` cannot be read as a URL", path="url") from error
    if parts.scheme not in ("mqtt", "mqtts"):
        raise BAD_URL.error(f"`url` begins with '{parts.scheme}:' and not with 'mqtt:' or 'mqtts:'", path="url")
    if parts.username is not None or parts.password is not None:
        raise BAD_URL.error("`url` holds a user or password", fix="Give them as `username` and `password`.", path="url")
    if not parts.hostname or parts.path.strip("/") or parts.query:
        raise BAD_URL.error("`url` is not of the form mqtt://host:port", path="url")
    secure = parts.scheme == "mqtts"
    if config.tls is not None and not secure:
        raise BAD_URL.error("there is `tls`, and `url` begins with 'mqtt:'", fix="Write mqtts://host:8883.", path="url")
    return parts.hostname, port or (8883 if secure else 1883), secure


def check_filter(text: str, path: str) -> None:
    """Hold a topic filter to the rules of MQTT.

    Raises:
        DataflareError: `mqtt.bad-topic`.
    """
    levels = text.split("/")
    if text.startswith("$share/") and (len(levels) < 3 or not levels[1] or "+" in levels[1] or "#" in levels[1]):
        raise BAD_TOPIC.error(f"'{text}' names no group and filter after $share", path=path)
    fine = all(("+" not in level or level == "+") and ("#" not in level) for level in levels[:-1])
    last = levels[-1]
    fine = fine and ("#" not in last or last == "#") and ("+" not in last or last == "+")
    if not text or not fine or "\0" in text or len(text.encode()) > 65_535:
        raise BAD_TOPIC.error(f"'{text}' is no topic filter", path=path)
