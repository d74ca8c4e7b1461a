"""A subject of JetStream as a destination: an epoch is kept on disk until it is logged, then published under ids of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.nats import jetstream
from dataflare_plugins.nats.connection import Link, parse_url
from dataflare_plugins.nats.errors import NO_STREAM
from dataflare_plugins.nats.publishing import MESSAGE_ID, SCHEMA, Publisher, stored
from dataflare_sdk import CODES, Batch, Destination, Opened, RowRejection, Target, WriteSpec, atomic, code, config, option, platform
from dataflare_sdk.compute import pc
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.outflow import Payloads, Template

BAD_SUBJECT = code("data.bad-subject", 1, "A row names no subject that can be published to.", "Fill the columns of `subject` in a map.")
TOO_LARGE = code(
    "data.message-too-large-to-send",
    1,
    "A row is larger than a message may be.",
    "Raise `max_payload` of the server, or `max_msg_size` of the stream.",
)
SUBJECT = r"^[^\s.*>]+(\.[^\s.*>]+)*$"
OWN_SUBJECT = r"^[^\s.*>$_][^\s.*>]*(\.[^\s.*>]+)*$"
"""As `SUBJECT`, and none of the server's own (`$JS.API…`, `_INBOX…`): what a row says must not be a request to the server."""
LONGEST = 2_048
"""Bytes of a subject at most: the server ends a connection at a line of 4 KB, and the next one too."""
declare("nats.prepared", "nats.commit.begun", "nats.commit.sent", "nats.commit.done")


@config
class NatsTarget:
    """Where rows are published; the stream that takes the subject has to be there."""

    url: str = option("The server, or those of a cluster; `tls://` for TLS.", example="nats://app:${secret:nats}@broker:4222")
    subject: str = option("The subject, which columns in braces may name: `orders.{region}`.", example="orders")


class NatsDestination(Destination[NatsTarget]):
    """Rows as JSON objects; what a crash interrupts is finished, and the server knows what it has by the ids."""

    Config = NatsTarget
    features = frozenset({"append", "idempotent"})

    def __init__(self, config: NatsTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._link = Link(parse_url(config.url))
        try:
            self._template = Template(config.subject)
        except ValueError as error:
            raise CODES["config.invalid"].error(str(error), path="subject") from None
        # Where the workflow itself says how the subject begins, it may be `$KV.prices.{id}`.
        self._subject = SUBJECT if "." in config.subject.partition("{")[0] else OWN_SUBJECT
        self._writer: Any = None
        self._resumed = False

    def check(self) -> None:
        """Connect, and find the stream that takes the subject."""
        self._streams()

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse what a log cannot do, and columns that are not there."""
        reasons = [] if write.mode == "append" else [f"messages are only added: `write: {{mode: append}}`, not {write.mode}"]
        missing = self._template.missing(schema)
        if missing is not None:
            reasons.append(f"`subject` names the column '{missing}', and there are {', '.join(schema.names)}")
        return reasons

    def guarantee(self, write: WriteSpec) -> str:  # noqa: ARG002
        """Return that what is published again is recognised."""
        return "effectively_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Say what the promise rests on."""
        return ("a message that was published before a crash and removed from its stream before the run went on may be published again",)

    def commit_scope(self) -> str:
        """Return the server and the subject: two destinations of one subject are better one."""
        place = hashlib.sha256(f"{self._link.url}/{self.config.subject}".encode()).hexdigest()[:16]
        return f"nats:{place}"

    def _streams(self) -> list[str]:
        """Return the streams that take the subject.

        Raises:
            DataflareError: `nats.no-stream`.
        """
        subject = self.config.subject
        for column in self._template.columns:
            subject = subject.replace("{" + column + "}", "*")
        found = jetstream.streams_of(self._link, subject)
        if not found:
            raise NO_STREAM.error(f"{self._link.url}: no stream takes '{subject}'", path="subject")
        return found

    # -- opening and writing -----------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Return what the note beside the kept messages says of this run; what is prepared stays for `recover`."""
        folder = Path(self.ctx.staging_dir)
        atomic.make_folder(folder)
        self._target = target
        self._note, self._ready, self._staged = folder / "sent.json", folder / "ready.json", folder / "epoch.arrow"
        self._json = Payloads(target.schema)
        # Of several streams nobody knows yet which takes a row: then the one that takes the largest says what is too large for all.
        takes = [jetstream.stream_state(self._link, name).largest for name in self._streams()]
        most = [int(self._link.info["max_payload"]), *([] if None in takes else [max(t for t in takes if t is not None)])]
        # Headers count: the id, and epoch and row in it of up to 20 digits each.
        beside = len(f"NATS/1.0\r\n{MESSAGE_ID}: {target.workflow_id}/{target.run_id}/{target.node}/".encode()) + 64
        self._largest = min(most) - beside
        held = atomic.read_record(self._note) or {}
        if held.get("run") != target.run_id:
            return Opened()
        return Opened(held["epoch"], target.run_id, held["offsets"])

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep a batch until its epoch commits; rows without a subject, or too large, are refused."""
        subjects, payloads = self._template.array(batch.data), self._json.array(batch.data)
        fits = pc.less_equal(pc.binary_length(payloads), self._largest)
        if isinstance(subjects, str):
            subjects, good = pa.repeat(pa.scalar(subjects, pa.string()), batch.data.num_rows), fits
            named = None
        else:
            named = pc.fill_null(pc.match_substring_regex(subjects, self._subject), False)
            named = pc.and_(named, pc.less_equal(pc.fill_null(pc.binary_length(subjects), 0), LONGEST))
            good = pc.and_(named, fits)
        page = pa.RecordBatch.from_arrays([subjects, payloads], schema=SCHEMA)
        rejected: list[RowRejection] = []
        if not pc.all(good, min_count=0).as_py():
            for i in pc.indices_nonzero(pc.invert(good)).to_pylist():
                row = batch.data.slice(i, 1).to_pylist()[0]
                if named is not None and not named[i].as_py():
                    rejected.append(RowRejection(BAD_SUBJECT.name, f"'{subjects[i].as_py()}' is no subject", row=row, index=i))
                else:
                    size = pc.binary_length(payloads)[i].as_py()
                    told = f"the row has {size} bytes as JSON, {self._largest} are allowed"
                    rejected.append(RowRejection(TOO_LARGE.name, told, row=row, index=i))
            page = page.filter(good)
        if self._writer is None:
            self._ready.unlink(missing_ok=True)
            self._writer = pa.ipc.new_stream(str(self._staged), SCHEMA)
        self._writer.write_batch(page)
        return rejected

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Make the epoch's messages durable here, and note where the streams end that will take them."""
        if self._writer is None:
            self._ready.unlink(missing_ok=True)
            self._staged.unlink(missing_ok=True)
        self._close_writer()
        if self._staged.exists():
            platform.fsync_file(self._staged)
        ends = [[name, jetstream.stream_state(self._link, name).last] for name in self._streams()]
        atomic.write_record(self._ready, {"run": self._target.run_id, "epoch": epoch, "streams": ends})
        failpoint("nats.prepared")

    def recover(self, epoch: int, final: bool) -> bool:  # noqa: ARG002
        """After a crash: True when the messages of the logged epoch lie here."""
        held = atomic.read_record(self._ready) or {}
        self._resumed = (held.get("run"), held.get("epoch")) == (self._target.run_id, epoch)
        return self._resumed

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Publish the epoch's messages, and note that they are stored."""
        held = atomic.read_record(self._note) or {}
        if held.get("run") != self._target.run_id or held["epoch"] < epoch:
            failpoint("nats.commit.begun")
            prefix = f"{self._target.workflow_id}/{self._target.run_id}/{self._target.node}/{epoch}/"
            seen = set[int]()
            if self._resumed:
                ready = atomic.read_record(self._ready) or {}
                seen = stored(self._link, [(name, since) for name, since in ready.get("streams", ())], prefix)
            Publisher(self._link, prefix).publish(self._kept(), seen)
            failpoint("nats.commit.sent")
            atomic.write_record(self._note, {"run": self._target.run_id, "epoch": epoch, "offsets": dict(offsets)})
        failpoint("nats.commit.done")
        self._resumed = False
        self.abort()

    def _kept(self) -> Iterator[pa.RecordBatch]:
        if self._staged.exists():
            with pa.OSFile(str(self._staged)) as file, pa.ipc.open_stream(file) as reader:
                yield from reader

    def abort(self) -> None:
        """Drop what was written since the last commit."""
        self._close_writer()
        self._ready.unlink(missing_ok=True)
        self._staged.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file of kept messages, and disconnect."""
        self._close_writer()
        if hasattr(self, "_json"):
            self._json.close()
        self._link.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
