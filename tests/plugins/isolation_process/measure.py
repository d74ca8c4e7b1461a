"""Measures the level `process`: rows a second through a worker, and how long a worker takes to start.

python tests/plugins/isolation_process/measure.py
"""

import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.manifest import read
from dataflare_plugins.isolation_process.loader import ProcessLoader
from dataflare_sdk import Batch
from dataflare_sdk.testing import FakeContext

ROWS = 65_536
CODE = '''
import pyarrow as pa
import pyarrow.compute as pc
from dataflare_sdk import NoConfig, Processor

class Passes(Processor[NoConfig]):
    """Hands on what it gets."""
    features = frozenset({"rowwise", "one_to_one"})
    def output_schemas(self, inputs):
        return dict(inputs)
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
        text = pc.replace_substring_regex(pc.utf8_upper(data.column("name")), "([0-9])9", "x\\\\1")
        data = data.set_column(2, "name", text)
        data = data.set_column(1, "amount", pc.round(pc.multiply(pc.sqrt(data.column("amount")), 1.19), 2))
        return [("", batch.with_data(data))]
'''
MANIFEST = """manifest: 1
name: measured
version: 1.0.0
api: ">=1,<2"
publisher: measured.example
isolation: process
provides:
  - {kind: processor, name: passes, entry: "measured:Passes"}
  - {kind: processor, name: copies, entry: "measured:Copies"}
  - {kind: processor, name: works, entry: "measured:Works"}
"""


def batch() -> Batch:
    """Return 64K rows of whole numbers, floats, text, days and truth values."""
    numbers = range(ROWS)
    data = {
        "id": pa.array(numbers, pa.int64()),
        "amount": pa.array([i * 0.5 for i in numbers]),
        "name": pa.array([f"name {i % 1000}" for i in numbers]),
        "day": pa.array([i % 20_000 for i in numbers], pa.int32()),
        "flag": pa.array([i % 3 == 0 for i in numbers]),
    }
    return Batch("x", pa.record_batch(data))


def seconds(act: Callable[[], Any], times: int) -> float:
    """Return the shortest of how long something takes: the machine may have other things to do."""
    act()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "store" / "measured"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(CODE)
        (package / "plugin.yaml").write_text(MANIFEST)
        sys.path.append(str(package.parent))
        direct = importlib.import_module("measured")
        sys.path.remove(str(package.parent))
        loader = ProcessLoader(read(package / "plugin.yaml", package="measured"), {})
        given = batch()
        print(f"a batch: {ROWS} rows, {given.data.nbytes / 1e6:.1f} MB")
        for name in ("Passes", "Copies", "Works"):
            factory = loader.factory(f"measured:{name}")
            made = factory(factory.configure({}), FakeContext(Path(folder)))
            isolated = seconds(lambda made=made: list(made.process(given, "x")), 200)
            made.close()
            own = getattr(direct, name)(None, FakeContext(Path(folder)))
            inside = seconds(lambda own=own: list(own.process(given, "x")), 200)
            print(f"{name}: {ROWS / isolated / 1e6:.1f} M rows/s isolated ({isolated * 1e3:.2f} ms), {inside * 1e3:.2f} ms in-process")
        keeper = loader._keeper

        def start() -> None:
            keeper.start({}, FakeContext(Path(folder))).close()

        print(f"warm start, all layers and canaries, until the first call can be made: {seconds(start, 40) * 1e3:.1f} ms")
        loader.close()
        shutil.rmtree(package)


if __name__ == "__main__":
    main()
