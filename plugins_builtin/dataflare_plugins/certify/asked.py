"""What an author says in `certify.yaml`: a configuration for each component, and what the suites need beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflare_sdk import code, config, option
from dataflare_sdk.fields import parse

UNREADABLE = code(
    "certify.bad-file", 3, "A `certify.yaml` is missing or cannot be read.", "Write one beside plugin.yaml, or give --config."
)


@config
class Back:
    """A source that reads what a destination wrote, so that it is looked at from outside."""

    use: str = option("The source.", example="jsonl")
    with_: dict[str, Any] = option("Its keys.", default_factory=dict)


@config
class Receive:
    """A server on this machine for a destination that sends over HTTP; what it is sent is appended to a file."""

    port: str = option("The key of `with` that is given the server's port.", example="port")
    into: str = option("The file, in the folder of the test.", example="received.jsonl")


@config
class Asked:
    """One component."""

    with_: dict[str, Any] = option("Its keys, as a workflow gives them.", default_factory=dict)
    extract: dict[str, Any] = option("Of a source: the extraction to test.", default_factory=dict)
    inputs: dict[str, dict[str, list[Any]]] = option("Of a processor: input to its columns.", default_factory=dict)
    read: Back | None = option("Of a destination: how its rows are read back.", default=None)
    receive: Receive | None = option("Of a destination that sends over HTTP: what it sends to.", default=None)


@config
class Certificate:
    """The file."""

    components: dict[str, Asked] = option("KIND/NAME to what is tested with it.", default_factory=dict)
    files: dict[str, str] = option("Files that every test finds in its folder: name to text.", default_factory=dict)


def read(path: Path) -> Certificate:
    """Read a `certify.yaml`.

    Raises:
        DataflareError: `certify.bad-file`, `config.*`.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UNREADABLE.error(f"'{path}' cannot be read: {str(error).splitlines()[0]}", file=str(path)) from error
    return parse(Certificate, raw)


def put_files(asked: Certificate, folder: Path) -> None:
    """Write the files of the certificate into a folder, unless they are there."""
    for name, text in asked.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UNREADABLE.error(f"the file '{name}' lies outside the folder of its test")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
