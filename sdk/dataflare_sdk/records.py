"""Plain immutable data; see `dataflare.records`."""

from dataflare.records import field, record

__all__ = ["field", "record"]
