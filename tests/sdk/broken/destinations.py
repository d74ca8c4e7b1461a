"""A small correct destination, and for each check of `DestinationSuite` one that breaks exactly this demand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dataflare_sdk import Batch, Destination, NoConfig, Opened, RowRejection, Target
from dataflare_sdk.fence import FENCED, check_fence

Row = list[Any]


def read(folder: Path) -> list[tuple[Any, ...]] | None:
    """Return the rows that a reader sees, sorted, or None when there is no target."""
    path = folder / "target.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    return None if held.get("rows") is None else sorted(tuple(r) for r in held["rows"])


class JsonDestination(Destination[NoConfig]):
    """The reference: rows and checkpoint in one JSON file, an epoch staged in a second one beside it.

    `rows` is what readers see, `new` what an overwrite has committed so far; both stand in the file that one
    replace makes visible, with the epoch, the offsets and the fence.
    """

    features = frozenset(["two_phase", "overwrite", "append", "upsert"])
    fails: ClassVar[str | None] = None

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.file = Path(ctx.base_dir) / "target.json"
        Path(ctx.staging_dir).mkdir(parents=True, exist_ok=True)
        self.prepared = Path(ctx.staging_dir) / "prepared.json"
        self.staged: list[Row] = []
        self.target: Target | None = None

    # -- the file ----------------------------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        begin = {"rows": None, "new": [], "run": None, "epoch": 0, "offsets": {}, "fence": 0}
        return json.loads(self.file.read_text()) if self.file.exists() else begin

    def save(self, held: Mapping[str, Any]) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(dict(held)))
        part.replace(self.file)

    # -- the contract ------------------------------------------------------------------------------------

    def commit_scope(self) -> str:
        return f"json:{self.file}"

    def open(self, target: Target) -> Opened:
        self.target = target
        held = self.load()
        self.claim(held)
        if held["run"] != target.run_id:
            self.begin(held)
        self.save(held)
        return self.opened(held)

    def claim(self, held: dict[str, Any]) -> None:
        check_fence(held["fence"], self.target.fence, "the file")
        held["fence"] = self.target.fence

    def begin(self, held: dict[str, Any]) -> None:
        self.prepared.unlink(missing_ok=True)
        held.update(run=self.target.run_id, epoch=0, offsets={}, new=[])

    def opened(self, held: Mapping[str, Any]) -> Opened:
        return Opened(held["epoch"], held["run"] if held["epoch"] else None, held["offsets"])

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        self.staged += [list(r.values()) for r in batch.data.to_pylist()]
        return ()

    def prepare(self, epoch: int, final: bool) -> None:
        self.prepared.write_text(json.dumps({"run": self.target.run_id, "epoch": epoch, "rows": self.staged}))

    def recover(self, epoch: int, final: bool) -> bool:
        if not self.prepared.exists():
            return False
        found = json.loads(self.prepared.read_text())
        if (found["run"], found["epoch"]) != (self.target.run_id, epoch):
            return False
        self.staged = found["rows"]
        return True

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        held = self.load()
        self.guard(held)
        if not self.holds(held, epoch):
            self.apply(held, final)
            held.update(epoch=epoch, offsets=dict(offsets))
            self.save(held)
        self.abort()

    def guard(self, held: Mapping[str, Any]) -> None:
        if held["fence"] != self.target.fence:
            raise FENCED.error("the file was claimed by another run")

    def holds(self, held: Mapping[str, Any], epoch: int) -> bool:
        return bool(epoch <= held["epoch"])

    def apply(self, held: dict[str, Any], final: bool) -> None:
        mode = self.target.write.mode
        if mode == "overwrite":
            held["new"] = held["new"] + self.staged
            if final:
                held["rows"], held["new"] = held["new"], []
        elif mode == "upsert":
            held["rows"] = self.merge(held["rows"] or [])
        else:
            held["rows"] = (held["rows"] or []) + self.staged

    def merge(self, rows: Sequence[Row]) -> list[Row]:
        return list({r[0]: r for r in [*rows, *self.staged]}.values())

    def abort(self) -> None:
        self.staged = []
        self.prepared.unlink(missing_ok=True)


class DatabaseDestination(JsonDestination):
    """The reference as databases are: nothing is kept of a crash, and a second commit is refused as fenced."""

    features = frozenset(["transactional", "overwrite", "append"])

    def prepare(self, epoch: int, final: bool) -> None:
        pass

    def recover(self, epoch: int, final: bool) -> bool:
        return False

    def holds(self, held: Mapping[str, Any], epoch: int) -> bool:
        if epoch != held["epoch"] + 1:
            raise FENCED.error("the file does not hold the epoch before")
        return False


class UnknownFeature(JsonDestination):
    fails = "declares-known-features"
    features = JsonDestination.features | {"quick"}


class ShowsWhatIsPrepared(JsonDestination):
    """Puts prepared rows where readers see them, and takes them back again."""

    fails = "shows-nothing-before-commit"

    def begin(self, held: dict[str, Any]) -> None:
        super().begin(held)
        if held["rows"] is not None and held.get("shown"):
            held["rows"] = [r for r in held["rows"] if r not in held["shown"]] or None
        held["shown"] = []

    def prepare(self, epoch: int, final: bool) -> None:
        super().prepare(epoch, final)
        held = self.load()
        if held["rows"] is None and final:
            self.save({**held, "rows": self.staged, "shown": self.staged})

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        held = self.load()
        if held.get("shown"):
            self.save({**held, "rows": None, "shown": []})
        super().commit(epoch, offsets, final, together)


class AppendsToWhatItOpened(JsonDestination):
    """Keeps the rows it found when it was opened; its second epoch takes the place of its first."""

    fails = "shows-everything-after-commit"

    def open(self, target: Target) -> Opened:
        found = super().open(target)
        self.found = self.load()["rows"]
        return found

    def apply(self, held: dict[str, Any], final: bool) -> None:
        if self.target.write.mode == "append":
            held["rows"] = self.found
        super().apply(held, final)


class WritesWhatWasAborted(JsonDestination):
    """`abort` removes the prepared file and forgets the rows in memory."""

    fails = "forgets-what-was-aborted"

    def abort(self) -> None:
        self.prepared.unlink(missing_ok=True)

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        super().commit(epoch, offsets, final, together)
        self.staged = []


class ForgetsItsOffsets(JsonDestination):
    fails = "remembers-its-epoch"

    def opened(self, held: Mapping[str, Any]) -> Opened:
        return Opened(held["epoch"], held["run"] if held["epoch"] else None)


class ForgetsItsRun(JsonDestination):
    fails = "remembers-its-epoch"

    def opened(self, held: Mapping[str, Any]) -> Opened:
        return Opened(held["epoch"], None, held["offsets"])


class RecoversAndWritesAgain(JsonDestination):
    """Keeps the prepared rows of its own run and says that it could not recover them."""

    fails = "survives-a-crash-after-prepare"

    def open(self, target: Target) -> Opened:
        found = super().open(target)
        self.recover(found.epoch + 1, True)
        return found

    def recover(self, epoch: int, final: bool) -> bool:
        super().recover(epoch, final)
        return False


class RecoversHalf(JsonDestination):
    """Finds only the first of the prepared rows and says that it has them all."""

    fails = "survives-a-crash-after-prepare"

    def recover(self, epoch: int, final: bool) -> bool:
        found = super().recover(epoch, final)
        del self.staged[1:]
        return found


class AppliesAnEpochTwice(JsonDestination):
    """Commits whatever is staged, without a look at the epoch that it holds."""

    fails = "commits-an-epoch-once"

    def holds(self, held: Mapping[str, Any], epoch: int) -> bool:
        return False


class KeepsOrphans(JsonDestination):
    """A run takes over what lies prepared, also when another run has left it."""

    fails = "sweeps-what-a-crash-left"

    def begin(self, held: dict[str, Any]) -> None:
        if self.prepared.exists():
            self.staged = json.loads(self.prepared.read_text())["rows"]
        super().begin(held)


class TakesAnyFence(JsonDestination):
    """Guards its commits, and lets an older run claim the file."""

    fails = "refuses-an-older-fence"

    def claim(self, held: dict[str, Any]) -> None:
        held["fence"] = self.target.fence


class CommitsAsAZombie(JsonDestination):
    """Looks at the fence when it is opened and never again."""

    fails = "refuses-a-zombie"

    def guard(self, held: Mapping[str, Any]) -> None:
        pass


class SharesItsFiles(JsonDestination):
    """Commits what lies prepared, in a place where an older run may still write."""

    fails = "leaves-its-heir-alone"

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.prepared = Path(ctx.base_dir) / ".prepared.json"

    def apply(self, held: dict[str, Any], final: bool) -> None:
        self.recover(held["epoch"] + 1, final)
        super().apply(held, final)


class CannotEndTwice(JsonDestination):
    """Uses up the rows of earlier epochs when the last one is prepared without any."""

    fails = "ends-without-a-row-after-a-crash"

    def prepare(self, epoch: int, final: bool) -> None:
        held = self.load()
        if final and epoch > 1 and not self.staged:
            self.save({**held, "used": True, "rows": None, "new": []} if not held.get("used") else held)
            if not held.get("used"):
                self.staged = held["rows"] or held["new"]
        super().prepare(epoch, final)


class OverwritesAtTheFirstEpoch(JsonDestination):
    """Swaps at its first commit and appends from then on, so readers see a part; when it fails it puts the old rows back."""

    fails = "swaps-an-overwrite-at-the-end"

    def apply(self, held: dict[str, Any], final: bool) -> None:
        if self.target.write.mode != "overwrite":
            super().apply(held, final)
            return
        if held["epoch"] == 0:
            held["old"], held["rows"] = held["rows"], []
        held["rows"] = held["rows"] + self.staged
        self.half = not final

    def close(self) -> None:
        held = self.load()
        if getattr(self, "half", False) and held.get("old") is not None:
            self.save({**held, "rows": held["old"]})


class WipesWhenItFails(JsonDestination):
    """An overwrite that is aborted leaves nothing."""

    fails = "keeps-the-old-rows-of-a-failed-overwrite"

    def abort(self) -> None:
        if self.staged and not getattr(self, "committing", False) and self.target.write.mode == "overwrite":
            self.save({**self.load(), "rows": None})
        super().abort()

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        self.committing = True
        super().commit(epoch, offsets, final, together)
        self.committing = False


class WipesWhenItBegins(JsonDestination):
    """The third run in a row makes room before it has rows."""

    fails = "keeps-the-old-rows-of-a-failed-overwrite"

    def begin(self, held: dict[str, Any]) -> None:
        if held["new"]:
            held["rows"] = None
        super().begin(held)


class AppendsFromTheBeginning(JsonDestination):
    """Each run begins with an empty file."""

    fails = "appends-to-what-is-there"

    def begin(self, held: dict[str, Any]) -> None:
        super().begin(held)
        if self.target.write.mode == "append":
            held["rows"] = None


class KeepsTheFirstRow(JsonDestination):
    """The first row of a key wins."""

    fails = "upserts-by-key"

    def merge(self, rows: Sequence[Row]) -> list[Row]:
        return list({r[0]: r for r in [*reversed(self.staged), *rows]}.values())


class NothingForNothing(JsonDestination):
    """A run without rows makes no target."""

    fails = "writes-an-empty-result"

    def apply(self, held: dict[str, Any], final: bool) -> None:
        if self.staged:
            super().apply(held, final)


class NamesItselfAnew(JsonDestination):
    fails = "names-its-commit-scope"

    def commit_scope(self) -> str:
        return f"json:{uuid.uuid4()}"


REFERENCES: Sequence[type[JsonDestination]] = (JsonDestination, DatabaseDestination)


def twins() -> Iterator[type[Any]]:
    """Yield every broken twin of this file."""
    yield from (c for c in globals().values() if isinstance(c, type) and issubclass(c, JsonDestination) and c.fails)
