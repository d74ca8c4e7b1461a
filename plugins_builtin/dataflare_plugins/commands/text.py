"""`schema`, `fmt` and `migrate`: the workflow file as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument
from dataflare_sdk.commands import Invocation, verb


@contextmanager
def _parser(call: Invocation) -> Iterator[Any]:
    with call.runtime() as runtime:
        yield runtime.host.build("parser", "workflow", {})


@click.command("schema")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@verb
def schema(call: Invocation, output: Path | None) -> int:
    """Print the JSON Schema of workflow files, with the plugins that are installed."""
    with _parser(call) as parser:
        text = json.dumps(parser.schema(), indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
        call.emit({"dataflare": 1, "command": "schema", "file": str(output)})
        if not call.json:
            call.say(f"wrote {output}; first line of a workflow: # yaml-language-server: $schema={output}")
    elif call.json:
        call.emit({"dataflare": 1, "command": "schema", "schema": json.loads(text)})
    else:
        click.echo(text)
    return 0


@click.command("fmt")
@file_argument
@click.option("--check", is_flag=True, help="Change nothing; exit 3 when something would change.")
@verb
def fmt(call: Invocation, file: Path, check: bool) -> int:
    """Bring a workflow file into canonical order and spacing; it says the same afterwards."""
    before = _read(file)
    with _parser(call) as parser:
        after = _located(parser.format_text, before, file)
    changed = before != after
    if changed and not check:
        file.write_text(after, encoding="utf-8")
    call.emit({"dataflare": 1, "command": "fmt", "file": str(file), "changed": changed})
    if not call.json:
        call.say(f"{file}: {'would change' if check and changed else 'changed' if changed else 'unchanged'}")
    return 3 if check and changed else 0


@click.command("migrate")
@file_argument
@verb
def migrate(call: Invocation, file: Path) -> int:
    """Bring a workflow file to the newest version of the format."""
    before = _read(file)
    with _parser(call) as parser:
        after, changes = _located(parser.migrate_text, before, file)
    if changes:
        file.write_text(after, encoding="utf-8")
    call.emit({"dataflare": 1, "command": "migrate", "file": str(file), "changes": changes})
    if not call.json:
        call.say("\n".join([f"{file}: {c}" for c in changes] or [f"{file}: nothing to change"]))
    return 0


def _read(file: Path) -> str:
    from dataflare_sdk import CODES

    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CODES["world.missing-input"].error(f"the file '{file}' does not exist", file=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CODES["world.io"].error(f"the file '{file}' cannot be read: {error}", file=str(file)) from None


def _located(call: Any, text: str, file: Path) -> Any:
    from dataflare_sdk import DataflareError

    try:
        return call(text)
    except DataflareError as error:
        raise error.located(file=str(file)) from error
