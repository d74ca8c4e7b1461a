"""Secrets from environment variables and from files, one secret a file."""

from __future__ import annotations

from pathlib import Path

from dataflare_plugins.secrets.providers import PROVIDERS
from dataflare_sdk import hookimpl


@hookimpl
def dataflare_resolve_secret(provider: str, name: str, base_dir: Path) -> str | None:
    """Answer for `${secret:env/NAME}` and `${secret:file/NAME}`."""
    made = PROVIDERS.get(provider)
    return made(base_dir).resolve(name) if made else None
