"""`countdown`: the numbers from `start` down to 1."""

from collections.abc import Iterator
from typing import Any, ClassVar

from dataflare_sdk import RowSource, config, option


@config
class CountdownConfig:
    """Where it starts."""

    start: int = option("The first number.", minimum=0)


class Countdown(RowSource[CountdownConfig]):
    """Counts down; the text is as long as the number is large."""

    Config = CountdownConfig
    columns: ClassVar = {"n": "BIGINT", "bar": "VARCHAR"}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give the rows."""
        for n in range(self.config.start, 0, -1):
            yield {"n": n, "bar": "#" * (n % 10)}
