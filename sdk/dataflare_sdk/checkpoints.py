"""The checkpoint row of databases: the truth about what a destination holds, in the transaction of its rows.

One table, the same in every SQL database. Statements are plain SQL with `?` for parameters; what databases do not agree
on is a `Dialect`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataflare.contracts import Opened, Target
from dataflare.errors import code
from dataflare.records import record
from dataflare_sdk.fence import FENCED, check_fence

DAMAGED = code("state.damaged-checkpoint", 4, "The checkpoint row of a destination is damaged.", "Restore the database from a backup.")
TABLE = "_dataflare_checkpoints"
Execute = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs a statement in the open transaction and returns its rows; for an UPDATE one for each row it changed."""


@record
class Dialect:
    """What a database says otherwise.

    Attributes:
        name: type of ids, which are the key.
        text: type of text of any length.
        returning: what makes an UPDATE return the rows it changed; empty where `Execute` sees to that itself.
    """

    name: str = "VARCHAR"
    text: str = "VARCHAR"
    returning: str = " RETURNING epoch"

    def create(self) -> str:
        """Return the statement that makes the table."""
        return (
            f"CREATE TABLE IF NOT EXISTS {TABLE} (workflow_id {self.name} NOT NULL, node {self.name} NOT NULL, "
            f"run_id {self.name} NOT NULL, epoch BIGINT NOT NULL, fence BIGINT NOT NULL, offsets {self.text} NOT NULL, "
            f"plan_hash {self.name} NOT NULL, schema_version BIGINT NOT NULL, crc BIGINT NOT NULL, PRIMARY KEY (workflow_id, node))"
        )


PLAIN = Dialect()
CREATE = PLAIN.create()


def claim(execute: Execute, target: Target, what: str, dialect: Dialect = PLAIN) -> Opened:
    """Raise the fence of a destination's row to the run's and say what it holds; in the caller's transaction.

    A row of another run begins again at epoch 0.

    Args:
        execute: runs statements in the transaction.
        target: who claims it.
        what: the destination, for messages.
        dialect: the database's; where making a table ends a transaction, it was made before.

    Raises:
        DataflareError: `state.fenced`, `state.damaged-checkpoint`.
    """
    execute(dialect.create(), ())
    rows = execute(
        f"SELECT run_id, epoch, fence, offsets, crc FROM {TABLE} WHERE workflow_id = ? AND node = ?", (target.workflow_id, target.node)
    )
    held = rows[0] if rows else None
    if held is not None:
        check_fence(int(held[2]), target.fence, what)
        if int(held[4]) != _crc(target, str(held[0]), int(held[1]), str(held[3])):
            raise DAMAGED.error(f"the checkpoint row of '{target.node}' in {what} is damaged")
    same = held is not None and held[0] == target.run_id
    epoch, offsets = (int(held[1]), str(held[3])) if same and held is not None else (0, "{}")
    execute(f"DELETE FROM {TABLE} WHERE workflow_id = ? AND node = ?", (target.workflow_id, target.node))
    _insert(execute, target, epoch, offsets)
    return Opened(epoch, target.run_id if epoch else None, json.loads(offsets))


def advance(execute: Execute, target: Target, epoch: int, offsets: Mapping[str, Any], what: str, dialect: Dialect = PLAIN) -> None:
    """Move a destination's row to an epoch, in the transaction of its rows.

    Raises:
        DataflareError: `state.fenced`: a newer run has claimed it, or it does not hold the epoch before.
    """
    text = json.dumps(dict(offsets), sort_keys=True)
    changed = execute(
        f"UPDATE {TABLE} SET epoch = ?, offsets = ?, crc = ? "
        f"WHERE workflow_id = ? AND node = ? AND run_id = ? AND epoch = ? AND fence = ?{dialect.returning}",
        (epoch, text, _crc(target, target.run_id, epoch, text), target.workflow_id, target.node, target.run_id, epoch - 1, target.fence),
    )
    if len(changed) != 1:
        raise FENCED.error(f"{what} does not hold epoch {epoch - 1} of this run any more: another run has claimed it")


def _insert(execute: Execute, target: Target, epoch: int, offsets: str) -> None:
    execute(
        f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            target.workflow_id, target.node, target.run_id, epoch, target.fence, offsets, target.plan_hash, 1,
            _crc(target, target.run_id, epoch, offsets),
        ),
    )  # fmt: skip


def _crc(target: Target, run_id: str, epoch: int, offsets: str) -> int:
    return zlib.crc32("\0".join((target.workflow_id, target.node, run_id, str(epoch), offsets)).encode())
