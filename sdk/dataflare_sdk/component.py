"""What source, processor and destination classes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from dataflare.contracts import ComponentContext
from dataflare_sdk import fields
from dataflare_sdk.fields import NoConfig

C = TypeVar("C")


class Component(Generic[C]):
    """Made by the factory with its parsed configuration and its context.

    Attributes:
        Config: the `@config` class of its `with:` block.
        features: what it can do, see the contract of its kind; written into the manifest and checked there. One that can do less as
            it is configured says so on itself.
        config: the parsed configuration.
        ctx: the runtime's side: log, metrics, secrets, state, expression engine.
    """

    Config: ClassVar[type[Any]] = NoConfig
    features: frozenset[str] = frozenset()

    def __init__(self, config: C, ctx: ComponentContext) -> None:
        self.config = config
        self.ctx = ctx

    @classmethod
    def configure(cls, raw: Any, path: Sequence[str | int] = ()) -> Any:
        """Parse a `with:` block into `Config`; the runtime calls it before the constructor.

        Raises:
            DataflareError: every problem at once, with paths under `path`.
        """
        return fields.parse(cls.Config, raw, path)

    def close(self) -> None:
        """Release everything it holds; called on every path, at most once."""
