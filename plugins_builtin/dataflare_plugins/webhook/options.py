"""The `with:` block of a webhook."""

from __future__ import annotations

from typing import Literal

from dataflare_sdk import Duration, Size, config, option
from dataflare_sdk.inflow.options import MessageConfig


@config
class SignatureConfig:
    """How senders sign what they send: an HMAC of the body as it goes over the wire, in hexadecimal."""

    secret: str = option("What both sides know.", example="${secret:file/hook}")
    header: str = option("Header that carries the signature.", default="X-Hub-Signature-256")
    algorithm: Literal["sha256", "sha384", "sha512"] = option("Hash.", default="sha256")
    prefix: str = option("What stands before the signature in the header.", default="sha256=")


@config
class TlsConfig:
    """Certificate and key, PEM files."""

    certificate: str = option("The certificate with its chain.", example="tls/cert.pem")
    key: str = option("Its private key.", example="tls/key.pem")


@config
class IdempotencyConfig:
    """How a request that is sent again is known."""

    header: str = option("Header that carries the key.", default="Idempotency-Key")
    window: Duration = option("How long keys are kept.", default=86400.0, example="24h")


@config
class WebhookConfig(MessageConfig):
    """Where the server listens, who may send, and how much is kept."""

    host: str = option("Address to listen at.", default="127.0.0.1", example="10.0.0.5")
    port: int = option("Port to listen at.", minimum=1, maximum=65535, example=8080)
    path: str = option("Path of the requests; others are answered 404.", default="/", example="/orders")
    bearer: str | None = option("Token that senders show: `Authorization: Bearer …`.", default=None, example="${secret:file/token}")
    signature: SignatureConfig | None = option(
        "Senders sign what they send: `secret`, `header` (X-Hub-Signature-256), `algorithm` (sha256), `prefix` (sha256=).",
        default=None,
        example={"secret": "${secret:file/hook}"},
    )
    unguarded: bool = option("Listen beyond the loopback without token and signature.", default=False)
    tls: TlsConfig | None = option("Speak HTTPS.", default=None, example={"certificate": "tls/cert.pem", "key": "tls/key.pem"})
    status: Literal[200, 202] = option("Status of the answer when everything is durable.", default=202)
    max_body: Size = option("A larger body, or one that is larger unpacked, is answered 413.", default=8 << 20, example="8MiB")
    on_bad: Literal["refuse", "keep"] = option(
        "What is no JSON object: answer 400 and keep nothing, or take it for a bad row (`errors.on_record`).", default="refuse"
    )
    buffer: Size = option("How much may wait on the disk; beyond it requests are answered 503.", default=1 << 30, example="1GiB")
    wait: Duration = option("How long a request waits for room before it is answered 503.", default=1.0, example="1s")
    idempotency: IdempotencyConfig | None = option(
        "How a request that is sent again is known: by the `header` (Idempotency-Key), for the `window` (24h).",
        default=None,
        example={"window": "7d"},
    )
    connections: int = option("Connections at a time.", default=1024, minimum=1, maximum=65536)
