"""Files as destinations: one file made whole, or a folder of parts; two phases, so that no crash shows half of one.

Pieces of an epoch are written under hidden names; `prepare` makes them durable and notes them in `prepared.json`,
`commit` renames them and notes that in `record.json`. Both records lie in the node's staging folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from dataflare_plugins.files.layout import layout
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
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fence import check_fence
from dataflare_sdk.formats import (
    FLUSH_BYTES,
    FLUSH_ROWS,
    ArrowWriter,
    CsvWriter,
    JsonlWriter,
    ParquetWriter,
    Writer,
)

IN_THE_WAY = code("files.in-the-way", 4, "Something else lies where a file or folder should be written.", "Move it away, or change `path`.")
COLUMNS_DIFFER = code(
    "files.columns-differ", 4, "The file that is appended to has other columns.", "Write to a new file, or change the columns in a map."
)
declare("files.piece", "files.prepared", "files.renamed", "files.committed")


@config
class FileTarget:
    """Where rows are written."""

    path: str = option("A file with the format's ending, or a folder ending in / or with {column} in it.", example="out/orders.parquet")


@config
class CsvTarget(FileTarget):
    """How the CSV is written."""

    delimiter: str = option("Character between values.", default=",")
    header: bool = option("Begin with the names of the columns.", default=True)


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
        self._writer: Writer | None = None
        self._buffer: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._open: Any = None
        self._pieces: list[str] = []
        self._count = 0

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
        held = atomic.read_record(self._staging / "record.json") or {}
        check_fence(int(held.get("fence", 0)), target.fence, f"'{self.config.path}'")
        self._room()
        if held.get("run_id") == target.run_id:
            self._record = {**held, "fence": target.fence}
        else:
            self._begin()
        self._note()
        self._sweep()
        return Opened(int(self._record["epoch"]), target.run_id if self._record["epoch"] else None, self._record.get("offsets", {}))

    def _options(self) -> dict[str, Any]:
        return {}

    def _begin(self) -> None:
        """Begin a new run: forget the pieces of the last one."""
        atomic.remove(self._staging / "prepared.json")
        atomic.remove(self._pieces_folder())
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

    def _pieces_folder(self) -> Path:
        """Return the hidden folder beside the target, on the same file system."""
        return atomic.hidden(self.layout.target, "parts")

    def _sweep(self) -> None:
        """Remove pieces that no record knows: what was being written when a process died."""
        if self._record.get("final"):
            atomic.remove(self._pieces_folder())
            return
        prepared = self._prepared()
        known = {*self._record["pieces"], *((prepared or {}).get("pieces", ()))}
        folder = self._pieces_folder()
        if folder.exists():
            for path in list(folder.iterdir()):
                if path.name not in known and path.name != "whole":
                    atomic.remove(path)

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
        self._count += 1
        name = f"{self._record['epoch'] + 1:06}-{self._count:06}{'@' + folder.replace('/', '@') if folder else ''}"
        self._pieces.append(name)
        place = self._pieces_folder()
        with atomic.explained(place):
            place.mkdir(parents=True, exist_ok=True)
        return place / name

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
        return bool(self._pieces or self._record["pieces"] or self._record.get("length"))

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
        with atomic.explained(self.layout.target):
            for name in self._pieces:
                platform.fsync_file(self._pieces_folder() / name)
            note: dict[str, Any] = {"run_id": self._record["run_id"], "epoch": epoch, "final": final, "pieces": self._pieces}
            if final and self.layout.single and not self._append:
                note |= self._join()
            if self._pieces_folder().exists():
                platform.fsync_dir(self._pieces_folder())
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
        nothing = not self._pieces and not self._record["pieces"]
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

    def _join(self) -> dict[str, Any]:
        assert self._writer is not None
        folder = self._pieces_folder()
        pieces = [folder / name for name in (*self._record["pieces"], *self._pieces)]
        whole = folder / "whole"
        if len(pieces) == 1:
            pieces[0].rename(whole)
        else:
            # The first piece is taken for the whole: a crash in here starts from copies of the record's pieces.
            self._writer.join(self._copied_first(pieces), whole)
        platform.fsync_file(whole)
        status = whole.stat()
        return {"inode": status.st_ino, "size": status.st_size}

    def _copied_first(self, pieces: Sequence[Path]) -> list[Path]:
        """Keep a committed piece where it is: joining uses up its first file, and a crash must find it again."""
        if not self._writer or not self._writer.joins_bytes or pieces[0].name not in self._record["pieces"]:
            return list(pieces)
        import shutil

        first = pieces[0].with_name("first")
        shutil.copyfile(pieces[0], first)
        return [first, *pieces[1:]]

    def commit(
        self,
        epoch: int,
        offsets: Mapping[str, Any],
        final: bool,
        together: Sequence[Any] = (),  # noqa: ARG002
    ) -> None:
        """Give the epoch's pieces their final names."""
        held = atomic.read_record(self._staging / "record.json") or {}
        check_fence(int(held.get("fence", 0)), self._target.fence, f"'{self.config.path}'")
        if epoch <= self._record["epoch"]:
            return
        if self.layout.single:
            self._commit_file(final)
        else:
            self._commit_folder(epoch, final)
        failpoint("files.renamed")
        self._record["epoch"] = epoch
        self._record["offsets"] = dict(offsets)
        self._record["final"] = final
        self._note()
        self._pieces = []
        failpoint("files.committed")
        if final:
            atomic.remove(self._pieces_folder())

    def _commit_file(self, final: bool) -> None:
        target, folder = self.layout.target, self._pieces_folder()
        if self._append:
            self._append_pieces(target, folder)
            return
        self._record["pieces"] = [*self._record["pieces"], *self._pieces]
        if final and (folder / "whole").exists():
            with atomic.explained(target):
                platform.replace(folder / "whole", target)

    def _append_pieces(self, target: Path, folder: Path) -> None:
        """Append to what is committed; a crash in the middle is cut off and done again."""
        from dataflare_sdk.formats import append_file

        length = int(self._record.get("length", 0))
        with atomic.explained(target):
            if target.exists():
                atomic.cut(target, length)
            with target.open("ab") as out:
                for name in self._pieces:
                    with (folder / name).open("rb") as part:
                        append_file(part, out)
                out.flush()
                import os

                os.fsync(out.fileno())
                self._record["length"] = os.fstat(out.fileno()).st_size
            platform.fsync_dir(target.parent)

    def _commit_folder(self, epoch: int, final: bool) -> None:
        target, folder = self.layout.target, self._pieces_folder()
        if not self._append:
            self._record["pieces"] = [*self._record["pieces"], *self._pieces]
            if final:
                self._swap_folder(target, folder)
            return
        folders = {target}
        for name in self._pieces:
            final_path = target / self._part_name(name)
            final_path.parent.mkdir(parents=True, exist_ok=True)
            folders |= {final_path.parent, *(p for p in final_path.parents if p.is_relative_to(target))}
            if (folder / name).exists():
                with atomic.explained(final_path):
                    (folder / name).rename(final_path)
        for place in folders:
            platform.fsync_dir(place)
        self._manifest(target, epoch)

    def _part_name(self, piece: str) -> str:
        number, _, place = piece.partition("@")
        name = f"part-{self._record['run_id'][:8]}-{number}{self.layout.ending}"
        return f"{place.replace('@', '/')}/{name}" if place else name

    def _manifest(self, target: Path, epoch: int) -> None:
        """Write down which parts are committed, for readers that want a whole epoch or none of it."""
        path = target / "_dataflare_manifest.json"
        before = (atomic.read_record(path) or {}).get("parts", []) if path.exists() else []
        parts = list(dict.fromkeys([*before, *(self._part_name(p) for p in self._pieces)]))
        record = {
            "workflow_id": self._target.workflow_id,
            "node": self._target.node,
            "run_id": self._record["run_id"],
            "epoch": epoch,
            "parts": parts,
        }
        atomic.write_record(path, record)

    def _swap_folder(self, target: Path, folder: Path) -> None:
        """Put a folder of all pieces in the old one's place, in one step where the system can."""
        staged = atomic.hidden(target, "new")
        if folder.exists():
            atomic.remove(staged)
            staged.mkdir(parents=True)
            for name in self._record["pieces"]:
                path = staged / self._part_name(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                # Links, so that a crash finds every piece where the record says it is.
                path.hardlink_to(folder / name)
            for place in {p.parent for p in staged.rglob("*")} | {staged}:
                platform.fsync_dir(place)
        if not staged.exists():
            return
        parts = sorted(str(p.relative_to(staged)) for p in staged.rglob("*") if p.is_file() and p.name != "_dataflare_manifest.json")
        atomic.write_record(staged / "_dataflare_manifest.json", {"run_id": self._record["run_id"], "parts": parts})
        with atomic.explained(target):
            if not target.exists():
                staged.rename(target)
            elif not platform.exchange(staged, target):
                old = atomic.hidden(target, "old")
                atomic.remove(old)
                target.rename(old)
                staged.rename(target)
                atomic.remove(old)
        platform.fsync_dir(target.parent)
        atomic.remove(staged)

    def recover(self, epoch: int, final: bool) -> bool:
        """Return True when the logged epoch lies prepared: its pieces are there, or already have their names."""
        note = self._prepared()
        if note is None or note["epoch"] != epoch or note["final"] != final:
            return False
        target, folder = self.layout.target, self._pieces_folder()
        if "inode" in note:
            places = [p for p in (folder / "whole", target) if p.exists()]
            if not any((p.stat().st_ino, p.stat().st_size) == (note["inode"], note["size"]) for p in places):
                return False
        elif not self.layout.single and self._append:
            if not all((folder / n).exists() or (target / self._renamed(n, note)).exists() for n in note["pieces"]):
                return False
        elif not all((folder / n).exists() for n in note["pieces"]):
            return False
        self._pieces = list(note["pieces"])
        return True

    def _renamed(self, name: str, note: Mapping[str, Any]) -> str:  # noqa: ARG002
        return self._part_name(name)

    def abort(self) -> None:
        """Drop what was written since the last commit."""
        self._buffer, self._rows, self._bytes = [], 0, 0
        if self._open is not None:
            self._open.close()
            self._open = None
        for name in self._pieces:
            atomic.remove(self._pieces_folder() / name)
        self._pieces = []
        atomic.remove(self._staging / "prepared.json")

    def close(self) -> None:
        """Release what is held; hidden pieces of committed epochs stay for the next process."""
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._writer is not None:
            self._writer.close()
        folder = self._pieces_folder()
        if self._record and not self._record["pieces"] and self._prepared() is None:
            atomic.remove(folder)

    def _note(self) -> None:
        atomic.write_record(self._staging / "record.json", self._record)


class CsvDestination(FileDestination[CsvTarget]):
    """CSV, as DuckDB writes it."""

    Config = CsvTarget
    endings = (".csv", ".tsv", ".txt")
    writer_class = CsvWriter

    def _options(self) -> dict[str, Any]:
        return {"delimiter": self.config.delimiter, "header": self.config.header}

    def _check_columns(self, target: Path) -> None:
        if not self.config.header:
            return
        import csv

        with target.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=self.config.delimiter), [])
        if names != self._schema.names:
            raise COLUMNS_DIFFER.error(
                f"'{self.config.path}' has the columns {', '.join(names)}; the rows have {', '.join(self._schema.names)}"
            )


class JsonlDestination(FileDestination[FileTarget]):
    """JSON lines, as DuckDB writes them."""

    Config = FileTarget
    endings = (".jsonl", ".ndjson", ".json")
    form = "jsonl"
    writer_class = JsonlWriter


class ParquetDestination(FileDestination[FileTarget]):
    """Parquet."""

    Config = FileTarget
    endings = (".parquet", ".pq")
    form = "parquet"
    writer_class = ParquetWriter

    def _stores(self, kind: pa.DataType) -> bool:
        return bool(kind != pa.month_day_nano_interval())


class ArrowDestination(FileDestination[FileTarget]):
    """Arrow IPC files."""

    Config = FileTarget
    endings = (".arrow", ".feather", ".ipc")
    form = "arrow"
    writer_class = ArrowWriter
