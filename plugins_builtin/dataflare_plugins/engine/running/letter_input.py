"""A source over dead letters that a replay has claimed: replayable, its offsets are letters' ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_plugins.engine.running.rereading import reread
from dataflare_sdk import (
    Batch,
    DeadLetter,
    End,
    ExtractSpec,
    LetterFilter,
    Message,
    NodeSpec,
    Offset,
    Origin,
    Partition,
)
from dataflare_sdk.dead_letters import HIDDEN, changes_of, row_of, to_arrow, whole_row
from dataflare_sdk.plans import output_schemas
from dataflare_sdk.records import record

PAGE = 5_000
"""Letters read at a time."""


@record
class LetterOrigin(Origin):
    """The letters behind a batch: `first` counts from 0 within `letters`, whatever slice of them `data` is.

    Attributes:
        letters: the letters of the batch as it was read.
        step: the replay begins at a step, not at the source.
    """

    letters: Sequence[DeadLetter] = ()
    step: bool = False

    def letter(self, row: int) -> DeadLetter:
        """Return the letter behind a row of the batch."""
        return self.letters[self.first + self.index(row)]

    def again(self, made: DeadLetter, row: int) -> DeadLetter:
        """Return a letter that was made of a replayed row as one more attempt at the letter it came from.

        Args:
            made: the new letter, its `row` what the replay handed on.
            row: index in the batch.
        """
        old = self.letter(row)
        made = replace(
            made,
            first=old.first or old.id, parent=old.id, attempt=old.attempt + 1, position=old.position, source=old.source,
            stream=old.stream, change=old.change, raw=None,
        )  # fmt: skip
        if self.step and old.input is not None:
            seen = (made.row, made.types, made.masked) if made.input is None else (made.input, made.input_types, made.input_masked)
            made = replace(made, input=seen[0], input_types=seen[1], input_masked=seen[2])
            return replace(made, row=old.row, types=old.types, masked=old.masked)
        whole = row_of(old, self.step)
        if whole is None:
            return made
        # All its columns, not those alone that this replay needed.
        return replace(made, row={k: HIDDEN if k in old.masked else v for k, v in whole.items()}, types=old.types, masked=old.masked)


class LetterInput:
    """Reads the letters of one replay as if it were the source, or the step before the one where the replay begins."""

    features = frozenset({"full", "replayable"})

    def __init__(self, env: Any, node: NodeSpec) -> None:
        self._env = env
        self._node = node

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> LetterReader:  # noqa: ARG002
        """Read the letters behind `offset`, to `until` if given."""
        return LetterReader(self._env, self._node, str((offset or {}).get("letter", "")), None if until is None else int(until["letter"]))

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return None: it ends by itself."""
        return None

    def idle(self) -> None:
        """Nothing is to be kept alive."""

    def ack(self, partition: Partition, offset: Offset) -> None:
        """The letters were marked when the epoch was logged."""

    def close(self) -> None:
        """Nothing is held open."""


class LetterReader:
    """Hands out the letters' rows in the order of their ids."""

    def __init__(self, env: Any, node: NodeSpec, after: str, upto: int | None) -> None:
        self._env = env
        self._node = node
        ((self._output, self._schema),) = output_schemas(node).items()
        self._replay = str(node.config["replay"])
        self._step = bool(node.config["step"])
        self._reread = bool(node.config["reread"])
        self._after = after
        self._upto = upto

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message:  # noqa: ARG002
        """Return the next letters' rows, then `End`."""
        mine = LetterFilter(replay=self._replay)
        found = self._env.store.find_letters(self._env.plan.workflow, mine, after=self._after, limit=min(max_rows, PAGE))
        letters = [x for x in found if self._upto is None or int(x.id) <= self._upto]
        if not letters:
            return End()
        self._after = letters[-1].id
        offset = {"v": 1, "letter": self._after}
        rows = self._rows(letters)
        data = to_arrow(rows, self._schema, [x.id for x in letters])
        origin = LetterOrigin(self._node.id, data, {}, 0, letters=tuple(letters), step=self._step)
        changes = changes_of(letters) if self._node.config["changes"] else None
        return Batch(self._output or self._node.id, data, offset, (), origin, changes)

    def _rows(self, letters: Sequence[DeadLetter]) -> list[Mapping[str, Any]]:
        again = reread(self._env, letters) if self._reread else {}
        return [again.get(x.id) or whole_row(x, self._schema.names, self._step) for x in letters]

    def close(self) -> None:
        """Nothing is held open."""
