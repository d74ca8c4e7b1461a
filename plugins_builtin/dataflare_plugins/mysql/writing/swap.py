"""Overwriting: rows gather in a table beside, which takes the place of the old one in one atomic RENAME.

A RENAME ends a transaction, so it cannot be part of one. The last epoch therefore writes down, in its own transaction,
that a swap is due; whoever opens the target next finishes it. The tables beside are named after the run, so that a
stopped process that wakes up finds nothing to rename.
"""

from __future__ import annotations

import hashlib

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.connection import Session, literal, quote
from dataflare_sdk import Target
from dataflare_sdk.failpoints import declare, failpoint

TABLE = "_dataflare_swaps"
_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (workflow_id VARCHAR(191) NOT NULL, node VARCHAR(191) NOT NULL, mark VARCHAR(40) NOT NULL, "
    "table_schema VARCHAR(64) NOT NULL, table_name VARCHAR(64) NOT NULL, due BOOLEAN NOT NULL, "
    "PRIMARY KEY (workflow_id, node, mark)) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
)
declare("mysql.swap.due", "mysql.swap.done")


class Swap:
    """The swap of one overwrite.

    Args:
        session: a connection.
        target: the run that overwrites.
        schema: database of the table.
        name: the table.
    """

    def __init__(self, session: Session, target: Target, schema: str, name: str) -> None:
        self._session = session
        self._who = f"workflow_id = {literal(target.workflow_id)} AND node = {literal(target.node)}"
        self._ids = f"{literal(target.workflow_id)}, {literal(target.node)}"
        self._schema, self._name = schema, name
        self.mark = hashlib.blake2b(
            "\0".join((target.workflow_id, target.node, target.run_id, schema, name)).encode(), digest_size=8
        ).hexdigest()

    @property
    def beside(self) -> str:
        """The name of the table that gathers the rows."""
        return f"_dataflare_new_{self.mark}"

    def open(self) -> None:
        """Finish what another process left: a swap that is due is done, tables of other runs are dropped."""
        self._session.execute(_CREATE)
        for mark, schema, name, due in self._session.query(f"SELECT mark, table_schema, table_name, due FROM {TABLE} WHERE {self._who}"):
            if due:
                self._rename(str(mark), str(schema), str(name))
            elif mark != self.mark:
                self._session.execute(f"DROP TABLE IF EXISTS {quote(str(schema))}.{quote(f'_dataflare_new_{mark}')}")
                self._forget(str(mark))

    def begin(self, *, anew: bool) -> None:
        """Write down that a table beside is being filled; `anew`: drop what an earlier attempt left of it."""
        self._session.execute(
            f"INSERT IGNORE INTO {TABLE} VALUES ({self._ids}, {literal(self.mark)}, {literal(self._schema)}, {literal(self._name)}, FALSE)"
        )
        if anew:
            self._session.execute(f"DROP TABLE IF EXISTS {quote(self._schema)}.{quote(self.beside)}")

    def due(self) -> None:
        """In the transaction of the last rows: from its commit on the swap is to be done, by whomever."""
        self._session.execute(f"UPDATE {TABLE} SET due = TRUE WHERE {self._who} AND mark = {literal(self.mark)}")

    def finish(self) -> None:
        """Put the new table in the place of the old one."""
        failpoint("mysql.swap.due")
        self._rename(self.mark, self._schema, self._name)
        failpoint("mysql.swap.done")

    def _rename(self, mark: str, schema: str, name: str) -> None:
        new, old, place = (f"{quote(schema)}.{quote(n)}" for n in (f"_dataflare_new_{mark}", f"_dataflare_old_{mark}", name))
        if catalog.find(self._session, schema, f"_dataflare_new_{mark}") is not None:
            self._session.execute(f"DROP TABLE IF EXISTS {old}")
            there = catalog.find(self._session, schema, name) is not None
            self._session.execute(f"RENAME TABLE {f'{place} TO {old}, ' if there else ''}{new} TO {place}")
        self._session.execute(f"DROP TABLE IF EXISTS {old}")
        self._forget(mark)

    def _forget(self, mark: str) -> None:
        self._session.execute(f"DELETE FROM {TABLE} WHERE {self._who} AND mark = {literal(mark)}")
