"""Who may do what: the providers the configuration names are asked, any deny wins, no answer means no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataflare.errors import code

if TYPE_CHECKING:
    from dataflare.config import Configuration
    from dataflare.plugins import PluginManager

__all__ = ["authorize"]

DENIED = code(
    "security.denied",
    6,
    "A security provider refused the action.",
    "Ask whoever runs the provider for the right to.",
)


def authorize(plugins: PluginManager, config: Configuration, action: str, resource: str) -> None:
    """Check an action of the person at the command line.

    Args:
        plugins: where the providers are.
        config: names them: `security.authenticate` and `security.authorize`, plugin names.
        action: `run`, `state.reset` …
        resource: the workflow's name.

    Raises:
        DataflareError: `security.denied`; also when providers are configured and none answers.
    """
    providers = config.get("security.authorize")
    if not providers:
        return
    principal = _principal(plugins, config.get("security.authenticate"))
    try:
        answers = plugins.hook("authorize", only=providers, principal=principal, action=action, resource=resource)
    except Exception as error:
        raise DENIED.error(f"a security provider failed: {error!r}") from error
    for answer in answers:
        if not answer.allow:
            raise DENIED.error(f"{answer.provider or 'a provider'} refused {action} on {resource!r}: {answer.reason}")
    if not answers:
        raise DENIED.error(f"no security provider allowed {action} on {resource!r}")


def _principal(plugins: PluginManager, providers: list[str]) -> Mapping[str, Any]:
    import getpass

    credentials = {"user": getpass.getuser()}
    if not providers:
        return {"name": credentials["user"], "roles": []}
    try:
        principal: Mapping[str, Any] | None = plugins.hook("authenticate", only=providers, credentials=credentials)
    except Exception as error:
        raise DENIED.error(f"a security provider failed: {error!r}") from error
    if principal is None:
        raise DENIED.error(f"no security provider knows {credentials['user']!r}")
    return principal
