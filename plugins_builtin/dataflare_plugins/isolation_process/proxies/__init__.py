"""Proxies: the methods of the contracts, each a call to a worker."""
