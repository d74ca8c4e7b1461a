"""Secrets: `${secret:PROVIDER/NAME}` in a configuration, resolved at the last moment and remembered for redaction."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataflare.config import Substituted
from dataflare.errors import code
from dataflare.logs import Redactor
from dataflare.workflow import dotted

__all__ = ["Secrets"]

MISSING = code(
    "secret.missing",
    3,
    "A secret is not to be had from its provider.",
    "Set the environment variable, or put the secret in a file of its name in `.dataflare/secrets/`.",
)

_REFERENCE = re.compile(r"\$\{secret:(?:(?P<provider>[^/}]+)/)?(?P<name>[^}]+)\}")


class Secrets:
    """Asks the providers the configuration names.

    Args:
        ask: called with (provider, name); returns the secret or None.
        redactor: told every secret that is handed out.
        providers: names of providers that may be asked; the first is meant when a reference names none.
    """

    def __init__(
        self,
        ask: Callable[[str, str], str | None],
        redactor: Redactor,
        providers: Sequence[str] = ("env", "file"),
    ) -> None:
        self._ask = ask
        self._redactor = redactor
        self._providers = tuple(providers)

    def get(self, ref: str, path: str | None = None) -> str:
        """Return a secret by `PROVIDER/NAME` or `NAME`.

        Raises:
            DataflareError: `secret.missing`.
        """
        provider, slash, name = ref.partition("/")
        if not slash:
            provider, name = next(iter(self._providers), ""), ref
        if provider not in self._providers:
            raise MISSING.error(
                f"no secret provider {provider!r} is configured",
                fix=f"configured are: {', '.join(self._providers)}; see secrets.providers",
                path=path,
            )
        value = self._ask(provider, name)
        if value is None:
            raise MISSING.error(f"the provider {provider!r} has no secret {name!r}", path=path)
        self._redactor.add(value)
        return value

    def resolve(self, value: Any, path: tuple[str | int, ...] = ()) -> Any:
        """Return a configuration with every `${secret:…}` in its strings replaced.

        Raises:
            DataflareError: `secret.missing`, with the path of the string.
        """
        if isinstance(value, str):
            return self._in_text(value, path) if "${secret:" in value else value
        if isinstance(value, Mapping):
            return {k: self.resolve(v, (*path, str(k))) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.resolve(v, (*path, i)) for i, v in enumerate(value)]
        return value

    def _in_text(self, text: str, path: tuple[str | int, ...]) -> str:
        def replaced(found: re.Match[str]) -> str:
            provider = found["provider"]
            return self.get(f"{provider}/{found['name']}" if provider else found["name"], dotted(path))

        made = _REFERENCE.sub(replaced, text)
        return Substituted(made) if _REFERENCE.fullmatch(text) or isinstance(text, Substituted) else made
