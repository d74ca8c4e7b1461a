"""Write docs/reference/ from what the code declares; `--check` fails when a page is stale."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `make docs`; change the code it comes from. -->\n\n"


def import_all() -> None:
    """Import every module, so that everything declared is known."""
    for name in ("dataflare", "dataflare_sdk", "dataflare_plugins"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def keys(kind: type[Any]) -> str:
    """Return the keys of a configuration class as a table."""
    from dataflare_sdk.fields import documented

    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for field in documented(kind):
        default = "required" if field.required else "" if field.default in (None, (), [], {}) else f"`{_plain(field.default)}`"
        example = f" Example: `{field.example}`." if field.example is not None else ""
        lines.append(f"| `{field.name}` | {_cell(field.type)} | {default} | {_cell(field.doc)}{_cell(example)} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def workflow_page() -> str:
    """Return the reference of the workflow file."""
    from dataflare_plugins.engine.parsing import blocks

    parts = ["# The workflow file\n", "One YAML (1.2) or JSON file. Paths are relative to it.\n"]
    for kind in (
        blocks.WorkflowBlock, blocks.SourceBlock, blocks.ProcessorBlock, blocks.DestinationBlock, blocks.Extract, blocks.Write,
        blocks.Schema, blocks.Errors, blocks.Retry, blocks.Budget, blocks.State, blocks.Checkpoint, blocks.RuntimeBlock,
        blocks.BatchSize, blocks.Observe, blocks.Plugins, blocks.Param,
    ):  # fmt: skip
        name = {"WorkflowBlock": "Top level", "SourceBlock": "sources.ID", "ProcessorBlock": "processors[]", "DestinationBlock": "destinations.ID",
                "Extract": "sources.ID.extract", "Write": "destinations.ID.write", "Schema": "destinations.ID.schema", "Errors": "errors",
                "Retry": "errors.retry", "Budget": "errors.budget", "State": "state", "Checkpoint": "state.checkpoint",
                "RuntimeBlock": "runtime", "BatchSize": "runtime.batch", "Observe": "observe", "Plugins": "plugins", "Param": "params.NAME"}[kind.__name__]  # fmt: skip
        parts.append(f"## `{name}`\n\n{(kind.__doc__ or '').strip()}\n\n{keys(kind)}")
    later = ", ".join(f"`{name}`" for _, name in blocks.NOT_YET)
    parts.append(
        f"## Not yet\n\nThese keys belong to the format and are refused by name until they are built: {later}, `partition`, `limits`.\n"
    )
    return "\n".join(parts)


def plugin_pages() -> dict[str, str]:
    """Return a page per kind of component that a workflow names."""
    from dataflare.lifecycle import Runtime

    pages = {}
    with Runtime() as runtime:
        kinds = (
            ("source", "Sources"),
            ("processor", "Processors"),
            ("destination", "Destinations"),
            ("lookup", "Lookups"),
            ("monitor", "Monitors"),
        )
        for kind, title in kinds:
            parts = [f"# {title}\n"]
            for provided in runtime.host.provided(kind):
                if kind == "monitor" and not provided.features:
                    continue  # a part of the engine, which no workflow names
                factory = runtime.host.factory(kind, provided.name)
                doc = inspect.getdoc(factory.Config) or ""
                features = ", ".join(sorted(factory.features)) or "none"
                parts.append(
                    f"## `{provided.name}`\n\n{provided.summary}. {inspect.getdoc(factory)}\n\n{doc}\n\n{keys(factory.Config)}\nFeatures: {features}.\n"
                )
            pages[f"{kind}s.md"] = "\n".join(parts)
    return pages


def metrics_page() -> str:
    """Return every metric, with its names and labels."""
    from dataflare_sdk.run_metrics import FAMILIES

    parts = [
        "# Metrics\n",
        "What a run tells in numbers: [`observe: {metrics: prometheus}`](monitors.md#prometheus) and [`otel`](monitors.md#otel) give the",
        "same families under the names of their worlds. Names, types and labels are stable. Counts are of committed epochs, so they are",
        "what the destinations hold, they never fall while a run goes on, and those of two ends of an edge are equal; only",
        "`dataflare_attempt_rows` shows what is under way. They begin at zero with every run, or where an unfinished one had come to.\n",
        "| Prometheus | type | labels | OpenTelemetry | |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        parts.append(f"| `{family.prometheus}` | {family.kind} | {labels} | `{family.opentelemetry}` | {_cell(family.doc)} |")
    return "\n".join(parts) + "\n"


def errors_page() -> str:
    """Return the catalogue of error codes."""
    from dataflare.errors import CODES

    lines = ["# Error catalogue\n", "| code | exit | what it means | what to do |", "|---|---:|---|---|"]
    lines += [f"| `{c.name}` | {c.exit} | {_cell(c.what)} | {_cell(c.mend)} |" for c in sorted(CODES.values(), key=lambda c: c.name)]
    return "\n".join(lines) + "\n"


def hooks_page() -> str:
    """Return every hook with its exact arguments."""
    from dataflare import hookspecs

    parts = ["# Hooks\n", "A plugin lists the hooks it implements in its manifest, without the prefix `dataflare_`.\n"]
    for name, hook in vars(hookspecs).items():
        if name.startswith("dataflare_"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            parts.append(f"## `{name}({arguments})`\n\n{inspect.getdoc(hook)}\n")
    return "\n".join(parts)


def sdk_page() -> str:
    """Return the public names of the SDK with their arguments; its examples are run by a test."""
    import dataflare_sdk

    parts = ["# The SDK\n", "What a plugin may import: `from dataflare_sdk import …`. Beside these names stand rooms of their own, such as"]
    parts.append(
        "`dataflare_sdk.commands` for verbs, `dataflare_sdk.testing` for conformance, `dataflare_sdk.checkpoints` for databases.\n"
    )
    for name in dataflare_sdk.__all__:
        thing = getattr(dataflare_sdk, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            parts.append(f"## `{name}`\n\n{_fenced(inspect.getdoc(thing) or '')}\n")
            parts += [f"- `{line}" for line in _methods(thing)]
            parts.append("")
    return "\n".join(parts)


def _fenced(doc: str) -> str:
    """Put the examples of a docstring into blocks of their own, and sections into code."""
    made, inside = [], False
    for line in doc.splitlines():
        example = line.startswith((">>> ", "... ")) or (inside and bool(line.strip()))
        if example != inside:
            made.append("```pycon" if example else "```")
            inside = example
        made.append(line)
    made += ["```"] if inside else []
    return "\n".join(made)


def _methods(thing: Any) -> list[str]:
    """Return the methods a class declares, each with its arguments and its first line."""
    lines = []
    for name, method in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(method) and not name.startswith("_"):
            arguments = ", ".join(p for p in inspect.signature(method).parameters if p != "self")
            lines.append(f"{name}({arguments})`: {(inspect.getdoc(method) or '').partition(chr(10))[0]}")
    return lines


def verbs_page() -> str:
    """Return the help of every verb."""
    from dataflare.cli import root

    parts = ["# Command line\n", "Every verb takes `--json`, `-q`, `-v` and `--no-color`.\n"]
    context = click.Context(root, info_name="dataflare", max_content_width=100, terminal_width=100)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name, max_content_width=100, terminal_width=100)
        parts.append(f"## `dataflare {name}`\n\n```\n{command.get_help(inner)}\n```\n")
        if isinstance(command, click.Group):
            for sub in command.list_commands(inner):
                below = command.get_command(inner, sub)
                assert below is not None
                deep = click.Context(below, parent=inner, info_name=sub, max_content_width=100, terminal_width=100)
                parts.append(f"### `dataflare {name} {sub}`\n\n```\n{below.get_help(deep)}\n```\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Return every generated page by file name."""
    import_all()
    made = {
        "workflow.md": workflow_page(),
        **plugin_pages(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
        "hooks.md": hooks_page(),
        "cli.md": verbs_page(),
        "sdk.md": sdk_page(),
    }
    return {name: NOTE + "\n".join(line.rstrip() for line in text.splitlines()) + "\n" for name, text in made.items()}


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = []
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                ROOT.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
