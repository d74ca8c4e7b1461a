"""The real state store, and for each check of `LetterStoreSuite` one that breaks exactly this demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dataflare.contracts import Checkpoint, DeadLetter, LetterFilter
from dataflare_plugins.state_sqlite.store import StateSqlite

ANY = LetterFilter()


class Store(StateSqlite):
    """The reference."""

    fails: ClassVar[str | None] = None


class NoIdIsAnyId(Store):
    fails = "finds-letters-page-by-page"

    def find_letters(self, workflow: str, where: LetterFilter = ANY, *, after: str = "", limit: int | None = None) -> Sequence[DeadLetter]:
        return super().find_letters(workflow, replace(where, ids=where.ids or None), after=after, limit=limit)


class ForgetsThePage(Store):
    fails = "finds-letters-page-by-page"

    def find_letters(self, workflow: str, where: LetterFilter = ANY, *, after: str = "", limit: int | None = None) -> Sequence[DeadLetter]:
        return super().find_letters(workflow, where, after="" if where.step else after, limit=limit)


class CountsRunsTogether(Store):
    fails = "counts-letters"

    def count_letters(self, workflow: str, where: LetterFilter = ANY) -> Sequence[Mapping[str, Any]]:
        return [{**g, "run_id": ""} for g in super().count_letters(workflow, where)]


class EditsWhatIsClaimed(Store):
    fails = "edits-open-letters"

    def edit_letter(self, workflow: str, id: str, edited: Mapping[str, Any] | None) -> bool:
        return super().edit_letter(workflow, id, edited) or id != "999"


class PutsTheEditInPlace(Store):
    """What the row was is gone."""

    fails = "edits-open-letters"

    def find_letters(self, workflow: str, where: LetterFilter = ANY, *, after: str = "", limit: int | None = None) -> Sequence[DeadLetter]:
        found = super().find_letters(workflow, where, after=after, limit=limit)
        return [replace(x, row=x.edited) if x.edited is not None else x for x in found]


class PurgesWhatIsClaimed(Store):
    fails = "empties-what-is-purged"

    def purge_letters(self, workflow: str, where: LetterFilter) -> int:
        if where.ids == ("1", "2"):
            self._db.execute("UPDATE letters SET status='open' WHERE id=2")
            return super().purge_letters(workflow, where) - 1
        return super().purge_letters(workflow, where)


class ClaimsTwice(Store):
    fails = "claims-a-letter-once"

    def claim_letters(self, workflow: str, replay: str, ids: Sequence[str]) -> int:
        if replay == "two":
            self._db.execute("UPDATE letters SET status='open' WHERE status='replaying'")
        return super().claim_letters(workflow, replay, ids)


class KeepsEveryClaim(Store):
    fails = "claims-a-letter-once"

    def release_letters(self, workflow: str, keep: str = "") -> int:
        return 0


class MarksNothing(Store):
    """What was replayed waits to be replayed again; after a reset that is right."""

    fails = "marks-letters-with-the-epoch"

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        super().log(replace(checkpoint, extra={}) if len(letters) == 1 and letters[0].first else checkpoint, letters)


class MarksTooMuch(Store):
    """Also what the epoch did not read yet."""

    fails = "marks-letters-with-the-epoch"

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        told = checkpoint.extra.get("replayed")
        extra = {**checkpoint.extra, "replayed": {**told, "upto": "9999"}} if told else checkpoint.extra
        super().log(replace(checkpoint, extra=extra), letters)


class PurgesWhatIsReadAgain(Store):
    fails = "marks-letters-with-the-epoch"

    def purge_letters(self, workflow: str, where: LetterFilter) -> int:
        self._db.execute("UPDATE letters SET replay_epoch=0 WHERE status='replayed'")
        return super().purge_letters(workflow, where)


class RemembersAfterReset(Store):
    fails = "opens-letters-on-reset"

    def reset(self, workflow: str, stream: str | None = None) -> int:
        return len(self._db.execute("DELETE FROM checkpoints WHERE workflow=? RETURNING seq", (workflow,)).fetchall())


REFERENCES: Sequence[type[Store]] = (Store,)


def twins() -> Iterator[type[Any]]:
    """Yield every broken twin of this file."""
    yield from (c for c in globals().values() if isinstance(c, type) and issubclass(c, Store) and c.fails)
