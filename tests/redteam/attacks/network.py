"""Places on the network that were not granted."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

from . import attack

FAST_OPEN = 0x20000000


def _said(target: Any, connection: socket.socket) -> str:
    connection.sendall(target.mark.encode())
    return connection.recv(4096).decode()


@attack("net")
def connect_to_loopback(target: Any) -> str:
    """Connect to a server on the same machine."""
    with socket.create_connection(("127.0.0.1", target.tcp), 3) as connection:
        return _said(target, connection)


@attack("net")
def connect_by_ipv6(target: Any) -> str:
    """Connect to it by IPv6."""
    with socket.create_connection(("::1", target.tcp6), 3) as connection:
        return _said(target, connection)


@attack("net")
def connect_by_a_mapped_address(target: Any) -> str:
    """Connect by an IPv4 address written as an IPv6 one."""
    with socket.socket(socket.AF_INET6) as connection:
        connection.settimeout(3)
        connection.connect(("::ffff:127.0.0.1", target.tcp))
        return _said(target, connection)


@attack("net")
def send_a_datagram(target: Any) -> str:
    """Send one UDP datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(target.mark.encode(), ("127.0.0.1", target.udp))
    return ""


@attack("net")
def send_a_datagram_by_sendmsg(target: Any) -> str:
    """Send one UDP datagram by another system call."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendmsg([target.mark.encode()], [], 0, ("127.0.0.1", target.udp))
    return ""


@attack("net")
def connect_by_fast_open(target: Any) -> str:
    """Let the first bytes open the connection: no connect() is called."""
    with socket.socket() as connection:
        connection.sendto(target.mark.encode(), FAST_OPEN, ("127.0.0.1", target.tcp))
        return connection.recv(4096).decode()


@attack("net")
def connect_by_multipath(target: Any) -> str:
    """Connect by multipath TCP, which rules for TCP may not know."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as connection:
        connection.settimeout(3)
        connection.connect(("127.0.0.1", target.tcp))
        return _said(target, connection)


@attack("net")
def connect_to_a_unix_socket(target: Any) -> str:
    """Connect to a socket that has a path."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(3)
        connection.connect(target.unix)
        return _said(target, connection)


@attack("net")
def connect_to_an_abstract_socket(target: Any) -> str:
    """Connect to a socket that has a name and no path."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(3)
        connection.connect("\0" + target.abstract)
        return _said(target, connection)


@attack("net")
def listen_for_others(target: Any) -> str:
    """Open a port to the world."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.listen()
        with socket.create_connection(("127.0.0.1", server.getsockname()[1]), 3):
            return "OVER"


@attack("net")
def listen_to_the_wire(target: Any) -> str:
    """Open a raw packet socket."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "OVER"


@attack("net")
def talk_to_the_kernel(target: Any) -> str:
    """Ask the kernel for the machine's network by netlink."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.bind((0, 0))
        kernel.send(struct.pack("IHHIIBxxx", 20, 18, 0x301, 1, 0, 0))
        if b"lo" not in kernel.recv(65536):
            raise ConnectionError("no answer")
    return "OVER"


@attack("net")
def connect_past_the_library(target: Any) -> str:
    """Call connect past Python and the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket() as connection:
        address = struct.pack("=H", 2) + struct.pack(">H", target.tcp) + socket.inet_aton("127.0.0.1") + bytes(8)
        if libc.syscall(42, connection.fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), "connect")
        return _said(target, connection)


@attack("net")
def ask_for_the_cloud_credentials(target: Any) -> str:
    """Ask the address at which a cloud hands out credentials; in the control a server stands there."""
    with socket.create_connection(("169.254.169.254", target.metadata), 3) as connection:
        return _said(target, connection)


@attack("net")
def send_by_name(target: Any) -> str:
    """Smuggle data out in the name of a host that is asked for."""
    query = (
        struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, 0) + bytes([len(target.mark)]) + target.mark.encode() + b"\0" + struct.pack(">HH", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("127.0.0.1", target.udp))
        asker.send(query)
    return ""
