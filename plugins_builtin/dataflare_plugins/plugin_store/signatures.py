"""Signatures: Ed25519 over the hashes of an artifact's files, in a file beside it; keys are the operator's to name.

`acme-1.0-py3-none-any.whl` is signed by `acme-1.0-py3-none-any.whl.sig`, `acme.wasm` together with its `plugin.yaml` by
`acme.wasm.sig`::

    {"signature": 1, "publisher": "acme.example", "key": "ed25519:...", "value": "..."}

What is signed is a text of its own, so that a signature made for something else never fits:
`dataflare plugin 1`, the publisher, then a line of hash and name for each file.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_plugins.plugin_store.codes import BAD_KEY
from dataflare_sdk.plugins import file_hash, shown
from dataflare_sdk.records import record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ENDING = ".sig"
_PREFIX = "ed25519:"


@record
class Signature:
    """What is known of an artifact's signature.

    Attributes:
        status: `signed` by a key that the policy names for the publisher, `unknown key` (it fits, but nobody vouches for the
            key), `tampered` (it does not fit), or `unsigned`.
        publisher: who signed, by the signature's own word unless the status is `signed`.
        key: the public key, `ed25519:…`.
    """

    status: str
    publisher: str = ""
    key: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as a plain object."""
        return {"status": self.status, "publisher": self.publisher, "key": self.key}

    @property
    def signer(self) -> str:
        """The publisher, where the policy vouches for the key."""
        return self.publisher if self.status == "signed" else ""


def check(artifact: Path, keys: Mapping[str, Sequence[str]]) -> Signature:
    """Check the signature beside an artifact.

    Args:
        artifact: a wheel, or a WASM module with its manifest beside it.
        keys: publisher to the keys that the policy names for it.
    """
    beside = artifact.with_name(artifact.name + ENDING)
    if not beside.exists():
        return Signature("unsigned")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        publisher, key = str(found["publisher"]), str(found["key"])
        value = base64.b64decode(found["value"], validate=True)
        fits = found["signature"] == 1 and _fits(key, value, _signed(artifact, publisher))
    except (OSError, ValueError, KeyError, TypeError):
        return Signature("tampered")
    status = "tampered" if not fits else "signed" if key in keys.get(publisher, ()) else "unknown key"
    return Signature(status, shown(publisher), shown(key))


def sign(artifact: Path, publisher: str, key_file: Path) -> Path:
    """Write the signature of an artifact beside it, and return its path.

    Raises:
        DataflareError: `plugin.bad-key`.
    """
    key = _private(key_file)
    value = key.sign(_signed(artifact, publisher))
    beside = artifact.with_name(artifact.name + ENDING)
    made: dict[str, Any] = {"signature": 1, "publisher": publisher, "key": _public(key), "value": base64.b64encode(value).decode()}
    beside.write_text(json.dumps(made) + "\n", encoding="utf-8")
    return beside


def new_key(path: Path) -> str:
    """Write a new signing key to a file that only its owner may read, and return the public key.

    Raises:
        DataflareError: `plugin.bad-key`: there is a file already.
    """
    import os

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BAD_KEY.error(f"the key cannot be written: {error.strerror}", file=str(path)) from error
    with os.fdopen(handle, "wb") as file:
        file.write(text)
    return _public(key)


def public_key(path: Path) -> str:
    """Return the public key of a signing key.

    Raises:
        DataflareError: `plugin.bad-key`.
    """
    return _public(_private(path))


def _signed(artifact: Path, publisher: str) -> bytes:
    files = [artifact]
    if artifact.suffix == ".wasm":
        files.append(artifact.with_name("plugin.yaml"))
    lines = [f"{file_hash(path)} {path.name}" for path in files]
    return "\n".join(["dataflare plugin 1", publisher, *lines, ""]).encode()


def _fits(key: str, value: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not key.startswith(_PREFIX):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix(_PREFIX), validate=True)).verify(value, signed)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise BAD_KEY.error("it is no unencrypted Ed25519 key in PEM form", file=str(path)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BAD_KEY.error("it is no Ed25519 key", file=str(path))
    return key


def _public(key: Ed25519PrivateKey) -> str:
    return _PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()
