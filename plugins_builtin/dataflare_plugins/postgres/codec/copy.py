"""Binary COPY: the server's rows to Arrow, and Arrow to rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import Column
from dataflare_sdk import RowRejection


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows read from a COPY.

    Attributes:
        data: the rows, in the columns' Arrow types.
        first: how many rows of the COPY came before these, refused ones included.
        rows: how many rows of the COPY these are, refused ones included.
        rejected: rows with a value Arrow has not; they are not in `data`. `index` counts from `first`, from 0.
        kept: for each row of `data` its index from `first`; None: nothing was refused, row by row the same.
    """

    data: pa.RecordBatch
    first: int
    rows: int
    rejected: tuple[RowRejection, ...] = ()
    kept: pa.Array | None = None


class CopyDecoder:
    """Decodes the data of one `COPY … TO STDOUT (FORMAT binary)`.

    The columns are those of the SELECT, in its order (`Column.select` casts what travels as text).

    Args:
        columns: how each is carried.
        max_rows: rows of a batch at most.
        max_bytes: a batch is given once its values take about this much.
    """

    def __init__(self, columns: Sequence[Column], *, max_rows: int = 65_536, max_bytes: int = 32 << 20) -> None:
        raise NotImplementedError

    def feed(self, chunks: Iterable[bytes | memoryview]) -> list[Decoded]:
        """Take the next pieces, cut anywhere, and return the batches that became full.

        Raises:
            DataflareError: `postgres.protocol`: this is no binary COPY of such columns.
        """
        raise NotImplementedError

    def drain(self) -> Decoded | None:
        """Return the rows that are there, or None; rows whose bytes are not complete stay."""
        raise NotImplementedError

    def finish(self) -> Decoded | None:
        """Return the last rows, or None.

        Raises:
            DataflareError: `postgres.protocol`: the COPY was cut short.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give the memory back."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as data of a COPY.

    Attributes:
        chunks: the data, cut between rows, each for one `put_copy_data`.
        rows: rows in it.
        rejected: rows the server would refuse; `index` is the row's in the batch.
    """

    chunks: list[bytes]
    rows: int
    rejected: tuple[RowRejection, ...] = ()


class CopyEncoder:
    """Encodes batches as the data of one `COPY … FROM STDIN (FORMAT binary)`.

    Args:
        schema: of the batches.
        targets: the columns that are copied to, in the order of the schema (`types.target` for a new table,
            `types.column` for one that is there). One that travels as text is written as text, to a column declared
            as `Column.staging`.

    Raises:
        DataflareError: `postgres.unfit-type`: a column of the batches can never be written to its target.
    """

    def __init__(self, schema: pa.Schema, targets: Sequence[Column]) -> None:
        raise NotImplementedError

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Return a batch as data; the first one begins with the COPY's header."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """Return what ends the COPY; the encoder is then ready for another one."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the memory back."""
        raise NotImplementedError
