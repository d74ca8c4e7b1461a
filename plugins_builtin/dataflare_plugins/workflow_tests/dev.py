"""`dataflare dev`: check, test and preview a workflow whenever one of its files changes. `test --watch` does the second of the three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.workflow_tests.document import found
from dataflare_plugins.workflow_tests.watching import made_of, seen, wait_for_change
from dataflare_sdk.commands import Invocation, RunOptions, Runtime, verb


@click.command("dev")
@click.argument("file", default="dataflare.yaml", metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Give a parameter.")
@click.option("--profile", metavar="NAME", help="Lay a profile of the file over it.")
@click.option("-n", "--rows", default=5, show_default=True, type=click.IntRange(min=0), help="Rows of the preview; 0: none.")
@click.option("--node", metavar="NODE", help="The node to preview; by default what each destination would get.")
@verb
def dev(call: Invocation, file: Path, params: tuple[str, ...], profile: str | None, rows: int, node: str | None) -> int:
    """Check, test and preview FILE now and at every change of it, of its tests and of its local inputs. Ctrl-C ends it.

    Nothing is written. The preview reads the sources as they are.
    """
    if call.json:
        raise click.UsageError("dev is for people; use validate, test and preview with --json")
    given = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="-p")
        given[name] = value
    turn = _Turn(call, file, given, profile, rows, node)
    return _again(call, turn, turn.files)


def test_again(call: Invocation, paths: Sequence[Path], chosen: str | None) -> int:
    """Run tests now and at every change."""
    from dataflare_plugins.workflow_tests.command import run_all

    def files() -> list[Path]:
        made = []
        for test in [t for path in paths for t in found(path)]:
            workflow = test.with_name(test.name.replace(".test.", ".", 1))
            made += made_of(workflow, None, [test])
            made += [p for p in test.parent.glob("*.y*ml") if p.is_file()]
        return made

    return _again(call, lambda _: run_all(call, tuple(paths), chosen), files)


def _again(call: Invocation, turn: Callable[[dict[Path, tuple[int, int]]], Any], files: Callable[[], Sequence[Path]]) -> int:
    """Take a turn, and one more whenever a file has changed; Ctrl-C ends it.

    Args:
        call: the command.
        turn: is given how the files were when it began, and adds those it finds out about, before it reads them.
        files: gives the files.
    """
    try:
        while True:
            before = dict(seen(files()))
            try:
                turn(before)
            except Exception as error:  # what is wrong now may be mended by the next change
                call.fail(error)
            call.say("waiting for a change; Ctrl-C ends it")
            changed = wait_for_change(files, before)
            call.say("\n" + "─" * 60 + "\n" + ", ".join(p.name for p in changed[:5]) + " changed")
    except KeyboardInterrupt:
        return 0


class _Turn:
    """One look at a workflow."""

    def __init__(self, call: Invocation, file: Path, params: dict[str, str], profile: str | None, rows: int, node: str | None) -> None:
        self._call, self._file, self._params, self._profile = call, file, params, profile
        self._rows, self._node = rows, node
        self._document: Any = None

    def files(self) -> list[Path]:
        """Return what the workflow is made of, as far as the last look knows."""
        return made_of(self._file, self._document, found(self._file))

    def __call__(self, before: dict[Path, tuple[int, int]]) -> None:
        from dataflare_plugins.workflow_tests.command import run_all

        call = self._call
        flags = {"runtime.lane": "streaming", **({} if call.verbosity > 0 else {"log.level": "off"})}
        with call.runtime(self._file.parent, flags, self._profile) as runtime:
            workflow = runtime.parse(self._file, self._params, self._profile)
            self._document = {k: workflow.document.get(k) for k in ("sources", "processors")}
            before.update({p: s for p, s in seen(self.files()).items() if p not in before})
            checked = runtime.validate(workflow)
            call.report(checked.problems)
            if any(p.severity == "error" for p in checked.problems):
                return
            call.say(f"{self._file}: valid")
            if found(self._file):
                run_all(call, (self._file,), None)
            if self._rows:
                runtime.authorize("preview", workflow.name)
                for name in self._wanted(workflow):
                    self._preview(runtime, workflow, name)

    def _wanted(self, workflow: Any) -> list[str]:
        if self._node is not None:
            return [self._node]
        return list(dict.fromkeys(i for n in workflow.of("destination") for i in n.inputs))

    def _preview(self, runtime: Runtime, workflow: Any, name: str) -> None:
        from dataflare_plugins.workflow_tests.comparing import aligned
        from dataflare_sdk import Problem

        report = runtime.run(workflow, RunOptions(limit=(name, self._rows), collect=(name,)))
        if report.status == "failed":
            self._call.report(Problem(**p) for p in report.document["problems"])
            return
        rows = report.tables[name].slice(0, self._rows)
        columns = [c.to_pylist() for c in rows.columns]
        self._call.say(f"\n{name}:\n{aligned(rows.column_names, list(zip(*columns, strict=True)))}")
