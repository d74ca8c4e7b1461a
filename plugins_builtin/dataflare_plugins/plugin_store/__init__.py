"""The plugin store, consent and signatures; the verbs of `dataflare plugin`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_sdk import hookimpl

if TYPE_CHECKING:
    from dataflare_sdk import Loader
    from dataflare_sdk.plugins import Manifest, Policy


@hookimpl
def dataflare_load_plugin(manifest: Manifest, grants: Mapping[str, Any], level: str) -> Loader | None:  # noqa: ARG001
    """Load a plugin of the store into this process."""
    if level != "inprocess" or not manifest.site:
        return None
    from dataflare_plugins.plugin_store.stored import Stored

    return Stored(manifest)


@hookimpl
def dataflare_consent(manifest: Manifest, missing: Mapping[str, Any], policy: Policy) -> Mapping[str, Any] | None:
    """Ask the person at the terminal."""
    from dataflare_plugins.plugin_store.consent import ask

    return ask(manifest, missing, policy)


@hookimpl
def dataflare_verify_artifact(path: Path, manifest: Manifest) -> bool | None:  # noqa: ARG001
    """Check the signature beside an artifact against the keys of the policy."""
    from dataflare_plugins.plugin_store.signatures import check
    from dataflare_sdk.plugins import Policy, config_dir

    status = check(path, Policy.load(Path.cwd(), config_dir()).keys).status
    return {"signed": True, "tampered": False}.get(status)
