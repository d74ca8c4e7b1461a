"""TLS in front of a PostgreSQL that was built without it: libpq speaks it to here, from here on it is plain loopback."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ASKED = b"\0\0\0\x08\x04\xd2\x16\x2f"
"""SSLRequest of PostgreSQL's protocol."""
DAY = datetime.timedelta(days=1)


def certificate(folder: Path) -> Path:
    """Write a certificate that signs itself, with its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + DAY)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    kept = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    place = folder / "server.pem"
    place.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *kept)
    )
    return place


class TlsFront:
    """Takes TLS connections of libpq on `port` and hands on what they carry to the server's port.

    Attributes:
        taken: connections that were encrypted.
    """

    def __init__(self, target: int, folder: Path) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate(folder))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.taken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            if plain.recv(len(ASKED), socket.MSG_WAITALL) != ASKED:
                return  # it would have gone on in clear
            plain.sendall(b"S")
            with self._context.wrap_socket(plain, server_side=True) as near, socket.create_connection(("127.0.0.1", self._target)) as far:
                self.taken += 1
                # One thread both ways: a TLS object is not to be read and written at once.
                near.setblocking(False)
                far.setblocking(False)
                _Pump(near, far).run()

    def close(self) -> None:
        """Take no more connections; those that are there end with their clients."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class _Pump:
    """Carries bytes both ways between two sockets that do not wait, until one of them ends."""

    def __init__(self, near: ssl.SSLSocket, far: socket.socket) -> None:
        self._near, self._far = near, far
        self._to_near, self._to_far = bytearray(), bytearray()
        self._open = True

    def run(self) -> None:
        while self._open:
            writers = [s for s, data in ((self._near, self._to_near), (self._far, self._to_far)) if data]
            readers = [s for s, data in ((self._near, self._to_far), (self._far, self._to_near)) if len(data) < 1 << 20]
            select.select(readers, writers, [], 0.5)
            self._move(self._near, self._to_far)
            self._move(self._far, self._to_near)
            self._give(self._near, self._to_near)
            self._give(self._far, self._to_far)

    def _move(self, source: socket.socket, target: bytearray) -> None:
        with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
            while self._open and len(target) < 1 << 20:
                data = source.recv(1 << 16)
                self._open = bool(data)
                target += data

    def _give(self, target: socket.socket, data: bytearray) -> None:
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
            while data:
                del data[: target.send(bytes(data[: 1 << 16]))]
