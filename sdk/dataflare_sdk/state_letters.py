"""Dead letters on a SQL database: found by page, counted without their rows, edited, purged, claimed by replays.

What is asked for stands in columns; what a letter holds is JSON beside them. Statements are plain SQL that SQLite and
PostgreSQL both read.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from dataflare.contracts import DeadLetter, LetterFilter
from dataflare.errors import code

NEWER = code(
    "state.newer-format",
    4,
    "The state store was written by a newer version of DataFlare.",
    "Use that version, or give the workflow another place for its state.",
)
T = TypeVar("T")
Execute = Callable[..., list[tuple[Any, ...]]]
"""Runs a statement with its parameters in the open transaction and returns its rows."""
ANY = LetterFilter()
ALL = 1 << 62
"""A LIMIT that is none."""
PAGE = 500
"""Ids in one statement, and letters rewritten at a time."""
_APART = ("id", "run_id", "step", "source", "code", "epoch", "saved_at", "status", "replay", "edited")
"""Fields that have a column of their own."""
_COMMITTED = "NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.workflow=l.workflow AND c.run_id=l.run_id AND c.epoch=l.epoch AND c.done=0)"
_SETTLED = (
    "(replay_epoch=0 OR NOT EXISTS "
    "(SELECT 1 FROM checkpoints c WHERE c.workflow=letters.workflow AND c.epoch=letters.replay_epoch AND c.done=0))"
)
"""No replay that is to be finished after a crash may read the letter again."""
_SELECT = "SELECT l.id, l.run_id, l.step, l.source, l.code, l.epoch, l.saved_at, l.status, l.replay, l.edited, l.body FROM letters l WHERE "


class SqlLetters:
    """Implements `dataflare.contracts.DeadLetterStore` beside the rest of a store (`state_sql.SqlStateStore`)."""

    @abstractmethod
    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return rows; none when the store is not there yet."""

    @abstractmethod
    def _write(self, act: Callable[[Execute], T], *, fenced: bool = True) -> T:
        """Run `act` in one durable transaction."""

    def letters(self, workflow: str, run_id: str | None = None, limit: int | None = None) -> Sequence[DeadLetter]:
        """Return dead letters of epochs that are committed everywhere, oldest first."""
        return self.find_letters(workflow, LetterFilter(run_id=run_id), limit=limit)

    def find_letters(self, workflow: str, where: LetterFilter = ANY, *, after: str = "", limit: int | None = None) -> Sequence[DeadLetter]:
        """Return letters behind `after`, oldest first, at most `limit`."""
        found: list[DeadLetter] = []
        most = ALL if limit is None else limit
        behind = min(int(after or 0), ALL)
        for part in _parts(where, behind):
            if len(found) >= most:
                break
            condition, arguments = _matching(workflow, part)
            rows = self._query(f"{_SELECT}{condition} AND l.id > ? ORDER BY l.id LIMIT ?", *arguments, behind, min(most - len(found), ALL))
            found += [_letter(row) for row in rows]
        return found

    def count_letters(self, workflow: str, where: LetterFilter = ANY) -> Sequence[Mapping[str, Any]]:
        """Count letters by run, source, step, code and status."""
        names = ("run_id", "source", "step", "code", "status")
        counted: dict[tuple[Any, ...], int] = {}
        for part in _parts(where, 0):
            condition, arguments = _matching(workflow, part)
            columns = ", ".join(f"l.{n}" for n in names)
            rows = self._query(
                f"SELECT {columns}, count(*), min(l.id) FROM letters l WHERE {condition} GROUP BY {columns} ORDER BY 7", *arguments
            )
            for *key, count, _ in rows:
                counted[tuple(key)] = counted.get(tuple(key), 0) + count
        return [{**dict(zip(names, key, strict=True)), "count": count} for key, count in counted.items()]

    def edit_letter(self, workflow: str, id: str, edited: Mapping[str, Any] | None) -> bool:
        """Put a row beside the original one; False when no such letter is open."""
        text = None if edited is None else _dump(edited)
        return self._write(
            lambda execute: bool(
                execute("UPDATE letters SET edited=? WHERE workflow=? AND id=? AND status='open' RETURNING id", text, workflow, _number(id))
            ),
            fenced=False,
        )

    def purge_letters(self, workflow: str, where: LetterFilter) -> int:
        """Empty letters that no replay has claimed; returns how many."""
        status = tuple(s for s in where.status or ("open", "replayed", "refused") if s in ("open", "replayed", "refused"))
        count, after = 0, ""
        while status:
            page = self.find_letters(workflow, replace(where, status=status), after=after, limit=PAGE)
            if not page:
                break
            emptied = [(_dump(_body(replace(x, row=None, raw=None, input=None, cause=""))), int(x.id)) for x in page]

            def empty(execute: Execute, emptied: Sequence[tuple[str, int]] = emptied) -> int:
                changed = 0
                for body, number in emptied:
                    changed += len(
                        execute(
                            "UPDATE letters SET body=?, edited=NULL, status='purged' "
                            f"WHERE workflow=? AND id=? AND status IN ('open','replayed','refused') AND {_SETTLED} RETURNING id",
                            body, workflow, number,
                        )
                    )  # fmt: skip
                return changed

            count += self._write(empty, fenced=False)
            after = page[-1].id
        return count

    def claim_letters(self, workflow: str, replay: str, ids: Sequence[str]) -> int:
        """Give open letters to a replay; returns how many were open."""

        def claim(execute: Execute) -> int:
            claimed = 0
            for part in _chunks(sorted(_number(i) for i in ids)):
                marks = ",".join("?" * len(part))
                claimed += len(
                    execute(
                        f"UPDATE letters SET status='replaying', replay=?, replay_epoch=0 "
                        f"WHERE workflow=? AND status='open' AND id IN ({marks}) RETURNING id",
                        replay, workflow, *part,
                    )
                )  # fmt: skip
            return claimed

        return self._write(claim)

    def release_letters(self, workflow: str, keep: str = "") -> int:
        """Make letters that were claimed and not replayed open again, but those of the replay `keep`; returns how many."""
        return self._write(
            lambda execute: len(
                execute(
                    "UPDATE letters SET status='open', replay='' WHERE workflow=? AND status='replaying' AND replay<>? RETURNING id",
                    workflow, keep,
                )
            )
        )  # fmt: skip


def keep_letters(
    execute: Execute, workflow: str, run_id: str, epoch: int, letters: Sequence[DeadLetter], replayed: Mapping[str, Any] | None, now: float
) -> None:
    """Write an epoch's letters, and what became of those it replayed, in the transaction that logs it.

    Args:
        execute: runs statements in that transaction.
        workflow: the workflow.
        run_id: the run.
        epoch: the epoch; what an earlier attempt at it wrote is taken back.
        letters: the new letters.
        replayed: `{"replay": id, "upto": letter id}`, or None.
        now: seconds since 1970 UTC.
    """
    execute("DELETE FROM letters WHERE workflow=? AND run_id=? AND epoch=?", workflow, run_id, epoch)
    if replayed is not None:
        mine = (workflow, str(replayed["replay"]))
        execute(
            "UPDATE letters SET status='replaying' WHERE workflow=? AND replay=? AND replay_epoch=? AND status IN ('replayed','refused')",
            *mine, epoch,
        )  # fmt: skip
        execute(
            "UPDATE letters SET status='replayed', replay_epoch=? WHERE workflow=? AND replay=? AND status='replaying' AND id<=?",
            epoch, *mine, int(replayed["upto"] or 0),
        )  # fmt: skip
        for parent in sorted({int(x.parent) for x in letters if x.parent}):
            execute("UPDATE letters SET status='refused' WHERE workflow=? AND replay=? AND id=?", *mine, parent)
    for n, letter in enumerate(letters):
        execute(
            "INSERT INTO letters(workflow, run_id, epoch, n, body, saved_at, step, source, code, status) VALUES(?,?,?,?,?,?,?,?,?,'open')",
            workflow, run_id, epoch, n, _dump(_body(letter)), now, letter.step, letter.source, letter.code,
        )  # fmt: skip


def reopen_letters(execute: Execute, workflow: str, unfinished: Sequence[tuple[str, int, str]]) -> None:
    """The checkpoints are forgotten: open what a replay has claimed, or has in an epoch that is not committed everywhere.

    Args:
        execute: runs statements in the transaction that forgets them.
        workflow: the workflow.
        unfinished: run, epoch and replay of epochs that were logged and are not done.
    """
    for run_id, epoch, replay in unfinished:
        execute("DELETE FROM letters WHERE workflow=? AND run_id=? AND epoch=?", workflow, run_id, epoch)
        execute("UPDATE letters SET status='replaying' WHERE workflow=? AND replay=? AND replay_epoch=?", workflow, replay, epoch)
    execute("UPDATE letters SET status='open', replay='' WHERE workflow=? AND status='replaying'", workflow)


FORMAT = 2
"""Version of what a store keeps. 1: letters are JSON alone. 2: what is asked of letters has columns, letters have a status."""
_LETTERS_2 = (
    "ALTER TABLE letters ADD COLUMN step TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE letters ADD COLUMN source TEXT",
    "ALTER TABLE letters ADD COLUMN code TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE letters ADD COLUMN status TEXT NOT NULL DEFAULT 'open'",
    "ALTER TABLE letters ADD COLUMN replay TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE letters ADD COLUMN replay_epoch BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE letters ADD COLUMN edited TEXT",
    "UPDATE letters SET step={step}, source={source}, code={code}",
    "CREATE INDEX letters_counted ON letters(workflow, run_id, source, step, code, status, epoch)",
    "CREATE INDEX letters_claimed ON letters(workflow, replay, id)",
    "CREATE INDEX letters_paged ON letters(workflow, id)",
)


def migrate(execute: Execute, member: str) -> None:
    """Bring a store to the newest format, in a transaction; nothing happens to one that has it.

    Args:
        execute: runs statements in that transaction.
        member: how the database reads a member of a JSON text, `json_extract(body, '$.{name}')`.

    Raises:
        DataflareError: `state.newer-format`.
    """
    rows = execute("SELECT value FROM entries WHERE scope='state' AND key='format'")
    held = int(bytes(rows[0][0])) if rows else 1
    if held > FORMAT:
        raise NEWER.error(f"the state store has format {held}, this version of DataFlare knows {FORMAT}")
    if held == FORMAT:
        return
    names = {name: member.replace("{name}", name) for name in ("step", "source", "code")}
    for sql in _LETTERS_2:
        execute(sql.format(**names))
    execute(
        "INSERT INTO entries(scope, key, value) VALUES('state','format',?) ON CONFLICT(scope, key) DO UPDATE SET value=excluded.value",
        str(FORMAT).encode(),
    )


def _parts(where: LetterFilter, after: int) -> Iterator[LetterFilter]:
    """Yield filters of which no one names more ids than a statement takes, in the order of ids."""
    if where.ids is None:
        yield where
        return
    for part in _chunks(sorted(n for n in {_number(i) for i in where.ids} if n > after)):
        yield replace(where, ids=tuple(str(n) for n in part))


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[i : i + PAGE] for i in range(0, len(numbers), PAGE))


def _number(id: str) -> int:
    """Return an id as the database has it; what is none is no letter's."""
    return int(id) if id.isascii() and id.isdigit() and len(id) < 19 else 0


def _matching(workflow: str, where: LetterFilter) -> tuple[str, list[Any]]:
    parts, arguments = ["l.workflow=?"], list[Any]([workflow])
    given: Sequence[tuple[str, Any]] = (
        ("l.run_id=?", where.run_id),
        ("l.step=?", where.step),
        ("l.saved_at<?", where.before),
        ("l.replay=?", where.replay),
    )
    for sql, value in given:
        if value is not None:
            parts.append(sql)
            arguments.append(value)
    numbers = None if where.ids is None else [int(i) for i in where.ids]
    among: Sequence[tuple[str, Sequence[Any] | None]] = (("l.status", where.status), ("l.id", numbers))
    for column, values in among:
        if values:
            parts.append(f"{column} IN ({','.join('?' * len(values))})")
            arguments += values
    return f"{' AND '.join([*parts, _COMMITTED])}", arguments


def _letter(row: Sequence[Any]) -> DeadLetter:
    number, run_id, step, source, code, epoch, saved_at, status, replay, edited, body = row
    known = {k: v for k, v in json.loads(body).items() if k in _FIELDS}
    return DeadLetter(
        **{
            **known, "id": str(number), "run_id": run_id, "step": step, "source": source, "code": code, "epoch": epoch,
            "saved_at": saved_at, "status": status, "replay": replay, "edited": None if edited is None else json.loads(edited),
        }
    )  # fmt: skip


_FIELDS = frozenset(f.name for f in fields(DeadLetter))
_BODY = tuple(f.name for f in fields(DeadLetter) if f.name not in _APART)


def _body(letter: DeadLetter) -> dict[str, Any]:
    """Return what a letter holds beside its columns; what is empty is left out."""
    return {name: value for name in _BODY if (value := getattr(letter, name)) or name in ("row", "cause")}


def _dump(value: Any) -> str:
    """Return JSON that any database takes as text: ASCII."""
    return json.dumps(value, separators=(",", ":"))
