"""The root of the command line: verbs are components of kind `command`, found in the manifest index.

`--help` and `plugin list` read that index and import no plugin. What every verb has in common (`--json`, `-q`,
`-v`, `--no-color`, errors, exit codes) is `verb` in `dataflare.commands`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from dataflare import index

__all__ = ["main", "root"]


_OF_PLUGIN = "plugin-"
"""Begins the name of a component that is a subcommand of `plugin`."""


def _provided_commands() -> dict[str, str]:
    """Return name and summary of every command that some plugin provides; what is built in is described by itself."""
    from dataflare.policy import ours

    manifests = sorted(index.current()["manifests"], key=lambda m: ours(m["origin"]))
    provided = [c for m in manifests for c in m["provides"] if c[0] == "command"]
    return {name: summary for _, name, _, summary, _, _ in provided}


def _commands() -> dict[str, str]:
    """Return name and summary of every verb, the kernel's own included."""
    found = {name: summary for name, summary in _provided_commands().items() if not name.startswith(_OF_PLUGIN)}
    return {**found, "plugin": "List plugins and manage them"}


def _subcommands() -> dict[str, str]:
    """Return name and summary of every subcommand of `plugin`, the kernel's own included."""
    found = {n.removeprefix(_OF_PLUGIN): s for n, s in _provided_commands().items() if n.startswith(_OF_PLUGIN)}
    return {**found, "list": "List the plugins that are installed"}


class _Root(click.Group):
    """A group whose commands are loaded when they are called, and listed without."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name == "plugin":
            return plugin
        return _provided(cmd_name) if cmd_name in _commands() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_commands().items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _commands() and not args[0].startswith("-"):
            raise _no_command(args[0], _commands(), ctx)
        return super().resolve_command(ctx, args)


class _Plugin(click.Group):
    """`plugin list` is the kernel's own; every other subcommand `x` is a component of the name `plugin-x`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_subcommands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name == "list":
            return list_plugins
        return _provided(_OF_PLUGIN + cmd_name) if cmd_name in _subcommands() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_subcommands().items()))


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda c, _p, on: _version(c, on),
    help="Show the version.",
)
def root() -> None:
    """Move rows from sources through processors to destinations, as one workflow file says."""


@root.group(cls=_Plugin)
def plugin() -> None:
    """List plugins and manage them."""


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", count=True, help="Accepted on every verb.")
@click.option("--no-color", is_flag=True, help="Use no colours.")
def list_plugins(as_json: bool, quiet: bool, verbose: int, no_color: bool) -> None:  # noqa: ARG001
    """List the plugins that are installed, without running any code of theirs."""
    known = index.current()
    listed = _listed(known["manifests"])
    if as_json:
        import json

        document: dict[str, Any] = {"plugins": listed}
        if known["broken"]:
            document["broken"] = [{"entry": e, "origin": o, "reason": r} for e, o, r in known["broken"]]
        # Not through click, which would look for colours in all of it.
        sys.stdout.write(json.dumps(document, separators=(",", ":")) + "\n")
        return
    lines = []
    # What somebody put in comes first: a page of built-ins would hide it.
    both = sorted(zip(known["manifests"], listed, strict=True), key=lambda pair: pair[1]["install"] == "built-in")
    for m, told in () if quiet else both:
        stranger = "" if told["install"] == "built-in" else f"  {told['isolation']}, {told['standing']}, {told['install']}"
        lines.append(f"{m['name']} {m['version']}  ({m['origin']}){stranger}\n")
        lines += [f"    {kind}/{name}" + (f"  {summary}\n" if summary else "\n") for kind, name, _, summary, _, _ in m["provides"]]
    sys.stdout.write("".join(lines))
    for entry, origin, reason in known["broken"]:
        click.echo(f"broken: {entry} ({origin}): {reason}", err=True)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the exit code is as docs and `errors` say."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        code = root.main(given, prog_name="dataflare", standalone_mode=False) or 0
        sys.stdout.flush()
    except click.ClickException as error:
        code = _usage(error, as_json="--json" in given)
    except click.Abort:
        code = 130
    except BrokenPipeError:
        code = _reader_left()
    except Exception as error:
        from dataflare.commands import Invocation

        code = Invocation(" ".join(given[:1]), json="--json" in given, verbosity=given.count("-v")).fail(error)
    sys.exit(code if isinstance(code, int) else 0)


def _provided(name: str) -> click.Command | None:
    """Load the command of a plugin."""
    from dataflare.lifecycle import Runtime

    if not any(c[:2] == ["command", name] for m in index.current()["manifests"] for c in m["provides"]):
        return None
    found = Runtime().host.factory("command", name)
    assert isinstance(found, click.Command)
    return found


def _usage(error: click.ClickException, *, as_json: bool) -> int:
    """Report a command line that is wrong; exit code 2."""
    if not as_json:
        error.show()
        return 2
    from dataflare.commands import document
    from dataflare.errors import USAGE

    context = getattr(error, "ctx", None)
    command = context.command_path.partition(" ")[2] if context else ""
    click.echo(document(command, USAGE.error(error.format_message(), fix=f"see: dataflare {command} --help")))
    return 2


def _no_command(name: str, known: dict[str, str], ctx: click.Context) -> click.UsageError:
    import difflib

    near = difflib.get_close_matches(name, list(known), 1)
    return click.UsageError(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)


def _reader_left() -> int:
    """End quietly when whoever read our output has gone (`dataflare … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _version(ctx: click.Context, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(version("dataflare"))
        ctx.exit()


def _listed(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what `--json` says of each plugin; the policy is read only where there is a stranger to judge."""
    from types import SimpleNamespace

    from dataflare.policy import READY, Policy, built_in

    known: list[Any] = [SimpleNamespace(**m) for m in manifests]
    ours = list(map(built_in, known))
    strangers = not all(ours)
    policy = Policy.load(".", index.user_folder("XDG_CONFIG_HOME", ".config")) if strangers else Policy()
    listed = []
    for m, own in zip(known, ours, strict=True):
        standing = policy.standing(m)
        listed.append({
            "name": m.name,
            "version": m.version,
            "provides": [{"kind": c[0], "name": c[1]} for c in m.provides],
            "isolation": policy.level(m),
            "origin": m.origin,
            "capabilities": m.capabilities,
            "granted": standing in READY,
            "standing": standing,
            "install": "built-in" if own else "store" if m.site else "trusted install",
        })  # fmt: skip
    return listed
