"""Arrow's C Data Interface as wasm32 sees it: its two structs, and schemas laid out for a guest."""

from __future__ import annotations

import struct

import pyarrow as pa

from dataflare_plugins.isolation_wasm.formats import children, format_of

ARRAY = struct.Struct("<qqqqqIIIII4x")
SCHEMA = struct.Struct("<IIIxxxxqqIIII")
assert ARRAY.size == 64
assert SCHEMA.size == 48
OWNED = 1
"""`release` of what the host lays out: not null, which would mean it has been released, and never to be called."""
NULLABLE = 2
ALIGNED = 64


def aligned(size: int) -> int:
    """Return a size, rounded up to where the next buffer may begin."""
    return (size + ALIGNED - 1) & ~(ALIGNED - 1)


def schema_block(kind: pa.DataType, begin: int) -> bytes:
    """Return the schemas of a struct and all below it as they lie from the address `begin`."""
    block = bytearray()

    def text(value: str) -> int:
        at = begin + len(block)
        block.extend(value.encode() + b"\0")
        return at

    def put(field: pa.Field, at: int) -> None:
        inner = children(field.type)
        pad()
        first = begin + len(block)
        block.extend(bytes((SCHEMA.size) * len(inner)))
        table = begin + len(block)
        block.extend(struct.pack(f"<{len(inner)}I", *(first + SCHEMA.size * i for i in range(len(inner)))))
        form, name = text(format_of(field.type, field.name)), text(field.name)
        flags = NULLABLE if field.nullable else 0
        SCHEMA.pack_into(block, at - begin, form, name, 0, flags, len(inner), table if inner else 0, 0, OWNED, 0)
        for i, child in enumerate(inner):
            put(child, first + SCHEMA.size * i)

    def pad() -> None:
        block.extend(bytes(-len(block) % 8))

    block.extend(bytes(SCHEMA.size))
    put(pa.field("", kind, nullable=False), begin)
    pad()
    return bytes(block)
