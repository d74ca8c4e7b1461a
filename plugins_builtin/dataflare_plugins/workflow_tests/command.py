"""`dataflare test`: run the tests of workflows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflare_sdk import DataflareError
from dataflare_sdk.commands import Invocation, error_json, verb

if TYPE_CHECKING:
    from dataflare_plugins.workflow_tests.running import Result


MARKS = {"passed": "ok  ", "failed": "FAIL", "broken": "ERR "}


@click.command("test")
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@click.option("-k", "chosen", metavar="TEXT", help="Only tests with TEXT in their name.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write the results to a file in JUnit's XML too.")
@click.option("--update", is_flag=True, help="Write the expected rows of failed tests anew; asks before.")
@click.option("--yes", is_flag=True, help="With --update: do not ask.")
@click.option("--watch", is_flag=True, help="Run the tests again whenever a file changes.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of test files, for editors.")
@verb
def test(
    call: Invocation, paths: tuple[Path, ...], chosen: str | None, junit: Path | None, update: bool, yes: bool, watch: bool, schema: bool
) -> int:
    """Run tests: PATH is a test file, a workflow with `NAME.test.yaml` beside it, or a folder; by default this one."""
    if schema:
        return _schema(call)
    if watch and (call.json or update):
        raise click.UsageError("--watch takes neither --json nor --update")
    paths = paths or (Path(),)
    if watch:
        from dataflare_plugins.workflow_tests.dev import test_again

        return test_again(call, paths, chosen)
    results = run_all(call, paths, chosen)
    if junit is not None:
        from dataflare_plugins.workflow_tests.junit import write_junit

        write_junit(junit, results)
    failed = sum(r.status == "failed" for r in results)
    if update and failed:
        from dataflare_plugins.workflow_tests.updating import update_files

        update_files(call, results, yes)
    passed, broken = (sum(r.status == s for r in results) for s in ("passed", "broken"))
    document = {"dataflare": 1, "command": "test", "passed": passed, "failed": failed, "broken": broken}
    document["tests"] = [r.to_json() for r in results]
    errors = [r.error for r in results if r.error is not None]
    if errors:
        problems = [p for e in errors for p in e.problems]
        told = {"error": error_json(problems[0]), "problems": [p.to_json() for p in problems]}
        return call.fail(DataflareError(*problems), {**document, **told})
    call.emit(document)
    return 1 if failed else 0


def run_all(call: Invocation, paths: tuple[Path, ...], chosen: str | None) -> list[Result]:
    """Run the tests of paths and tell about each.

    Raises:
        DataflareError: `test.none-found`, or a test file cannot be read.
    """
    from dataflare_plugins.workflow_tests.codes import NO_TESTS
    from dataflare_plugins.workflow_tests.document import found
    from dataflare_plugins.workflow_tests.running import run_tests
    from dataflare_sdk import CODES

    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise CODES["world.missing-input"].error(f"'{path}' does not exist", file=str(path))
        there = found(path)
        if not there:
            raise NO_TESTS.error(f"there is no test at '{path}'")
        files.update(dict.fromkeys(there))
    results = []
    flags = {} if call.verbosity > 0 else {"log.level": "off"}
    for result in run_tests(lambda folder: call.runtime(folder, flags), list(files), chosen):
        results.append(result)
        tell(call, result)
    if chosen is not None and not results:
        raise NO_TESTS.error(f"no test has '{chosen}' in its name", fix="Leave `-k` out to see their names.")
    if not call.json:
        counts = {status: sum(r.status == status for r in results) for status in ("passed", "failed", "broken")}
        call.say(", ".join(f"{n} {status}" for status, n in counts.items() if n or status != "broken"))
    return results


def tell(call: Invocation, result: Any) -> None:
    """Tell a person how a test went."""
    if call.json:
        return
    call.say(f"{MARKS[result.status]}  {result.suite.file}: {result.name}  ({result.seconds:.2f} s)")
    if result.diff:
        for line in result.diff.splitlines():
            call.say(f"      {line}")


def _schema(call: Invocation) -> int:
    import json

    from dataflare_plugins.workflow_tests.document import schema

    made = schema()
    call.emit({"dataflare": 1, "command": "test", "schema": made})
    if not call.json:
        click.echo(json.dumps(made, indent=2))
    return 0
