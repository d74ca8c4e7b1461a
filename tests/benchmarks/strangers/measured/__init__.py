"""Processors whose cost in a worker is measured."""

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import NoConfig, Processor


class Passes(Processor[NoConfig]):
    """Hands on what it gets."""

    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        return {"": next(iter(inputs.values()))}

    def process(self, batch, input):
        return [("", batch)]


class Copies(Passes):
    """Gives all columns anew."""

    def process(self, batch, input):
        half = batch.data.num_rows // 2
        columns = [pa.concat_arrays([c.slice(0, half), c.slice(half)]) for c in batch.data.columns]
        return [("", batch.with_data(pa.RecordBatch.from_arrays(columns, schema=batch.data.schema)))]


class Works(Passes):
    """A real transform: text in upper case, matched and replaced, and some arithmetic."""

    def process(self, batch, input):
        data = batch.data
        text = pc.replace_substring_regex(pc.utf8_upper(data.column("name")), "([0-9])9", "x\\1")
        data = data.set_column(2, "name", text)
        data = data.set_column(1, "amount", pc.round(pc.multiply(pc.sqrt(data.column("amount")), 1.19), 2))
        return [("", batch.with_data(data))]
