"""`dataflare plugin new`: a folder with a plugin in it that works, and that its tests prove."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from dataflare_sdk.commands import Invocation, verb

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@click.command("new")
@click.option("--kind", help="source, destination or processor.")
@click.option("--language", help="What it is written in: python, wasm-c or wasm-zig.")
@click.option("--name", help="What workflows call it; also the folder's name.")
@click.option("--publisher", help="Who publishes it, like acme.example.")
@click.option("--minimal", is_flag=True, help="Three files, without tests and example.")
@click.option("-y", "--yes", "--defaults", "yes", is_flag=True, help="Ask nothing: defaults for what is not given.")
@verb
def new(
    call: Invocation, kind: str | None, language: str | None, name: str | None, publisher: str | None, minimal: bool, yes: bool
) -> int:  # fmt: skip
    """Write a plugin into a new folder: code, manifest, tests, an example. Nothing is downloaded."""
    from dataflare_plugins.scaffold import making
    from dataflare_plugins.scaffold.declared import refresh

    ask = not (yes or call.json) and sys.stdin.isatty()
    kind = _one_of("kind", kind, making.KINDS, "processor", ask)
    language = _one_of("language", language, making.languages(), "python", ask)
    if minimal and not (making.template() / f"{language}-minimal").is_dir():
        raise click.BadParameter(f"there is no minimal form in {language}", param_hint="--minimal")
    name = _text("name", name, None, ask)
    publisher = _text("publisher", publisher, f"{name}.example", ask)
    if not NAME.fullmatch(name) or name.startswith("dataflare-"):
        raise click.BadParameter(f"{name!r} is no name like acme or acme-orders, without `dataflare-`", param_hint="--name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", publisher) or publisher == "dataflare":
        raise click.BadParameter(f"{publisher!r} is no name like acme.example of somebody else's", param_hint="--publisher")
    folder = Path(name)
    answers = {"kind": kind, "language": language, "name": name, "publisher": publisher, "minimal": minimal}
    files = making.make(folder, answers)
    if language == "python" and not minimal:
        files = sorted({*files, *(p.relative_to(folder) for p in refresh(folder))})
    call.emit({"dataflare": 1, "command": "plugin new", "folder": name, **answers, "files": [p.as_posix() for p in files]})
    if not call.json:
        how = "" if minimal else "--editable "
        call.say(f"wrote {len(files)} files into {name}\nnow: cd {name} && pip install --no-build-isolation {how}.")
        if not minimal:
            call.say("then: pytest, and dataflare run in example")
        if language.startswith("wasm-") and find_spec("ziglang") is None:
            call.say('its compiler is not installed here: pip install "dataflare[wasm]"')
    return 0


def _one_of(option: str, given: str | None, choices: tuple[str, ...], default: str, ask: bool) -> str:
    if given is None and ask:
        given = click.prompt(option.capitalize(), type=click.Choice(choices), default=default)
    chosen = default if given is None else given
    if chosen not in choices:
        raise click.BadParameter(f"{chosen!r} is not one of {', '.join(choices)}", param_hint=f"--{option}")
    return chosen


def _text(option: str, given: str | None, default: str | None, ask: bool) -> str:
    if given is None and ask:
        given = click.prompt(option.capitalize(), default=default)
    if given is None and default is None:
        raise click.UsageError(f"--{option} is needed where nothing can be asked")
    return str(default if given is None else given)
