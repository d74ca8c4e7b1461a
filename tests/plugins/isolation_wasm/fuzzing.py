"""Replies of a columnar guest, mutated: run as a process of its own, so that a crash is told from a failure.

python -m tests.plugins.isolation_wasm.fuzzing --count 10000 --seed 1
"""

from __future__ import annotations

import argparse
import datetime
import random
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.loading import component

from dataflare_plugins.isolation_wasm.arrow_out import Receiver, read_schema
from dataflare_sdk import DataflareError

LONGEST = 2_000
WORDS = [0, 1, 2, 63, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, 0x10000, 1 << 24]


def sample(rows: int) -> pa.RecordBatch:
    """A batch with a column of every shape."""
    some = lambda make: [None if i % 5 == 4 else make(i) for i in range(rows)]  # noqa: E731
    return pa.record_batch(
        {
            "i": pa.array(some(lambda i: i), pa.int64()),
            "b": pa.array(some(lambda i: i % 2 == 0)),
            "s": pa.array(some(lambda i: "é☃x" * (i % 4))),
            "z": pa.array(some(lambda i: bytes(range(i % 9)))),
            "d": pa.array(some(lambda i: i), pa.decimal128(12, 3)),
            "t": pa.array(some(lambda i: datetime.datetime(2024, 1, 1 + i % 9)), pa.timestamp("us", "UTC")),
            "l": pa.array(some(lambda i: [None, "x" * i][: i % 3]), pa.list_(pa.string())),
            "f": pa.array(some(lambda i: [i, None]), pa.list_(pa.int32(), 2)),
            "r": pa.array(some(lambda i: {"a": i, "b": [str(i)]}), pa.struct([("a", pa.int16()), ("b", pa.list_(pa.string()))])),
            "m": pa.array(some(lambda i: [(str(i), i * 0.5)]), pa.map_(pa.string(), pa.float64())),
            "U": pa.array(some(lambda i: "large" * (i % 3)), pa.large_string()),
            "n": pa.nulls(rows),
        }
    )


class Fuzz:
    """One guest with one reply in its memory, which is spoilt and mended again and again."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.guest = component(folder, built(GUESTS / "identity.c"), features="", lines="limits: {memory: 32MiB}\n")
        data = sample(rows)
        self.guest.output_schemas({"in": data.schema})
        instance = self.guest._instances.guest
        ((self.array, self.schema),) = self.guest._call(instance, data)
        self.memory, self.bound = instance.memory, self.guest._given[0]
        self.first = min(self.array, self.schema)
        self.good = self.memory.read(self.first, 24_576 + 128 * rows, "reply")
        self.heads = self._places()

    def _places(self) -> list[int]:
        """Return where words lie that look like an address, or a length, of the reply."""
        words = struct.unpack(f"<{len(self.good) // 4}I", self.good[: len(self.good) // 4 * 4])
        return [4 * i for i, w in enumerate(words) if w and (self.first <= w < self.first + len(self.good) or w < 200)]

    def spoil(self, dice: random.Random) -> None:
        """Change a few bytes or words; half of them where pointers, lengths and counts are."""
        bad = bytearray(self.good)
        for _ in range(dice.choice([1, 1, 1, 2, 4])):
            at = dice.choice(self.heads) if dice.random() < 0.7 else dice.randrange(len(bad) - 8)
            what = dice.random()
            if what < 0.4:
                struct.pack_into("<I", bad, at, dice.choice(WORDS))
            elif what < 0.6:
                struct.pack_into("<I", bad, at, self.first + dice.randrange(len(bad)))
            elif what < 0.7:
                struct.pack_into("<q", bad, at, dice.choice([-1, 1 << 40, -(1 << 62), 1 << 20, 3]))
            elif what < 0.85:
                (old,) = struct.unpack_from("<I", bad, at)
                struct.pack_into("<I", bad, at, (old + dice.choice([-64, -8, -1, 1, 8, 64])) & 0xFFFFFFFF)
            else:
                bad[at] = dice.randrange(256)
        self.memory.write(self.first, bytes(bad))

    def once(self, dice: random.Random) -> str:
        """Read a spoilt reply: `rows` that are valid, or `refused`; everything else is an exception."""
        self.spoil(dice)
        self.memory.look()
        try:
            schema = read_schema(self.memory, self.schema) if dice.random() < 0.3 else self.bound
            some = dice.random() < 0.8 and len(schema) > 3
            columns = Receiver(schema).receive(self.memory, self.array, wanted=frozenset(dice.sample(schema.names, 3)) if some else None)
        except DataflareError as error:
            assert error.code == "wasm.bad-reply", error
            return "refused"
        for column in columns:
            column.validate(full=True)
            touch(column)
        return "rows"

    def close(self) -> None:
        """End the guest."""
        self.guest.close()


def touch(column: pa.Array) -> None:
    """Use every value, so that one that lies elsewhere shows."""
    if len(column) <= LONGEST:
        text: Any = column.to_pylist() if not pa.types.is_timestamp(column.type) else column.cast(pa.int64()).to_pylist()
        assert len(text) == len(column)


def main() -> int:
    """Spoil as many replies as asked and print how they ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    dice, ends = random.Random(chosen.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        fuzzes = [Fuzz(Path(folder) / str(rows), rows) for rows in (1, 7, 30)]
        for _ in range(chosen.count):
            ends[dice.choice(fuzzes).once(dice)] += 1
        for fuzz in fuzzes:
            fuzz.close()
    print(f"{ends['rows']} {ends['refused']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
