"""Errors: every one a person can cause has a code, a place, a cause and a mend.

A code is declared once, with `code()`, beside the code that raises it (shared ones at the end of this
file). The declaration is what the catalogue page in the docs is generated from::

    UNKNOWN_KEY = code("workflow.unknown-key", 3, "A key that the format does not have.", "Remove or rename it.")
    raise UNKNOWN_KEY.error("'sorces' is no key of a workflow", fix="did you mean 'sources'?", path="sorces")

The tree of exceptions::

    DataflareError            anything with a code; `.problems` holds one or more `Problem`
    └── RetriableError        may succeed when tried again: the engine's retry policy applies

Exit codes (a code's `exit`): 1 the data or code failed under policy `fail`, 2 usage, 3 the file is wrong,
4 the world is wrong, 5 finished with dead letters under --strict, 6 a capability or policy refused,
130 interrupted.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from dataflare.records import record

__all__ = [
    "CODES",
    "DataflareError",
    "ErrorCode",
    "Problem",
    "RetriableError",
    "code",
    "error_json",
    "exit_code",
]

# When several problems with different exits are reported at once, the first of these wins.
_PRECEDENCE = (3, 6, 4, 1, 5)


@record
class Problem:
    """One thing that is wrong, where, and how to mend it.

    Attributes:
        code: dotted code, for example `workflow.unknown-key`.
        message: what is wrong and what was expected, one sentence, no trailing full stop.
        file: path of the file as the person gave it, or None.
        line: 1-based line in `file`, or None.
        column: 1-based column in `file`, or None.
        path: where in the workflow, dotted: `sources.a.with.port`.
        fix: what to do about it.
        severity: `error`, or `note` for what is only worth knowing.
    """

    code: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    path: str | None = None
    fix: str | None = None
    severity: str = "error"

    def to_json(self) -> dict[str, Any]:
        """Return the problem as the plain object that `--json` prints."""
        return asdict(self)

    def where(self) -> str | None:
        """Return `file:line:column` as far as known, else the workflow path, else None."""
        if self.file is None:
            return self.path
        place = self.file
        for part in (self.line, self.column):
            if part is None:
                break
            place += f":{part}"
        return place

    def __str__(self) -> str:
        where = self.where()
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} [{self.code}]" + (f"\n  fix: {self.fix}" if self.fix else "")


@record
class ErrorCode:
    """A declared code: the one place that says what it means, how it ends a run, and how to mend it."""

    name: str
    exit: int
    what: str
    mend: str

    def problem(self, message: str, *, fix: str | None = None, **place: Any) -> Problem:
        """Make a `Problem` of this code; `place` takes file, line, column, path, severity."""
        return Problem(code=self.name, message=message, fix=fix or self.mend, **place)

    def error(self, message: str, *, fix: str | None = None, **place: Any) -> DataflareError:
        """Make an exception of this code, ready to be raised."""
        return DataflareError(self.problem(message, fix=fix, **place))

    def retriable(self, message: str, *, fix: str | None = None, **place: Any) -> RetriableError:
        """Make an exception of this code that the retry policy may try again."""
        return RetriableError(self.problem(message, fix=fix, **place))


CODES: dict[str, ErrorCode] = {}
"""Every code declared by the modules imported so far, by name."""


def code(name: str, exit: int, what: str, mend: str) -> ErrorCode:
    """Declare an error code and return it.

    >>> from dataflare.errors import code
    >>> GONE = code("acme.gone", 4, "The order is gone.", "Ask for another one.")
    >>> raise GONE.error("there is no order 7", path="sources.orders")
    Traceback (most recent call last):
    dataflare.errors.DataflareError: sources.orders: there is no order 7 [acme.gone]
      fix: Ask for another one.

    Args:
        name: dotted and unique, `<area>.<what>`.
        exit: the exit code of a command that ends with it.
        what: what it means, one sentence, for the catalogue.
        mend: what usually mends it, one sentence, for the catalogue and as the default fix.

    Raises:
        ValueError: the name was declared before with another meaning.
    """
    made = ErrorCode(name, exit, what, mend)
    if CODES.setdefault(name, made) != made:
        raise ValueError(f"error code {name!r} is declared twice")
    return made


class DataflareError(Exception):
    """Carries one or more problems to whoever reports them."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = list(problems)

    @property
    def code(self) -> str:
        """The code of the first problem."""
        return self.problems[0].code

    @property
    def exit_code(self) -> int:
        """The exit code these problems end a command with."""
        return exit_code(self.problems)

    def located(self, **place: Any) -> DataflareError:
        """Return the same error with unknown parts of its problems' places filled in from `place`."""
        filled = [replace(p, **{k: v for k, v in place.items() if getattr(p, k) is None}) for p in self.problems]
        made = type(self)(*filled)
        made.__cause__ = self.__cause__
        return made


class RetriableError(DataflareError):
    """A failure of the moment (a busy file, a server restarting): trying again may succeed.

    Attributes:
        after: seconds that whoever was asked wants to be left alone for; None: it does not say.
    """

    after: float | None = None


def exit_code(problems: list[Problem]) -> int:
    """Return the exit code for a set of problems: 0 without errors, else by precedence 3, 6, 4, 1, 5."""
    exits = {CODES[p.code].exit if p.code in CODES else 1 for p in problems if p.severity == "error"}
    if not exits:
        return 0
    return next((e for e in _PRECEDENCE if e in exits), min(exits))


def error_json(problem: Problem) -> dict[str, Any]:
    """Return a problem in the short form of a document's `error`."""
    return {"code": problem.code, "message": problem.message, "where": problem.where(), "fix": problem.fix}


# Codes used by more than one room. The others stand beside the code that raises them.
INTERNAL = code("internal.bug", 1, "A fault of DataFlare's own or of a plugin.", "Run again with -v and report the traceback.")
USAGE = code("usage.bad-option", 2, "The command line is wrong.", "See --help of the command.")
CONFIG_INVALID = code("config.invalid", 3, "A value in the configuration has the wrong type or shape.", "Give a value of the type named.")
CONFIG_UNKNOWN_KEY = code(
    "config.unknown-key", 3, "A key that this plugin's configuration does not have.", "Remove it, or use a key it has."
)
CONFIG_MISSING_KEY = code("config.missing-key", 3, "A required key of a plugin's configuration is missing.", "Add the key.")
CAPABILITY_DENIED = code(
    "capability.denied",
    6,
    "A plugin used something its manifest does not name or the operator did not grant.",
    "Grant it, if you trust the plugin with it.",
)
DATA_BAD_ROW = code(
    "data.bad-row",
    1,
    "A row could not be processed and the policy is `fail`.",
    "Mend the row, or set `errors.on_record` to skip or dead_letter.",
)
INPUT_MISSING = code("world.missing-input", 4, "An input does not exist.", "Check the path.")
PERMISSION = code("world.permission", 4, "The system refused access.", "Check the permissions of the path.")
DISK_FULL = code("world.disk-full", 4, "No space is left on the device.", "Free space and run again; the run resumes.")
IO_FAILED = code("world.io", 4, "Reading or writing failed.", "See the cause; run again when it is mended.")
