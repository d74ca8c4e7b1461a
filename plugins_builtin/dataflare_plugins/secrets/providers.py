"""The two providers. Neither logs anything, and no message of theirs contains a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from dataflare_sdk import SecretProvider, code

UNREADABLE = code("secret.unreadable", 4, "A secret's file cannot be read.", "Check that it is a text file you may read.")
BAD_NAME = code(
    "secret.bad-name",
    3,
    "A secret's name is no plain file name.",
    "Use letters, digits, dot, dash and underscore.",
)


class EnvironmentSecrets:
    """Environment variables."""

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir

    def resolve(self, name: str) -> str | None:
        """Return the variable `name`, or None when it is not set."""
        return os.environ.get(name)


class FileSecrets:
    """Files of a folder: `$DATAFLARE_SECRETS_DIR`, else `.dataflare/secrets/` beside the workflow."""

    def __init__(self, base_dir: Path) -> None:
        self._folder = Path(os.environ.get("DATAFLARE_SECRETS_DIR") or base_dir / ".dataflare" / "secrets")

    def resolve(self, name: str) -> str | None:
        """Return the text of the file `name` without its last line break, or None when there is none.

        Raises:
            DataflareError: `secret.bad-name`: the name would leave the folder; `secret.unreadable`.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise BAD_NAME.error(f"{name!r} is no name of a secret in a file")
        path = self._folder / name
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            # Its message would quote the content; so would the exception it chains.
            raise UNREADABLE.error(f"the secret {name!r} is no UTF-8 text", file=str(path)) from None
        except OSError as error:
            raise UNREADABLE.error(f"the secret {name!r} cannot be read: {error.strerror}", file=str(path)) from None
        return text.removesuffix("\n").removesuffix("\r")


PROVIDERS: dict[str, Callable[[Path], SecretProvider]] = {"env": EnvironmentSecrets, "file": FileSecrets}
