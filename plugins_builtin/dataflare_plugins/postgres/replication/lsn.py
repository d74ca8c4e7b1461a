"""Log sequence numbers: places in the write-ahead log, as the server writes them and as numbers."""

from __future__ import annotations


def parse(text: str) -> int:
    """Return the number of an LSN written `16/B374D848`.

    Raises:
        ValueError: the text is no LSN.
    """
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def show(lsn: int) -> str:
    """Return an LSN as the server writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
