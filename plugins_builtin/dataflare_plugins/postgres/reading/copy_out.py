"""One COPY TO STDOUT under way, read without waiting longer than asked."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.codec.copy import CopyDecoder, Decoded
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.connection import Server, library
from dataflare_sdk import ErrorCode

if TYPE_CHECKING:
    import psycopg

PIECES, PIECE_BYTES = 4096, 1 << 20
"""Messages and bytes that are gathered before the decoder is called: its call costs more than a row."""


class CopyOut:
    """Reads the rows of a SELECT by binary COPY.

    It works on libpq itself: psycopg's own copy costs a generator step per row.

    Args:
        server: for its errors.
        db: an open connection that nothing else uses meanwhile.
        query: the SELECT.
        columns: what it gives.
        max_rows: rows of a batch at most.
        max_bytes: bytes of a batch, more or less.
        refused: code of the error when the server refuses the SELECT.
        path: key of the `with:` block that error points to.
    """

    def __init__(
        self,
        server: Server,
        db: psycopg.Connection[Any],
        query: str,
        columns: tuple[Column, ...],
        *,
        max_rows: int,
        max_bytes: int,
        refused: ErrorCode | None = None,
        path: str | None = None,
    ) -> None:
        self._server, self._db, self._pg = server, db, db.pgconn
        self._refused, self._path = refused, path
        self._decoder = CopyDecoder(columns, max_rows=max_rows, max_bytes=max_bytes)
        self._ready: deque[Decoded] = deque()
        self._copying = False
        self.done = False
        with server.explained(refused, path):
            self._pg.send_query(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode())

    def read(self, deadline: float) -> Decoded | None:
        """Return the next rows; None when `deadline` passed, or at the end: `done` tells them apart."""
        while not self._ready and not self.done:
            with self._server.explained(self._refused, self._path):
                if not (self._pump() if self._copying else self._start()) and not self._wait(deadline):
                    return None
        return self._ready.popleft() if self._ready else None

    @property
    def more(self) -> bool:
        """Whether rows are to come, as far as is known."""
        return bool(self._ready) or not self.done

    def _start(self) -> bool:
        """See whether the server has begun to answer."""
        self._pg.consume_input()
        if self._pg.is_busy():
            return False
        pq = library().pq
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            self._fail(result)
        self._copying = True
        return True

    def _fail(self, result: Any) -> None:
        while self._pg.get_result() is not None:
            pass
        if result is None:
            raise library().OperationalError("the server gave no answer")
        raise library().errors.error_from_result(result)

    def _pump(self) -> bool:
        """Decode what has arrived; False when there was nothing."""
        pieces: list[Any] = []
        size, get, add = 0, self._pg.get_copy_data, pieces.append
        while True:
            count, data = get(1)
            if count <= 0:
                break
            add(data)
            size += count
            if size >= PIECE_BYTES or len(pieces) >= PIECES:
                break
        if pieces:
            self._ready.extend(self._decoder.feed(pieces))
        if count == -1:
            self._finish()
        elif count == 0 and not pieces:
            self._pg.consume_input()
            # libpq gives what stands in its buffer first; only then is there something to wait for.
            count, data = get(1)
            if count > 0:
                self._ready.extend(self._decoder.feed([data]))
            elif count == -1:
                self._finish()
            return count != 0
        return True

    def _finish(self) -> None:
        """Take the COPY's result: only now is it sure that no row is missing."""
        pq = library().pq
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            self._fail(result)
        while self._pg.get_result() is not None:
            pass
        self.done = True
        last = self._decoder.finish()
        if last is not None:
            self._ready.append(last)

    def _wait(self, deadline: float) -> bool:
        """Wait until the socket can be read; False when the deadline came first."""
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._pg.socket, select.POLLIN)
        return left > 0 and bool(poll.poll(max(1, int(left * 1000))))

    def close(self) -> None:
        """Give the decoder's memory back; the connection is its owner's to close."""
        self._decoder.close()
