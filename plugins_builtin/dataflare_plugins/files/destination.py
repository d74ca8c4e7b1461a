"""Files as destinations: one file made whole, or a folder of parts; two phases, so that no crash shows half of one.

Pieces of an epoch are written under hidden names (`pieces`); `prepare` makes them durable and notes them in
`prepared.json`, `commit` gives them their names (`publishing`) and notes that in `record.json`. Both records lie in the
node's staging folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from dataflare_plugins.files.layout import layout
from dataflare_plugins.files.pieces import WHOLE, Pieces
from dataflare_plugins.files.publishing import Parts, append_bytes, is_whole, put_whole
from dataflare_sdk import (
    Batch,
    CopyTarget,
    Destination,
    DestinationTwin,
    Opened,
    RowRejection,
    ScratchPlace,
    Target,
    WriteSpec,
    atomic,
    code,
    config,
    option,
    platform,
)
from dataflare_sdk.claim import held
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fence import FENCED, check_fence
from dataflare_sdk.formats import FLUSH_BYTES, FLUSH_ROWS, ArrowWriter, CsvWriter, Writer

IN_THE_WAY = code("files.in-the-way", 4, "Something else lies where a file or folder should be written.", "Move it away, or change `path`.")
declare("files.piece", "files.prepared", "files.renamed", "files.committed")


@config
class FileTarget:
    """Where rows are written."""

    path: str = option("A file with the format's ending, or a folder ending in / or with {column} in it.", example="out/orders.parquet")


C = TypeVar("C", bound=FileTarget)


class FileDestination(Destination[C]):
    """The protocol, for every format."""

    features = frozenset({"two_phase", "overwrite", "append", "atomic_swap", "takes_all"})
    endings: ClassVar[tuple[str, ...]] = ()
    form: ClassVar[str] = "csv"
    writer_class: ClassVar[type[Writer]] = CsvWriter

    def __init__(self, config: C, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.layout = layout(config.path, Path(ctx.base_dir).absolute(), self.endings)
        self._staging = Path(ctx.staging_dir)
        self._record: dict[str, Any] = {}
        self._note_of_whole: dict[str, Any] = {}
        self._again = False
        self._pieces: Pieces | None = None
        self._writer: Writer | None = None
        self._buffer: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._open: Any = None

    # -- what can be asked before it is opened -----------------------------------------------------------

    def check(self) -> None:
        """Make the folder the file lies in.

        Raises:
            DataflareError: `world.permission`, `world.io`, `files.in-the-way`.
        """
        self._room()

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse upsert, appending to what cannot be appended to, and paths that mean nothing."""
        where = self.layout
        reasons = [where.wrong] if where.wrong else []
        if write.mode == "upsert":
            reasons.append("files cannot be upserted into; use a database, or overwrite")
        if write.mode == "append" and where.single and (not self._appends() or where.compression):
            folder = self.config.path.rpartition("/")[0]
            reasons.append(f"one {where.target.name} cannot be appended to; name a folder: '{folder + '/' if folder else 'out/'}'")
        reasons += [f"no column '{c}' for the folder '{{{c}}}'" for c in where.columns if c not in schema.names]
        if where.columns and set(schema.names) <= set(where.columns):
            reasons.append("every column is in the folder's name; nothing is left for the files")
        return reasons + [f"'{f.name}' is {f.type}, which the format has not" for f in schema if not self._stores(f.type)]

    def _appends(self) -> bool:
        return self.writer_class.joins_bytes

    def _stores(self, kind: pa.DataType) -> bool:  # noqa: ARG002
        return True

    def dataset(self) -> tuple[str, str]:
        """Return the path."""
        return "file", str(self.layout.target)

    def commit_scope(self) -> str:
        """Return the path."""
        return f"files:{self.layout.target}"

    def copies(self) -> bool:
        """Whether the bulk lane can write here: not into partitioned folders."""
        return not self.layout.columns and self.writer_class is not ArrowWriter

    # -- looking back ------------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, config: C, place: ScratchPlace) -> DestinationTwin:
        """Return the same path elsewhere."""
        from dataflare_plugins.files.twins import destination_twin

        return destination_twin(config, place)

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        """Return the rows of the file, or of every part in the folder."""
        from dataflare_plugins.files import looking

        return looking.rows(self.layout, self.form, self._options(), schema)

    # -- opening -----------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the path, sweep what an earlier process left, and say what is committed."""
        self._target = target
        self._append = target.write.mode == "append"
        self._schema = target.schema
        fields = [f for f in target.schema if f.name not in self.layout.columns]
        self._writer = self.writer_class(pa.schema(fields), self.layout.compression, **self._options())
        self._staging.mkdir(parents=True, exist_ok=True)
        record = atomic.read_record(self._staging / "record.json") or {}
        check_fence(int(record.get("fence", 0)), target.fence, f"'{self.config.path}'")
        self._room()
        self._pieces = Pieces(self.layout.target, f"{target.node}@{target.workflow_id}", target.fence)
        if self._append and self.layout.single:
            self._pieces.wait_for_older()
        if record.get("run_id") == target.run_id:
            self._record = {**record, "fence": target.fence}
        else:
            self._begin()
        self._note()
        self._sweep()
        return Opened(int(self._record["epoch"]), target.run_id if self._record["epoch"] else None, self._record.get("offsets", {}))

    def _options(self) -> dict[str, Any]:
        return {}

    def _begin(self) -> None:
        """Begin a new run: forget the last one."""
        atomic.remove(self._staging / "prepared.json")
        target = self.layout.target
        self._record = {"run_id": self._target.run_id, "epoch": 0, "fence": self._target.fence, "pieces": [], "offsets": {}}
        if self._append and self.layout.single:
            self._record["length"] = target.stat().st_size if target.exists() else 0
            if self._record["length"]:
                self._check_columns(target)

    def _check_columns(self, target: Path) -> None:
        """Compare with the columns that are there; formats without names have nothing to compare."""

    def _room(self) -> None:
        target = self.layout.target
        if self.layout.single:
            if target.is_dir():
                raise IN_THE_WAY.error(f"'{self.config.path}' is a folder", path="path")
            self._free(target.parent)
            atomic.make_folder(target.parent)
        else:
            self._free(target)
            atomic.make_folder(target if self._appending() else target.parent)
        import os

        place = target if not self.layout.single and target.is_dir() else target.parent
        if not os.access(place, os.W_OK):
            from dataflare_sdk import CODES

            raise CODES["world.permission"].error(f"the folder '{place}' may not be written", path="path")

    def _appending(self) -> bool:
        return getattr(self, "_append", True)

    def _free(self, folder: Path) -> None:
        for part in (folder, *folder.parents):
            if part.exists():
                if not part.is_dir():
                    raise IN_THE_WAY.error(f"'{part}' is a file, not a folder", path="path")
                return

    @property
    def _mine(self) -> Pieces:
        assert self._pieces is not None, "not opened"
        return self._pieces

    def _sweep(self) -> None:
        """Remove pieces that no record knows."""
        note = self._prepared() or {}
        whole = (WHOLE,) if "inode" in note else ()
        self._mine.sweep(() if self._record.get("final") else {*self._record["pieces"], *note.get("pieces", ()), *whole})

    def _prepared(self) -> dict[str, Any] | None:
        """Return the note of a prepared epoch of this run, if the next one is."""
        note = atomic.read_record(self._staging / "prepared.json")
        if note is None or note["run_id"] != self._record["run_id"] or note["epoch"] != self._record["epoch"] + 1:
            return None
        return note

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Take a batch; a piece is written when enough rows are there."""
        data = batch.data
        if self._streams():
            self._stream(data)
            return ()
        self._buffer.append(data)
        self._rows += data.num_rows
        self._bytes += data.nbytes
        if self._rows >= FLUSH_ROWS or self._bytes >= FLUSH_BYTES:
            self._flush()
        return ()

    def _streams(self) -> bool:
        """Whether batches go into one open file: formats with row groups, without partitions."""
        return not self.writer_class.joins_bytes and not self.layout.columns

    def _stream(self, data: pa.RecordBatch) -> None:
        assert self._writer is not None
        if self._open is None:
            self._open = self._writer.open(self._new_piece())  # type: ignore[attr-defined]
        with atomic.explained(self.layout.target):
            # Small batches would make small row groups: they are gathered first.
            self._buffer.append(data)
            self._rows += data.num_rows
            self._bytes += data.nbytes
            if self._rows >= 122_880 or self._bytes >= FLUSH_BYTES:
                self._drain()

    def _drain(self) -> None:
        if self._buffer:
            self._open.write_table(pa.Table.from_batches(self._buffer, self._schema).combine_chunks())
        self._buffer, self._rows, self._bytes = [], 0, 0

    def _new_piece(self, folder: str = "") -> Path:
        return self._mine.new(self._record["epoch"] + 1, folder)

    def _flush(self) -> None:
        """Write what is buffered as pieces, one per partition."""
        assert self._writer is not None
        table = pa.Table.from_batches(self._buffer, self._schema)
        self._buffer, self._rows, self._bytes = [], 0, 0
        for folder, part in self._parted(table):
            first = not self._header_written()
            path = self._new_piece(folder)
            with atomic.explained(path):
                self._writer.write(part, path, first=first or not self.layout.single)
            failpoint("files.piece")

    def _header_written(self) -> bool:
        return bool(self._mine.names or self._record["pieces"] or self._record.get("length"))

    def _parted(self, table: pa.Table) -> list[tuple[str, pa.Table]]:
        columns = list(self.layout.columns)
        if not columns:
            return [("", table)]
        from dataflare_sdk.compute import pc

        made = []
        for key in table.select(columns).group_by(columns).aggregate([]).to_pylist():
            mask = None
            for name, value in key.items():
                one = pc.is_null(table[name]) if value is None else pc.equal(table[name], pa.scalar(value, table.schema.field(name).type))
                mask = one if mask is None else pc.and_kleene(mask, one)
            part = table.filter(mask).drop_columns(columns)
            made.append((self.layout.folder(tuple(key[c] for c in columns)), part))
        return made

    def copy(self) -> CopyTarget | None:
        """Let the bulk lane write one piece."""
        if not self.copies():
            return None
        assert self._writer is not None
        first = not self._header_written()
        piece = self._new_piece()
        return CopyTarget((self._writer.copy(piece, first=first or not self.layout.single),), paths=(str(piece),))

    def copied(self, rows: int) -> None:  # noqa: ARG002
        """The piece is there."""
        failpoint("files.piece")

    # -- committing --------------------------------------------------------------------------------------

    def prepare(self, epoch: int, final: bool) -> None:
        """Make the epoch's pieces durable; of the last epoch of one file, the whole file."""
        self._finish_pieces(final)
        pieces = self._mine
        with atomic.explained(self.layout.target):
            for name in pieces.names:
                platform.fsync_file(pieces.folder / name)
            note: dict[str, Any] = {"run_id": self._record["run_id"], "epoch": epoch, "final": final, "pieces": pieces.names}
            if final and self.layout.single and not self._append:
                assert self._writer is not None
                pieces.join(self._record["pieces"], self._writer)
                status = pieces.whole.stat()
                note |= {"inode": status.st_ino, "size": status.st_size}
            pieces.sync(final=final)
        self._note_of_whole = note
        atomic.write_record(self._staging / "prepared.json", note)
        failpoint("files.prepared")

    def _finish_pieces(self, final: bool) -> None:
        if self._open is not None:
            with atomic.explained(self.layout.target):
                self._drain()
                self._open.close()
            self._open = None
            failpoint("files.piece")
        elif self._buffer:
            self._flush()
        nothing = not self._mine.names and not self._record["pieces"]
        empty_file = self.layout.single and not self._record.get("length")
        if final and nothing and (empty_file or (not self.layout.single and not self._has_parts())):
            self._write_nothing()

    def _write_nothing(self) -> None:
        """Write a piece without rows; without a row no folder holds the partition's columns, so the piece does."""
        writer = self.writer_class(self._schema, self.layout.compression, **self._options())
        try:
            writer.write(self._schema.empty_table(), self._new_piece(), first=True)
        finally:
            writer.close()

    def _has_parts(self) -> bool:
        """Whether an appended folder holds parts already: an empty result then adds none."""
        target = self.layout.target
        return self._append and target.is_dir() and any(not p.name.startswith((".", "_")) for p in target.iterdir())

    def commit(
        self,
        epoch: int,
        offsets: Mapping[str, Any],
        final: bool,
        together: Sequence[Any] = (),  # noqa: ARG002
    ) -> None:
        """Give the epoch's pieces their final names."""
        pieces = self._mine
        with held(pieces.folder):
            record = atomic.read_record(self._staging / "record.json")
            if record is None:
                raise FENCED.error(f"'{self.config.path}' was claimed by a newer run")
            check_fence(int(record["fence"]), self._target.fence, f"'{self.config.path}'")
            if epoch <= self._record["epoch"]:
                return
            with atomic.explained(self.layout.target):
                self._publish(epoch, final)
            failpoint("files.renamed")
            self._record |= {"epoch": epoch, "offsets": dict(offsets), "final": final}
            self._note()
            pieces.names = []
            failpoint("files.committed")
            if final:
                pieces.leave()

    def _publish(self, epoch: int, final: bool) -> None:
        pieces, target = self._mine, self.layout.target
        if not self._append:
            self._record["pieces"] = [*self._record["pieces"], *pieces.names]
        if self._append and self.layout.single:
            again, self._again = self._again, True  # what fails half-way is done again
            self._record["length"] = append_bytes(pieces, target, int(self._record.get("length", 0)), again=again, header=self._header_size)
            self._again = False
        elif self._append:
            self._parts().add(epoch)
        elif final and self.layout.single:
            put_whole(pieces, target, self._note_of_whole)
        elif final:
            self._parts().swap(self._record["pieces"])

    def _header_size(self) -> int:
        """Return how long the header is, of a file that somebody else has begun: with the same columns, or that is an error."""
        assert self._writer is not None
        self._check_columns(self.layout.target)
        path = self._mine.folder / "header"
        self._writer.write(self._schema.empty_table(), path, first=True)
        return path.stat().st_size

    def _parts(self) -> Parts:
        about = {"workflow_id": self._target.workflow_id, "node": self._target.node}
        return Parts(self.layout, self._mine, self._record["run_id"], about)

    def recover(self, epoch: int, final: bool) -> bool:
        """Return True when the logged epoch lies prepared: its pieces are there, or already have their names."""
        note = self._prepared()
        if note is None or note["epoch"] != epoch or note["final"] != final:
            return False
        target, pieces = self.layout.target, self._mine
        if "inode" in note:
            if not is_whole(pieces.whole, note) and not is_whole(target, note):
                return False
        else:
            visible = self._parts().path if self._append and not self.layout.single else None
            for name in note["pieces"]:
                if not (pieces.folder / name).exists() and (visible is None or not (target / visible(name)).exists()):
                    return False
        pieces.names, self._note_of_whole, self._again = list(note["pieces"]), note, True
        return True

    def abort(self) -> None:
        """Drop what was written since the last commit."""
        self._buffer, self._rows, self._bytes = [], 0, 0
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._pieces is not None:
            self._pieces.drop()
        atomic.remove(self._staging / "prepared.json")

    def close(self) -> None:
        """Release what is held; hidden pieces of committed epochs stay for the next process."""
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._writer is not None:
            self._writer.close()
        if self._pieces is not None and (self._record.get("final") or not (self._record["pieces"] or self._prepared())):
            self._pieces.leave()

    def _note(self) -> None:
        atomic.write_record(self._staging / "record.json", self._record)
