"""Malicious Arrow data from a worker at the level `process`: what writes rows there was replaced by the plugin."""

from __future__ import annotations

from tests.redteam import control
from tests.redteam.bench import Bench, Done, Seen, judged
from tests.redteam.families import case, parts

LIMITS = "limits: {memory: 768MiB, deadline: 5s}\n"
CODE = '''
import struct
import sys

SCHEMA = pa.schema([("s", pa.string())])


def offsets(data):
    """Lead an offset in the middle far away."""
    at = data.index(struct.pack("<4i", 0, 3, 6, 9))
    data[at + 4 : at + 8] = struct.pack("<i", 1 << 30)


def lengths(data):
    """Say that there are a billion rows."""
    at = data.index(struct.pack("<qq", 3, 0))
    data[at : at + 8] = struct.pack("<q", 1 << 30)


def buffers(data):
    """Say that a buffer lies far behind the data."""
    at = data.index(struct.pack("<q", 9), data.index(struct.pack("<qq", 3, 0)))
    data[at - 8 : at] = struct.pack("<q", 1 << 40)


def head(data):
    """Say that the head is longer than all of it."""
    data[4:8] = struct.pack("<i", 0x7FFFFFF0)


def text(data):
    """Give text that is no UTF-8."""
    at = data.rindex(b"onetwosix")
    data[at : at + 3] = bytes([0xFF, 0xC0, 0x80])


CHANGES = {"offsets": offsets, "lengths": lengths, "buffers": buffers, "head": head, "text": text}


def spoilt(lie, write):
    """Return what writes rows, and a lie with them."""
    from dataflare_plugins.isolation_process.wire import batches

    def written(batch, area):
        if lie == "truncated":
            start, size = write(batch, area)
            return start, size - 8
        if lie == "beyond":
            start, size = write(batch, area)
            return start, size + (1 << 30)
        if lie == "expanded":  # a compressed buffer says first how long it will be
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
                stream.write_batch(batch)
            data = bytearray(sink.getvalue().to_pybytes()[batch.schema.serialize().size :])
            at = data.rindex(struct.pack("<q", 4 * (batch.num_rows + 1)))
            data[at : at + 8] = struct.pack("<q", 1 << 38)
        else:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            data = bytearray(sink.getvalue().to_pybytes()[batch.schema.serialize().size : -8])
            CHANGES[lie](data)
        start, view = area.reserve(len(data))
        memoryview(view).cast("B")[: len(data)] = data
        return start, len(data)

    return written


class Attacker(Processor[Order]):
    """Attacks."""

    Config = Order
    features = frozenset({"rowwise"})

    def output_schemas(self, inputs):
        return {"": pa.schema([("s", pa.decimal128(10, 2))]) if self.config.how == "decimal" else SCHEMA}

    def process(self, batch, input):
        lie, rows = self.config.how, ["one", "two", "six"]
        print("begun")
        made = pa.record_batch({"s": rows if lie != "expanded" else ["xyz"] * 10_000})
        if lie == "schema":
            made = pa.record_batch({"s": pa.array([1, 2, 3], pa.int64())})
        elif lie == "decimal":
            made = pa.record_batch({"s": ["1e-999999999"] * 3})
        elif lie == "columns":
            made = pa.record_batch({"s": rows, "more": rows})
        elif lie == "bomb":
            made = pa.record_batch({"s": pa.NullArray.from_buffers(pa.null(), (1 << 31) - 1, [None])})
        elif lie == "rows":
            return [("", batch.with_data(made)) for _ in range(1)] * 2_000_000
        elif lie == "stream":
            return (("", batch.with_data(made)) for _ in iter(int, 1))
        elif lie != "good":
            packing = sys.modules["dataflare_plugins.isolation_process.wire.packing"]
            packing.write = spoilt(lie, packing.write)
        return [("", batch.with_data(made))]
'''


def attacked(bench: Bench, lie: str) -> Done:
    """Run a workflow whose step answers with a lie."""
    parts.step(bench, CODE, "rowwise", LIMITS)
    (bench.work / "policy.yaml").write_text("trust: [redteam]\nmin_level: process\n")
    bench.workflow("attacker", {"how": lie})
    return bench.run_workflow("-v")


def judge(bench: Bench, done: Done, *codes: str) -> Seen:
    """Tell what came of an answer; whatever is none must end the worker, and never the host."""
    if "begun" not in done.err:
        return Seen("broken", f"the attack did not begin: {done.out or done.err}"[:300])
    return judged(bench, done, codes, memory=900 << 20)


def _lie(name: str, what: str, lie: str) -> None:
    def attack(bench: Bench) -> Seen:
        return judge(bench, attacked(bench, lie), "plugin.crashed", "plugin.quarantined")

    attack.__name__, attack.__doc__ = f"arrow_{name}", what
    case("process", "refused", lambda: control.run_with("read-arrow-without-a-look", {"lie": lie}, ("pyarrow",), 64 << 30))(attack)


_lie("corrupt_offsets", "Lead an offset of text a gigabyte away: Arrow's own quick check passes it.", "offsets")
_lie("length_that_lies", "Say that three rows are a billion.", "lengths")
_lie("buffer_that_lies_beyond", "Say that the text of three rows lies behind the end of the data.", "buffers")
_lie("head_that_lies", "Say that the description of the rows is longer than all there is.", "head")
_lie("text_that_is_none", "Give text that is no UTF-8.", "text")
_lie("truncated", "Leave out the end of the rows.", "truncated")
_lie("beyond_the_memory", "Say that rows lie beyond the memory that is shared.", "beyond")
_lie("expanded", "Give compressed rows that say they are 256 GiB.", "expanded")
_lie("another_column", "Give a column that was not announced, where columns are taken by their place.", "columns")
_lie("exponent_without_end", "Give text where decimals were announced, with an exponent at which Arrow ends the process.", "decimal")
_lie("rows_of_nothing", "Give two billion NULLs in a few bytes.", "bomb")
_lie("rows_without_end", "Give rows and never stop.", "stream")
_lie("more_rows_than_the_bound", "Give six million rows for three.", "rows")


@case("process", "denied", lambda: control.run_with("read-arrow-without-a-look", {"lie": "schema"}, ("pyarrow",), 64 << 30))
def arrow_another_type(bench: Bench) -> Seen:
    """Give numbers where text was announced: they arrive as the text that was announced, or not at all."""
    seen = judge(bench, attacked(bench, "schema"))
    return seen if seen.outcome != "denied" or bench.rows == [{"s": "1"}, {"s": "2"}, {"s": "3"}] else Seen("breached", f"{bench.rows}")
