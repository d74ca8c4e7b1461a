"""A run that was taken over and wakes up: at every instruction of its commit, with files of every kind."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflare_plugins.files import pieces, publishing
from dataflare_plugins.files.csv_destination import CsvDestination
from dataflare_plugins.files.destination import FileDestination
from dataflare_plugins.files.parquet_destination import ParquetDestination
from dataflare_sdk import Batch, DataflareError, Target, WriteSpec, atomic, platform
from dataflare_sdk.claim import claim
from dataflare_sdk.testing import FakeContext

SCHEMA = pa.schema([("id", pa.int64())])
PLACES = {
    "file": (CsvDestination, "o.csv", "overwrite"),
    "appended": (CsvDestination, "o.csv", "append"),
    "folder": (ParquetDestination, "o/", "overwrite"),
    "parts": (ParquetDestination, "o/", "append"),
    "listed": (ParquetDestination, "o/", "append"),
}
"""What is written; `listed`: parts of which the manifest names one and leaves the rest to lists of their own."""


def opened(kind: str, folder: Path, fence: int, run: str = "run-1") -> FileDestination[Any]:
    factory, path, mode = PLACES[kind]
    context = FakeContext(folder, "o")
    context.staging_dir = claim(context.staging_dir.parent, fence) / "o"
    made = factory(factory.configure({"path": path}), context)
    made.open(Target("workflow-1", "o", run, fence, SCHEMA, WriteSpec(mode=mode), "hash"))
    return made


def other(folder: Path, kind: str = "parts") -> FileDestination[Any]:
    """Return what another workflow appends to the same place with."""
    factory, path, _ = PLACES[kind]
    context = FakeContext(folder, "o")
    context.staging_dir = folder / ".dataflare" / "other"
    made = factory(factory.configure({"path": path}), context)
    made.open(Target("workflow-2", "o", "run-9", 8, SCHEMA, WriteSpec(mode="append"), "hash"))
    return made


def write(made: FileDestination[Any], epoch: int, ids: list[int], *, final: bool) -> None:
    made.write(Batch("in", pa.record_batch([pa.array(ids, pa.int64())], schema=SCHEMA)))
    made.prepare(epoch, final)


def rows(kind: str, folder: Path) -> list[int]:
    import duckdb

    source = "read_csv('{}/o.csv')" if PLACES[kind][0] is CsvDestination else "read_parquet('{}/o/*.parquet')"
    return sorted(r[0] for r in duckdb.sql(f"SELECT id FROM {source.format(folder)}").fetchall())


def told_by(folder: Path) -> tuple[list[str], int]:
    """Return the parts that the manifest of a folder tells of, and how many lists of earlier ones there are."""
    record = json.loads((folder / publishing.MANIFEST).read_text())["record"]
    earlier = record.get("earlier", [])
    parts = [p for name in earlier for p in json.loads((folder / name).read_text())["record"]["parts"]]
    assert sorted([publishing.MANIFEST, *earlier]) == sorted(p.name for p in folder.glob("*.json"))
    return [*parts, *record["parts"]], len(earlier)


STEPS = [
    (platform, "replace"),
    (platform, "fsync_dir"),
    (platform, "fsync_file"),
    (platform, "exchange"),
    (atomic, "cut"),
    (atomic, "write_record"),
    (publishing, "append_file"),
    (publishing.Parts, "_tell"),
    (pieces.Pieces, "alone"),
    (Path, "rename"),
    (Path, "mkdir"),
]
"""What a commit does on its way; the older run is stopped before each of them."""


@pytest.mark.parametrize("last", [2, 3])
@pytest.mark.parametrize("kind", PLACES)
def test_an_older_run_that_is_stopped_in_its_commit(kind: str, last: int, tmp_path: Path, monkeypatch) -> None:
    """The heir runs to its end meanwhile; then the older one goes on. Or the heir refuses, and leaves all as it is."""
    monkeypatch.setattr(pieces, "PATIENCE", 0.1)
    if kind == "listed":
        monkeypatch.setattr(publishing, "MOST_PARTS", 1)
    passed = [name for owner, name in STEPS if stopped_at(owner, name, kind, last, tmp_path / name, monkeypatch)]
    assert len(passed) >= (4 if last == 2 else 1), passed


def stopped_at(owner: Any, name: str, kind: str, last: int, tmp_path: Path, monkeypatch) -> bool:
    """Stop the older run before a call of its commit and compare; False when this kind makes no such call."""
    tmp_path.mkdir()
    first = opened(kind, tmp_path, 1)
    write(first, 1, [1, 2], final=False)
    first.commit(1, {}, False)
    write(first, 2, [3], final=last == 2)
    real, heirs = getattr(owner, name), []

    def stopped(*arguments: Any, **named: Any) -> Any:
        if not heirs:
            heirs.append("running")
            try:
                heirs.append(finish(kind, last, tmp_path))
            except DataflareError as error:
                heirs.append(error)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, stopped)
    try:
        first.commit(2, {"by": "first"}, last == 2)
    except DataflareError as error:
        assert error.code == "state.fenced"
    monkeypatch.setattr(owner, name, real)
    first.close()
    if heirs and isinstance(heirs[1], DataflareError):
        assert heirs[1].code == "files.held"
    if not heirs or isinstance(heirs[1], DataflareError):
        finish(kind, last, tmp_path, fence=3)
    assert rows(kind, tmp_path) == [1, 2, 3, 4][: last + 1], name
    if kind in ("parts", "listed"):
        told, lists = told_by(tmp_path / "o")
        assert sorted(told) == sorted(p.name for p in (tmp_path / "o").glob("*.parquet")), name
        assert lists == (0 if kind == "parts" else len(told) - 1)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".dataflare-")] == [], name
    return bool(heirs)


def finish(kind: str, last: int, folder: Path, fence: int = 2) -> None:
    """Do what an heir does: finish the logged epoch, or read it again; then go on to the last."""
    heir = opened(kind, folder, fence)
    if heir._record["epoch"] == 1:
        if not heir.recover(2, last == 2):
            heir.abort()
            write(heir, 2, [3], final=last == 2)
        heir.commit(2, {"by": "heir"}, last == 2)
    if last == 3:
        write(heir, 3, [4], final=True)
        heir.commit(3, {"by": "heir"}, True)
    heir.close()


def test_a_manifest_of_many_epochs_stays_small(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(publishing, "MOST_PARTS", 5)
    made = opened("parts", tmp_path, 1)
    sizes = []
    for epoch in range(1, 24):
        write(made, epoch, [epoch], final=False)
        made.commit(epoch, {}, False)
        made.commit(epoch, {}, False)  # as after a crash behind it
        sizes.append((tmp_path / "o" / publishing.MANIFEST).stat().st_size)
    made.close()
    told, lists = told_by(tmp_path / "o")
    assert (sorted(told), lists) == (sorted(p.name for p in (tmp_path / "o").glob("*.parquet")), 4)
    assert len(told) == 23
    assert max(sizes) < 1000


def test_an_older_run_that_never_ends_is_named(tmp_path: Path, monkeypatch) -> None:
    """Appending is not one rename: as long as the older run stands in it, the heir would cut off what it writes."""
    monkeypatch.setattr(pieces, "PATIENCE", 0.1)
    first = opened("appended", tmp_path, 1)
    with first._mine.alone(), pytest.raises(DataflareError) as error:
        opened("appended", tmp_path, 2)
    assert error.value.code == "files.held"
    opened("appended", tmp_path, 3).close()


def test_a_piece_that_somebody_removed_is_missed(tmp_path: Path) -> None:
    made = opened("file", tmp_path, 1)
    write(made, 1, [1], final=True)
    made._mine.whole.unlink()
    with pytest.raises(DataflareError) as error:
        made.commit(1, {}, True)
    assert error.value.code == "files.lost-piece"
    assert not (tmp_path / "o.csv").exists()


def test_an_abandoned_run_of_another_workflow_keeps_its_pieces(tmp_path: Path) -> None:
    """Two workflows may append to one folder at the same time: neither sweeps the other."""
    one = opened("parts", tmp_path, 1)
    write(one, 1, [1], final=False)
    two = other(tmp_path)
    write(two, 1, [2], final=True)
    two.commit(1, {}, True)
    two.close()
    one.commit(1, {}, True)
    one.close()
    assert rows("parts", tmp_path) == [1, 2]


def test_two_workflows_that_append_at_once_are_both_told_of(tmp_path: Path, monkeypatch) -> None:
    """One has read the manifest and not yet written it when the other comes."""
    one, two = opened("parts", tmp_path, 1), other(tmp_path)
    for made, row in ((one, 1), (two, 2)):
        write(made, 1, [row], final=True)
    beside = threading.Thread(target=two.commit, args=(1, {}, True))
    real = atomic.write_record

    def slowly(path: Path, *arguments: Any, **named: Any) -> None:
        if path.name == publishing.MANIFEST and beside.ident is None:
            beside.start()
            beside.join(0.5)
        real(path, *arguments, **named)

    monkeypatch.setattr(atomic, "write_record", slowly)
    one.commit(1, {}, True)
    beside.join()
    for made in (one, two):
        made.close()
    assert rows("parts", tmp_path) == [1, 2]
    assert sorted(told_by(tmp_path / "o")[0]) == sorted(p.name for p in (tmp_path / "o").glob("*.parquet"))


@pytest.mark.parametrize("began", ["", "id\n0\n"])
def test_two_that_append_to_one_file_lose_nothing(began: str, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text(began)
    one, two = opened("appended", tmp_path, 1), other(tmp_path, "appended")
    for epoch in range(1, 4):
        for made, row in ((one, epoch), (two, 10 + epoch)):
            write(made, epoch, [row], final=epoch == 3)
            made.commit(epoch, {}, epoch == 3)
        with (tmp_path / "o.csv").open("a") as by_hand:
            by_hand.write(f"{20 + epoch}\n")
    one.close()
    two.close()
    assert (tmp_path / "o.csv").read_text().split() == [*(began.split() or ["id"]), *map(str, (1, 11, 21, 2, 12, 22, 3, 13, 23))]


def test_a_file_that_another_began_with_other_columns_is_let_be(tmp_path: Path) -> None:
    made = opened("appended", tmp_path, 1)
    write(made, 1, [1], final=True)
    (tmp_path / "o.csv").write_text("other\n0\n")
    with pytest.raises(DataflareError) as error:
        made.commit(1, {}, True)
    assert error.value.code == "files.columns-differ"
    assert (tmp_path / "o.csv").read_text() == "other\n0\n"


class Dies(BaseException):
    """Ends a process in the middle of a write, as far as the file can tell."""


@pytest.mark.parametrize("behind", ["", "7\n"])
@pytest.mark.parametrize("written", [0, 1, 4, 6])
def test_what_is_found_behind_a_killed_append(written: int, behind: str, tmp_path: Path, monkeypatch) -> None:
    """Its own bytes are cut off and written again; what may be somebody else's is not."""
    first = opened("appended", tmp_path, 1)
    write(first, 1, [1], final=False)
    first.commit(1, {}, False)
    write(first, 2, [21, 22], final=True)

    def dies(part: Any, out: Any) -> None:
        out.write(part.read()[:written])
        out.flush()
        raise Dies

    monkeypatch.setattr(publishing, "append_file", dies)
    with pytest.raises(Dies):
        first.commit(2, {}, True)
    monkeypatch.undo()
    file = tmp_path / "o.csv"
    file.write_text(file.read_text() + behind)
    there = file.read_text()
    assert there == "id\n1\n" + "21\n22\n"[:written] + behind
    heir = opened("appended", tmp_path, 2)
    assert heir.recover(2, True)
    if behind and written < 6:
        with pytest.raises(DataflareError) as error:
            heir.commit(2, {}, True)
        assert error.value.code == "files.not-ours"
        assert file.read_text() == there
    else:
        heir.commit(2, {}, True)
        assert file.read_text() == "id\n1\n21\n22\n" + behind
    heir.close()
