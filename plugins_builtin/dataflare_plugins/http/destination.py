"""Rows to a server: what an epoch sends is settled before it is logged, and sent when it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.http.client import Answer, Client
from dataflare_plugins.http.encoding import CONTENT, Cutter, Encoder, body_of
from dataflare_plugins.http.options import BatchConfig, HttpConfig
from dataflare_plugins.http.spool import Progress, Request, SpoolWriter, requests
from dataflare_plugins.http.target import Target as Address
from dataflare_sdk import CODES, Batch, Destination, Opened, RowRejection, Target, WriteSpec, code, web
from dataflare_sdk.atomic import read_record, write_record
from dataflare_sdk.compute import pc
from dataflare_sdk.failpoints import declare, failpoint

BAD_ROW = code("http.row-refused", 1, "A server refused rows.", "Mend the rows, or set `errors.on_record` to skip or dead_letter.")
_DOTS = pa.array(["", ".", ".."])
"""Texts that a path may climb by, alone or beside others."""

declare("http.request.sent", "http.epoch.sent")


class HttpDestination(Destination[HttpConfig]):
    """Sends rows.

    Under the policy `fail` for bad rows, an epoch's requests are written down when its rows are complete and made when it is
    logged; a crash makes the very same ones again, under the same keys. Under `skip` and `dead_letter` the server is asked
    while rows come in, because what it refuses has to stand in the log of the epoch.
    """

    Config = HttpConfig
    features = frozenset({"append", "upsert", "idempotent"})

    def __init__(self, config: HttpConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.address = Address(config.url)
        self._check_headers()
        self._writer: Any = None
        self._client: Client | None = None
        self._encoder: Encoder | None = None
        self._progress: Progress | None = None
        self._part = 0

    def _check_headers(self) -> None:
        headers = {**self.config.headers}
        if self.config.idempotency_header is not None and self.config.idempotency_header not in headers:
            headers[self.config.idempotency_header] = ""
        for name, value in headers.items():
            path = f"headers.{name}" if name in self.config.headers else "idempotency_header"
            wrong = web.bad_header(name, value)
            if wrong is None and name.lower() == "content-encoding":
                wrong = f"'{name}' is no header that can be set"
            if wrong is not None:
                raise CODES["config.invalid"].error(wrong, path=path)

    # -- what it can do ----------------------------------------------------------------------------------

    @property
    def _asks(self) -> bool:
        """Whether rows are sent while they come in, so that refused ones can be left out."""
        return self.ctx.on_record != "fail"

    def check(self) -> None:
        """Connect to the server."""
        self._made_client().check()

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Refuse an address with columns that the rows have not."""
        return [f"the address names the column '{c}', which the rows have not" for c in self.address.missing(schema)]

    def guarantee(self, write: WriteSpec) -> str:
        """Return `effectively_once` where making a request twice does what making it once does."""
        by_key = self.config.idempotent and self.config.idempotency_header is not None and not self._asks
        by_rows = write.mode == "upsert" or (self.config.method == "PUT" and bool(self.address.columns))
        return "effectively_once" if by_key or by_rows else "at_least_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:
        """Say what a crash may repeat."""
        if self._asks:
            when = f"with `on_record: {self.ctx.on_record}` rows are sent before their epoch is logged, and after a crash again"
        else:
            when = "a request under way in a crash is made again, with the same key and body"
        if self.guarantee(write) == "at_least_once":
            return [f"{when}; a server that knows rows by their key (`write: {{mode: upsert}}`) or requests by theirs "
                    "(`idempotent: true`) takes them once"]  # fmt: skip
        return [when]

    def commit_scope(self) -> str:
        """Return the address; hashed, as there may be a key in it."""
        place = hashlib.sha256(f"{self.config.method} {self.config.url}".encode()).hexdigest()[:12]
        return f"http:{self.address.origin}:{place}"

    # -- opening -----------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Return what the note says of this run, and forget rows of an epoch that was not prepared."""
        folder = self._folder = Path(self.ctx.staging_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._note, self._staged = folder / "sent.json", folder / "rows.arrow"
        self._spool, self._counted = folder / "requests", folder / "answered"
        self._target = target
        self._encoder = Encoder(target.schema, folder)
        self._drop_rows()
        held = read_record(self._note) or {}
        if held.get("run") != target.run_id:
            held = {}
        self._epoch = int(held.get("epoch", 0))
        return Opened(self._epoch, target.run_id, held["offsets"]) if held else Opened()

    def _made_client(self) -> Client:
        if self._client is None:
            self._client = Client(self.config, self.address, Path(self.ctx.base_dir), self.ctx.cancelled, self.ctx.metric)
        return self._client

    # -- rows come in ------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep a batch until its epoch is logged; or send it, and return the rows that the server refuses."""
        refused = self._without_address(batch.data)
        data = batch.data
        left: Sequence[int] = range(data.num_rows)
        if refused:
            gone = {r.index for r in refused}
            left = [i for i in left if i not in gone]
            data = data.take(pa.array(left, pa.int64()))
        if self._asks:
            return [*refused, *self._asked(data, left)]
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._staged), self._target.schema)
        if data.num_rows:
            self._writer.write_batch(data)
        return refused

    def _without_address(self, data: pa.RecordBatch) -> list[RowRejection]:
        found: dict[int, str] = {}
        dots = False
        for name in self.address.columns:
            column = data.column(data.schema.get_field_index(name))
            if column.null_count:
                found.update((i, f"'{name}' is NULL") for i, there in enumerate(column.is_valid().to_pylist()) if not there)
            dots = dots or bool(pc.is_in(column, _DOTS).true_count if column.type == pa.string() else False)
        if dots:
            for i, path in enumerate(self.address.paths(data)):
                if path is not None and web.climbs(path):
                    found.setdefault(i, "with its values it is the address of another place")
        return [RowRejection("data.bad-row", f"the address of the row cannot be made: {found[i]}", index=i) for i in sorted(found)]

    def _asked(self, data: pa.RecordBatch, indices: Sequence[int]) -> list[RowRejection]:
        """Send rows now; what the server refuses is halved until single rows are left."""
        assert self._encoder is not None
        groups: dict[str, list[tuple[int, bytes]]] = {}
        for index, path, line in zip(indices, self.address.paths(data), self._encoder.lines(data), strict=True):
            groups.setdefault(path, []).append((index, line))
        refused: list[RowRejection] = []
        for path, rows in groups.items():
            waiting = list(self._parts(rows))[::-1]
            while waiting:
                part = waiting.pop()
                answer = self._send(Request(path, body_of(self.config.body, [line for _, line in part]), len(part)), content=True)
                if answer.taken:
                    continue
                if len(part) == 1:
                    refused.append(RowRejection(BAD_ROW.name, f"the server answered {answer}", index=part[0][0]))
                    continue
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
        return refused

    def _parts(self, rows: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        batch = self.config.batch or BatchConfig()
        most = 1 if self.config.body == "object" else batch.rows
        part: list[tuple[int, bytes]] = []
        size = 0
        for row in rows:
            if part and (len(part) >= most or size + len(row[1]) + 1 > batch.bytes):
                yield part
                part, size = [], 0
            part.append(row)
            size += len(row[1]) + 1
        if part:
            yield part

    # -- epochs ------------------------------------------------------------------------------------------

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Write down the requests of the epoch, durably."""
        self._close_writer()
        if self._asks:
            return
        assert self._encoder is not None
        made = SpoolWriter(self._spool)
        try:
            cutter = Cutter(self.config, self.address, self._encoder)
            for batch in self._kept():
                for request in cutter.add(batch):
                    made.add(request)
            for request in cutter.rest():
                made.add(request)
            self._progress_of().close(forget=True)
            write_record(self._folder / "prepared.json", {"run": self._target.run_id, "epoch": 0})
            made.done()
            write_record(self._folder / "prepared.json", {"run": self._target.run_id, "epoch": epoch})
        except BaseException:
            made.drop()
            raise
        self._drop_rows()

    def _kept(self) -> Iterator[pa.RecordBatch]:
        if self._staged.exists():
            with pa.ipc.open_stream(str(self._staged)) as reader:
                yield from reader

    def recover(self, epoch: int, final: bool) -> bool:  # noqa: ARG002
        """Return True when the requests of a logged epoch are written down."""
        held = read_record(self._folder / "prepared.json") or {}
        return held == {"run": self._target.run_id, "epoch": epoch} and self._spool.exists()

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Make the requests of the epoch that were not answered yet.

        Raises:
            DataflareError: `http.row-refused`, `http.refused`; retriable: `http.unreachable`.
        """
        if epoch > self._epoch:
            if not self._asks:
                self._make(epoch)
            failpoint("http.epoch.sent")
            write_record(self._note, {"run": self._target.run_id, "epoch": epoch, "offsets": dict(offsets)})
            self._epoch, self._part = epoch, 0
        self.abort()
        for other in together:
            other.commit(epoch, offsets, final)

    def _make(self, epoch: int) -> None:
        progress = self._progress_of()
        answered = progress.count
        row = 0
        for part, request in enumerate(requests(self._spool)):
            if part >= answered:
                answer = self._send(request, key=f"{self._scope()}/{epoch}/{part}")
                if not answer.taken:
                    rows = f"row {row + 1}" if request.rows == 1 else f"one of the rows {row + 1} to {row + request.rows}"
                    raise BAD_ROW.error(f"{self.address.origin} answered {answer} to {rows} of epoch {epoch}", path="url")
                progress.to(part + 1)
            row += request.rows

    def _scope(self) -> str:
        return f"{self._target.workflow_id}/{self._target.node}/{self._target.run_id}"

    def _send(self, request: Request, *, key: str | None = None, content: bool = False) -> Answer:
        """Make a request under its key; one without a place in an epoch has a key by what is in it."""
        headers = {"Content-Type": CONTENT[self.config.body], "User-Agent": "dataflare", **self.config.headers}
        if content:
            self._part += 1
            key = f"{self._scope()}/{self._epoch + 1}/{self._part}-{hashlib.sha256(request.body).hexdigest()[:16]}"
        if self.config.idempotency_header is not None and key is not None:
            headers[self.config.idempotency_header] = key
        answer = self._made_client().send(request.path, request.body, headers)
        failpoint("http.request.sent")
        self.ctx.metric("requests", 1)
        return answer

    def _progress_of(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(self._counted)
        return self._progress

    def abort(self) -> None:
        """Drop what was written or prepared since the last commit."""
        self._close_writer()
        self._drop_rows()
        (self._folder / "prepared.json").unlink(missing_ok=True)
        self._spool.unlink(missing_ok=True)
        self._progress_of().close(forget=True)

    def close(self) -> None:
        """End the connection and let files go."""
        self._close_writer()
        if self._client is not None:
            self._client.close()
        if self._encoder is not None:
            self._encoder.close()
        if self._progress is not None:
            self._progress.close()

    def _drop_rows(self) -> None:
        self._staged.unlink(missing_ok=True)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
