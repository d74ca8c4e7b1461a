"""Who may send: a bearer token, a signature over the body, or both."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from dataflare_plugins.webhook.bodies import Refused
from dataflare_plugins.webhook.options import SignatureConfig


class Guard:
    """Judges requests by the secrets of the workflow.

    Args:
        bearer: the token, or None.
        signature: how bodies are signed, or None.
    """

    def __init__(self, bearer: str | None, signature: SignatureConfig | None) -> None:
        self._bearer = None if bearer is None else f"Bearer {bearer}".encode()
        self._signature = signature
        self._header = b"" if signature is None else signature.header.lower().encode()
        self.secret_headers = frozenset({b"authorization", b"cookie", b"proxy-authorization", self._header})

    def head(self, headers: Mapping[bytes, bytes]) -> None:
        """Judge a request by its headers alone.

        Raises:
            Refused: 401.
        """
        if self._bearer is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self._bearer):
            raise Refused(401, "token", "the bearer token is missing or wrong")
        if self._signature is not None and self._header not in headers:
            raise Refused(401, "signature", f"the header '{self._signature.header}' is missing")

    def body(self, headers: Mapping[bytes, bytes], body: bytes) -> None:
        """Judge a request by its body, as it was sent.

        Raises:
            Refused: 401.
        """
        if self._signature is None:
            return
        made = hmac.new(self._signature.secret.encode(), body, getattr(hashlib, self._signature.algorithm)).hexdigest()
        given = headers.get(self._header, b"").strip().lower()
        if not hmac.compare_digest(given, (self._signature.prefix.lower() + made).encode()):
            raise Refused(401, "signature", "the signature is not that of the body")
