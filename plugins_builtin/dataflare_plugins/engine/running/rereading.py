"""Rows of dead letters once more from where they were read: for what a letter does not hold because it is masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_sdk import Batch, DeadLetter, End, NodeSpec, Partition, Pause, Plan, code
from dataflare_sdk.plans import extract_of_spec
from dataflare_sdk.state_sql import ALL
from dataflare_sdk.values import plain

NOT_READ_AGAIN = code(
    "dlq.not-read-again",
    4,
    "The row of a dead letter cannot be read again from its source.",
    "Give the source back as it was, or edit the letter.",
)


def reread(env: Any, letters: Sequence[DeadLetter]) -> dict[str, Mapping[str, Any]]:
    """Return letter id to its source row, for the letters that hide a column of it.

    The source is read as the run read it that made the letter, files as they were pinned then: a file that changed
    since is refused by the source itself. The rows are found by their number in their file; what the letter does hold
    has to be the same.

    Args:
        env: the environment of the replay's tasks.
        letters: any letters; of those that hide nothing, and of edited ones, nothing is returned.

    Raises:
        DataflareError: `dlq.not-read-again`, and what the source says.
    """
    wanted: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        if letter.masked and letter.edited is None:
            if letter.source is None or not {"file", "row"} <= set(letter.position or ()):
                raise NOT_READ_AGAIN.error(f"dead letter {letter.id} does not say at which row of which file it stood")
            wanted.setdefault((_read_by(env, letter), letter.source), []).append(letter)
    found: dict[str, Mapping[str, Any]] = {}
    plans = {r["run_id"]: r["plan"] for r in env.store.runs(env.plan.workflow, ALL) if "plan" in r} if wanted else {}
    for (run, source), those in wanted.items():
        if run not in plans:
            raise NOT_READ_AGAIN.error(f"the run that made dead letter {those[0].id} is not known any more")
        found.update(_read(env, Plan.from_json(plans[run]).node(source), those))
    for letter in (x for those in wanted.values() for x in those):
        if letter.id not in found:
            raise NOT_READ_AGAIN.error(f"'{letter.source}' has no row any more where dead letter {letter.id} stood")
        for name, value in (letter.row or {}).items():
            if name not in letter.masked and found[letter.id].get(name) != value:
                raise NOT_READ_AGAIN.error(f"where dead letter {letter.id} stood '{letter.source}' has another row now: '{name}' differs")
    return found


def _read_by(env: Any, letter: DeadLetter) -> str:
    """Return the run that read a letter's row: that of the first letter, if replays refused it since."""
    if not letter.first:
        return letter.run_id
    from dataflare_sdk import LetterFilter

    first = env.store.find_letters(env.plan.workflow, LetterFilter(ids=(letter.first,)))
    return str(first[0].run_id) if first else letter.run_id


def _read(env: Any, node: NodeSpec, letters: Sequence[DeadLetter]) -> dict[str, Mapping[str, Any]]:
    """Read a source from its beginning until all rows are found."""
    places = {(_place(x.position or {}), int((x.position or {})["row"])): x.id for x in letters}
    found: dict[str, Mapping[str, Any]] = {}
    source = env.build(node)
    try:
        for part in node.partitions:
            reader = source.open(Partition(part["id"], part["stream"], part["spec"]), extract_of_spec(node), None, None)
            try:
                while len(found) < len(letters):
                    message = reader.read(env.shares.batch_rows, env.shares.batch_bytes, float("inf"))
                    if isinstance(message, (End, Pause)):
                        break
                    if isinstance(message, Batch) and message.origin is not None:
                        found.update(_taken(message, places))
            finally:
                reader.close()
    finally:
        source.close()
    return found


def _taken(batch: Batch, places: Mapping[tuple[Any, int], str]) -> dict[str, Mapping[str, Any]]:
    assert batch.origin is not None
    base, first, rows = _place(batch.origin.base), batch.origin.first, batch.data.num_rows
    made: dict[str, Mapping[str, Any]] = {}
    for (place, row), letter in places.items():
        if place == base and first <= row < first + rows:
            made[letter] = {k: plain(v) for k, v in batch.data.slice(row - first, 1).to_pylist()[0].items()}
    return made


def _place(position: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((k, v) for k, v in position.items() if k != "row"))
