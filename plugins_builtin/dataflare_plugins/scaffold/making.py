"""Making a project from the template, without asking anything and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_sdk import CODES, code

EXISTS = code("scaffold.exists", 4, "The folder of the new plugin exists already.", "Give another --name, or move the folder away.")
KINDS = ("source", "destination", "processor")


def template() -> Path:
    """Return the template's folder: in the wheel beside this file, in a checkout at its root."""
    beside = Path(__file__).parent / "template"
    return beside if beside.is_dir() else Path(__file__).parents[3] / "plugin_template"


def languages() -> tuple[str, ...]:
    """Return the languages that the template has a folder for."""
    inner = ("parts", *(p.name for p in template().glob("*-minimal")))
    return tuple(sorted(p.name for p in template().iterdir() if p.is_dir() and p.name not in inner))


def make(folder: Path, answers: Mapping[str, Any]) -> list[Path]:
    """Write a project.

    Args:
        folder: the project's own folder; it must not exist.
        answers: the template's questions, all of them.

    Returns:
        The files, relative to the folder.

    Raises:
        DataflareError: `scaffold.exists`; `plugin.missing-extra`.
    """
    if folder.exists():
        raise EXISTS.error(f"'{folder.name}' exists", file=str(folder))
    try:
        from copier import run_copy
    except ModuleNotFoundError as error:
        fix = 'pip install "dataflare[template]"'
        raise CODES["plugin.missing-extra"].error(f"`plugin new` needs the package {error.name!r}", fix=fix) from error
    run_copy(str(template()), folder, data=dict(answers), defaults=True, quiet=True)
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
