"""What every verb of the command line has in common: its options, its output, its errors and its exit code.

::

    @click.command("validate")
    @click.argument("file")
    @verb
    def validate(call: Invocation, file: str) -> int:
        with call.runtime(Path(file).parent) as runtime:
            ...
            call.emit({"dataflare": 1, "command": "validate", ...})
        return 0
"""

from __future__ import annotations

import functools
import json as jsonlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import click

from dataflare.errors import INTERNAL, DataflareError, Problem, code, error_json, exit_code
from dataflare.lifecycle import Runtime
from dataflare.logs import Redactor
from dataflare.text import shown

__all__ = ["Invocation", "document", "verb"]

INTERRUPTED = code("run.interrupted", 130, "The command was interrupted.", "Run again; an unfinished run resumes.")


class Invocation:
    """One call of a verb.

    Args:
        command: the verb with its subcommand, as `--json` documents name it: `state show`.
        json: one JSON object on stdout, on every exit.
        verbosity: -1 quiet, 0 normal, 1 and more verbose.
        color: colours are allowed; they are used on a terminal only.

    Attributes:
        sink: where the log of its runtimes goes.
    """

    def __init__(self, command: str, *, json: bool = False, verbosity: int = 0, color: bool = True) -> None:
        self.command = command
        self.json = json
        self.verbosity = verbosity
        self.color = color
        self.emitted = False
        self.sink: TextIO = sys.stderr
        self._redactor = Redactor()

    def runtime(self, base_dir: str | Path = ".", flags: Mapping[str, Any] | None = None, profile: str | None = None) -> Runtime:
        """Return a runtime that logs to stderr, at the level `-q` and `-v` ask for.

        Raises:
            DataflareError: `config.*`, `policy.invalid`.
        """
        level = {-1: "error", 0: None}.get(self.verbosity, "debug")
        made = Runtime(
            base_dir,
            {**({"log.level": level} if level else {}), **(flags or {})},
            profile,
            log_sink=self.sink,
        )
        self._redactor = made.redactor
        made.plugins.interactive = not self.json and sys.stdin.isatty() and sys.stderr.isatty()
        return made

    def emit(self, document: Mapping[str, Any], *, err: bool = False) -> None:
        """Print the JSON document of the verb, if `--json` was given; once per call.

        Args:
            document: JSON-able.
            err: to stderr, because rows have stdout.
        """
        if self.json and not self.emitted:
            self.emitted = True
            click.echo(jsonlib.dumps(self._redactor.value(document), default=str), err=err)

    def say(self, text: str, *, err: bool = False) -> None:
        """Tell a person something: on stdout, or on stderr when stdout carries JSON or `err`; not with `-q`."""
        if self.verbosity >= 0:
            click.echo(shown(self._redactor.text(text)), err=err or self.json, color=None if self.color else False)

    def report(self, problems: Iterable[Problem]) -> None:
        """Print problems to stderr, each with place, code and fix; notes not with `-q`."""
        for problem in problems:
            if problem.severity == "error" or self.verbosity >= 0:
                click.echo(shown(self._redactor.text(str(problem))), err=True)

    def fail(self, error: BaseException, document: Mapping[str, Any] | None = None) -> int:
        """Report an exception that ended the verb, and return the exit code.

        A `DataflareError` is reported by its problems; anything else is `internal.bug`. The traceback is
        printed with `-v` only.

        Args:
            error: the exception.
            document: what `--json` prints instead of the plain `error` and `problems`.
        """
        known = error if isinstance(error, DataflareError) else INTERNAL.error(f"{type(error).__name__}: {error}")
        if self.verbosity > 0:
            import traceback

            click.echo(shown(self._redactor.text("".join(traceback.format_exception(error)))), err=True)
        if self.json:
            self.emit(_document(self.command, known) if document is None else document)
        else:
            self.report(known.problems)
        return exit_code(known.problems) or 1


def verb(function: Callable[..., int | None]) -> Callable[..., Any]:
    """Give a click command `--json`, `-q`, `-v`, `--no-color`, error reports and its exit code.

    The function is called with an `Invocation` first, and returns the exit code, None for 0.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("-v", "--verbose", count=True, help="Say more; tracebacks too.")
    @click.option("--no-color", is_flag=True, help="Use no colours.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: int, no_color: bool, **options: Any) -> None:
        context = click.get_current_context()
        command = context.command_path.partition(" ")[2] or context.info_name or ""
        call = Invocation(command, json=as_json, verbosity=-1 if quiet else verbose, color=not no_color)
        try:
            status = function(call, *args, **options) or 0
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            status = call.fail(INTERRUPTED.error("interrupted").with_traceback(error.__traceback__))
        except Exception as error:
            status = call.fail(error)
        context.exit(status)

    return wrapped


def document(command: str, error: DataflareError) -> str:
    """Return the JSON text of a verb that failed before it had a document of its own."""
    return jsonlib.dumps(_document(command, error))


def _document(command: str, error: DataflareError) -> dict[str, Any]:
    return {
        "dataflare": 1,
        "command": command,
        "error": error_json(error.problems[0]),
        "problems": [p.to_json() for p in error.problems],
    }
