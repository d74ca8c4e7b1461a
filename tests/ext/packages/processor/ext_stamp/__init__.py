"""A processor that came from outside. It also takes the name of a built-in, which only an operator's word can give it."""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import Batch, Processor, config, option


@config
class StampConfig:
    """Which column, and what the result is called."""

    column: str = option("A column of whole numbers.")
    into: str = option("The new column.", default="digit")


class Stamp(Processor[StampConfig]):
    """Adds the last digit of a number."""

    Config = StampConfig
    features = frozenset({"one_to_one", "rowwise"})

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the input's columns and the digit."""
        return {"": next(iter(inputs.values())).append(pa.field(self.config.into, pa.int64()))}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return the batch with its digits."""
        n = batch.data.column(self.config.column)
        digit = pc.subtract(n, pc.multiply(pc.divide(n, 10), 10)).cast(pa.int64())
        return [("", batch.with_data(batch.data.append_column(self.config.into, digit)))]
