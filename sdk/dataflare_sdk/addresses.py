"""Which network addresses are public: what a stranger may be let to by name alone."""

from __future__ import annotations

import ipaddress

__all__ = ["public"]

_OTHER_METADATA = (ipaddress.ip_address("168.63.129.16"),)
"""Addresses of clouds' metadata services that look public."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def public(address: str) -> bool:
    """Return whether an address is one of the public network, also when it is written inside another one.

    Args:
        address: an IPv4 or IPv6 address, with or without a zone; anything else is not public.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return public(str(inner))
    return found.is_global and not found.is_multicast and found not in _OTHER_METADATA
