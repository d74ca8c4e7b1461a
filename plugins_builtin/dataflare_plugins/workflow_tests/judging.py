"""Holds what a test gave against what it was to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.workflow_tests import tables
from dataflare_plugins.workflow_tests.blocks import Expected, Letter
from dataflare_plugins.workflow_tests.codes import NOT_A_TEST, UNKNOWN_COLUMN
from dataflare_plugins.workflow_tests.comparing import Difference, compare
from dataflare_plugins.workflow_tests.document import Place, Suite
from dataflare_plugins.workflow_tests.play import Outcome
from dataflare_sdk import DataflareError
from dataflare_sdk.fields import nearest, parse
from dataflare_sdk.values import plain

TOTALS = ("read", "written", "filtered", "skipped", "dead_lettered", "late")


def judge(suite: Suite, index: int, outcome: Outcome) -> list[str]:
    """Return what is not as the test says, each as a text for people; nothing when it passed.

    Raises:
        DataflareError: the test itself is wrong (`test.*`).
    """
    return _Judge(suite, index, outcome).all()


def expected_of(suite: Suite, place: Place, raw: Any) -> Expected:
    """Return the expectation of one node."""
    if not isinstance(raw, Mapping):
        return Expected(rows=raw)
    try:
        made = parse(Expected, raw)
    except DataflareError as error:
        raise DataflareError(*(suite.error(NOT_A_TEST, p.message, (*place, p.path or "")).problems[0] for p in error.problems)) from None
    if sum(v is not None for v in (made.rows, made.file, made.contains)) > 1 or (
        made.rows is None and made.file is None and made.contains is None and made.count is None
    ):
        raise suite.error(NOT_A_TEST, "expected a list of rows, or one of `rows`, `file`, `contains` and `count`", place)
    return made


class _Judge:
    def __init__(self, suite: Suite, index: int, outcome: Outcome) -> None:
        self._suite, self._outcome = suite, outcome
        self._case, self._place = suite.cases[index], ("tests", index)

    def all(self) -> list[str]:
        found = self._ended()
        if found:
            return found
        for name, raw in self._case.expect.items():
            found += self._rows(name, raw)
        found += self._counts()
        if self._case.dead_letters is not None:
            found += _letters(self._case.dead_letters, self._outcome.letters)
        late = self._outcome.document["rows"]["late"]
        if self._case.late is not None and late != self._case.late:
            found.append(f"late: expected {self._case.late}, found {late}")
        return found

    def _ended(self) -> list[str]:
        status, error = self._outcome.document["status"], self._outcome.document["error"] or {}
        if self._case.error is None:
            told = f"{error.get('message')} [{error.get('code')}]" if error else status
            where = f"\n  at {error['where']}" if error.get("where") else ""
            return [] if status == "done" else [f"the run {status}: {told}{where}"]
        if status == "done":
            return [f"error: expected {self._case.error}, but the run is done"]
        codes = {error.get("code"), *(p["code"] for p in self._outcome.document["problems"] if p["severity"] == "error")}
        if self._case.error in codes:
            return []
        return [f"error: expected {self._case.error}, found {error.get('code')}: {error.get('message')}"]

    def _rows(self, name: str, raw: Any) -> list[str]:
        place: Place = (*self._place, "expect", name)
        wanted = expected_of(self._suite, place, raw)
        found = self._outcome.tables.get(name)
        if found is None:
            found = pa.table({})
            if wanted.count in (None, 0) and not wanted.rows and not wanted.contains and wanted.file is None:
                return []
            return [f"{name}: nothing was written"]
        texts = []
        if wanted.count is not None and found.num_rows != wanted.count:
            texts.append(f"{name}: expected {wanted.count} rows, found {found.num_rows}")
        difference = self._difference(wanted, raw, place, found)
        if difference:
            texts.append(f"{name}:\n{_indented(difference.text())}")
        return texts

    def _difference(self, wanted: Expected, raw: Any, place: Place, found: pa.Table) -> Difference | None:
        types = tables.types_of(found.schema)
        if wanted.file is not None:
            rows = tables.from_file(self._suite, wanted.file, (*place, "file"), {})
            known = {c: types[c] for c in self._there(rows.column_names, types, (*place, "file"))}
            rows = tables.from_file(self._suite, wanted.file, (*place, "file"), known)
        else:
            key = "contains" if wanted.contains is not None else "rows"
            listed = wanted.contains if wanted.contains is not None else wanted.rows
            if listed is None:
                return None
            inner: Place = (*place, key) if isinstance(raw, Mapping) else place
            for i, row in enumerate(listed):
                if isinstance(row, Mapping):
                    self._there([str(c) for c in row], types, (*inner, i))
            rows = tables.from_rows(self._suite, listed, inner, types, whole=not listed)
        rows = rows.cast(pa.schema([found.schema.field(c) for c in rows.column_names])) if rows.num_columns else found.schema.empty_table()
        return compare(rows, found, ordered=wanted.ordered, contains=wanted.contains is not None)

    def _there(self, columns: Sequence[str], types: Mapping[str, str], place: Place) -> Sequence[str]:
        for name in columns:
            if name not in types:
                near = nearest(name, list(types))
                fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(types)}"
                raise self._suite.error(UNKNOWN_COLUMN, f"there is no column '{name}'", (*place, name), fix)
        return columns

    def _counts(self) -> list[str]:
        document, found = self._outcome.document, []
        nodes = {n["id"]: n for n in document["nodes"]}
        for name, wanted in self._case.counts.items():
            place: Place = (*self._place, "counts", name)
            if isinstance(wanted, Mapping):
                if name not in nodes:
                    raise self._suite.error(NOT_A_TEST, f"there is no node '{name}'", place)
                for counter, number in wanted.items():
                    if counter not in nodes[name] or counter in ("id", "kind", "plugin", "seconds"):
                        raise self._suite.error(NOT_A_TEST, f"there is no count '{counter}'", (*place, counter))
                    if nodes[name][counter] != number:
                        found.append(f"counts: {name}.{counter}: expected {number}, found {nodes[name][counter]}")
            elif name not in TOTALS:
                raise self._suite.error(NOT_A_TEST, f"'{name}' is none of {', '.join(TOTALS)}, and no node with `{{rows_in: 3}}`", place)
            elif document["rows"][name] != wanted:
                found.append(f"counts: {name}: expected {wanted}, found {document['rows'][name]}")
        return found


def _letters(wanted: Sequence[Letter], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare dead letters in what is said of them, each with another."""
    fits = [[j for j, letter in enumerate(found) if _fits(one, letter)] for one in wanted]
    match: dict[int, int] = {}

    def placed(i: int, tried: set[int]) -> bool:
        for j in fits[i]:
            if j not in tried:
                tried.add(j)
                if j not in match or placed(match[j], tried):
                    match[j] = i
                    return True
        return False

    missing = [one for i, one in enumerate(wanted) if not placed(i, set())]
    texts = [f"  - {_said({k: getattr(one, k) for k in ('step', 'code', 'source', 'row') if getattr(one, k)})}" for one in missing]
    texts += [f"  + {_said(letter)}" for j, letter in enumerate(found) if j not in match]
    return ["dead_letters:\n" + "\n".join(texts)] if texts else []


def _fits(wanted: Letter, letter: Mapping[str, Any]) -> bool:
    for key in ("step", "code", "source"):
        said = getattr(wanted, key)
        if said is not None and said != letter[key]:
            return False
    row = letter["row"] or {}
    return all(k in row and (row[k] == v or str(plain(row[k])) == str(v)) for k, v in wanted.row.items())


def _said(letter: Mapping[str, Any]) -> str:
    row = letter.get("row") or {}
    inner = ", ".join(f"{k}: {plain(v)}" for k, v in row.items())
    parts = [f"{k}: {letter[k]}" for k in ("step", "code", "source", "cause") if letter.get(k)]
    return ", ".join([*parts, f"row: {{{inner}}}"] if row else parts)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
