"""A processor that is a guest of the columnar lane, with the same methods as one that is not."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from dataflare_plugins.isolation_wasm.arrow_in import Sender
from dataflare_plugins.isolation_wasm.arrow_out import Receiver, read_schema
from dataflare_plugins.isolation_wasm.describe import Output
from dataflare_plugins.isolation_wasm.faults import BAD_DESCRIPTION, BAD_REPLY, Trapped
from dataflare_plugins.isolation_wasm.guest import Guest
from dataflare_plugins.isolation_wasm.program import Instances, Program
from dataflare_sdk import Batch, DataflareError, Processor
from dataflare_sdk.row_stage import MISSING_COLUMN
from dataflare_sdk.schema import cast_batch, normalise

_PAIR = struct.Struct("<II")
"""{array*, schema*}, one for each output."""
FLOOR, TIMES = 256 << 20, 64
"""What rows taken again and again may come to: so many bytes, or so many times what went in."""


class WasmProcessor(Processor[Any]):
    """Hands the guest the columns it reads and puts the others back beside what it gives."""

    program: ClassVar[Program]
    instances: ClassVar[type[Any]] = Instances

    def __init__(self, config: Any, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._instances: Any = self.instances(self.program, config, ctx)
        self._input = ""
        self._schema = pa.schema([])
        self._sender = Sender(self._schema)
        self._reads: list[int] = []
        self._given: list[pa.Schema] = []
        self._described: tuple[Output, ...] | None = None
        self._receivers: list[Receiver] = []
        self._bound: list[pa.Schema] = []
        self._makings: list[_Making] = []
        self._suspect = 0

    @classmethod
    def configure(cls, raw: Any, path: Sequence[str | int] = ()) -> Any:
        """Return the block as it is, held to the schema beside the manifest; the guest judges the rest."""
        return cls.program.configured(raw, path)

    # -- binding -------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[str, ...]:
        """Return the names the guest describes."""
        return tuple(o.name for o in self._outputs)

    @property
    def _outputs(self) -> tuple[Output, ...]:
        found = self._described
        if found is None:
            found = self._described = self._safely(lambda: self._instances.description.outputs)
        return found

    def _safely(self, ask: Callable[[], Any]) -> Any:
        """Ask something of the guest before any row: a trap there is a fault of the module."""
        try:
            return ask()
        except Trapped as trap:
            self._instances.discard()
            raise self.program.trapped(trap) from trap

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind: hand the guest a batch without rows and look at the columns it gives."""
        self._input, schema = next(iter(inputs.items()))
        if self._bound and schema.equals(self._schema):
            return dict(zip(self.outputs(), self._bound, strict=True))
        outputs = self._outputs
        if "one_to_one" in self.features and any(o.rows != "same" for o in outputs):
            raise BAD_DESCRIPTION.error(f"the manifest of '{self.program.name}' says one_to_one, the module gives other rows than it takes")
        names = self._instances.description.reads
        missing = [n for n in names or () if n not in schema.names]
        if missing:
            raise MISSING_COLUMN.error(f"'{self.program.name}' reads the column '{missing[0]}', which does not arrive")
        self._schema = schema
        self._reads = [schema.get_field_index(n) for n in (schema.names if names is None else names)]
        self._sender = Sender(pa.schema([schema.field(i) for i in self._reads]), _PAIR.size * len(outputs))
        self.changes = "rowwise" if "rowwise" in self.features and all(o.rows != "new" for o in outputs) else "refuse"  # type: ignore[misc]
        self._given = self._safely(lambda: self._announced(outputs))
        self._receivers = [Receiver(given) for given in self._given]
        self._bound = [self._whole(o, given) for o, given in zip(outputs, self._given, strict=True)]
        self._makings = [_Making(o, g, b, schema) for o, g, b in zip(outputs, self._given, self._bound, strict=True)]
        return dict(zip(self.outputs(), self._bound, strict=True))

    def _announced(self, outputs: Sequence[Output]) -> list[pa.Schema]:
        """Return the columns the guest gives on each output."""
        guest = self._instances.guest
        pairs = self._call(guest, pa.RecordBatch.from_pylist([], schema=self._schema))
        found = []
        for output, (_, place) in zip(outputs, pairs, strict=True):
            if not place and output.schema is None:
                raise BAD_DESCRIPTION.error(f"'{self.program.name}' gives no schema and describes no columns")
            given = read_schema(guest.memory, place) if place else output.schema
            assert given is not None
            self._judge(output, given)
            found.append(given)
        guest.reset()
        return found

    def _judge(self, output: Output, given: pa.Schema) -> None:
        """Hold the leading column to its meaning."""
        if not output.leading:
            return
        kind = given.field(0).type if len(given) else None
        fits = pa.types.is_boolean(kind) if output.rows == "mask" else pa.types.is_integer(kind)
        if kind is None or not fits:
            raise BAD_DESCRIPTION.error(
                f"with `rows: {output.rows}` the first column is {'boolean' if output.rows == 'mask' else 'an index'}, not {kind}"
            )

    def _whole(self, output: Output, given: pa.Schema) -> pa.Schema:
        """Return the schema of an output: the input's columns, replaced and added to by what the guest gives."""
        made = {f.name: f.type for f in self._schema} if output.rows != "new" else {}
        made.update({f.name: f.type for f in list(given)[output.leading :]})
        return normalise(pa.schema([pa.field(n, t) for n, t in made.items()]))

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]] | None:
        """Say what is read: by the guest, and past it."""
        if self._instances.description.reads is None:
            return None
        used = {self._schema.names[i] for i in self._reads}
        for output, given in zip(self._outputs, self._given, strict=True):
            if output.rows != "new":
                made = given.names[output.leading :]
                used |= {n for n in needed.get(output.name, ()) if n in self._schema.names and n not in made}
        return {self._input: frozenset(used)}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] | None:
        """Return that what the guest gives may be made of all it reads, and the rest of itself."""
        reads = [(self._input, self._schema.names[i]) for i in self._reads]
        found = {}
        for output, given, bound in zip(self._outputs, self._given, self._bound, strict=True):
            made = given.names[output.leading :]
            found[output.name] = {n: reads if n in made or output.rows == "new" else [(self._input, n)] for n in bound.names}
        return found

    def kept(self) -> Mapping[str, str]:
        """Return the columns that pass the guest."""
        outputs = self._outputs
        made = {n for o, given in zip(outputs, self._given, strict=True) for n in given.names[o.leading :]}
        return {} if any(o.rows == "new" for o in outputs) else {n: n for n in self._schema.names if n not in made}

    # -- rows ----------------------------------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return what the guest makes of a batch; one that traps goes again to a fresh instance, unless state is lost with it."""
        rows = batch.data.num_rows
        try:
            return self._made(batch)
        except Trapped as trap:
            if self._stateful:
                raise self.program.lost(trap) from trap
            if rows < self._suspect:
                # A part of a batch that trapped twice already: the engine looks for the row.
                raise self.program.trapped(trap) from trap
            self.ctx.log.warning("a module trapped and is made anew: {}", str(trap))
        self._suspect = 0
        try:
            return self._made(batch)
        except Trapped as trap:
            self._suspect = rows
            raise self.program.trapped(trap) from trap

    @property
    def _stateful(self) -> bool:
        return bool(self._instances.exports("df_snapshot"))

    def _made(self, batch: Batch) -> list[tuple[str, Batch]]:
        guest: Any = None
        try:
            guest = self._instances.guest
            pairs = self._call(guest, batch.data)
            made = [(o.name, b) for i, o in enumerate(self._outputs) if (b := self._given_by(guest, i, o, pairs[i][0], batch)) is not None]
            guest.reset()
            guest.memory.forget()
        except Trapped:
            self._instances.discard()
            raise
        except DataflareError as error:
            # A guest that says what is not so is not asked again; one that refuses rows only forgets them.
            if error.code == BAD_REPLY.name:
                self._instances.discard()
                if self._stateful:
                    raise self.program.lost(Trapped(error.problems[0].message)) from error
            elif guest is not None and not guest.closed:
                guest.reset()
            raise
        return made

    def _given_by(self, guest: Guest, which: int, output: Output, place: int, batch: Batch) -> Batch | None:
        """Return what the guest gave on one output; None: nothing."""
        rows = batch.data.num_rows
        if place:
            wanted = rows if output.rows in ("same", "mask") else None
            return self._makings[which].made(batch, self._receivers[which].receive(guest.memory, place, wanted))
        if output.rows == "same" and rows:
            raise BAD_REPLY.error("it gave no rows where there must be one for each")
        return None

    def _call(self, guest: Guest, data: pa.RecordBatch) -> list[tuple[int, int]]:
        """Hand a batch in and return the {array*, schema*} of each output."""
        array, schema, out = self._sender.send([data.column(i) for i in self._reads], data.num_rows, guest.memory, guest.alloc)
        guest.ask("df_process", array, schema, out)
        return [guest.memory.words(_PAIR, out + _PAIR.size * i, "answer") for i in range(len(self._outputs))]

    # -- state ---------------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return the guest's own bytes by reference; None: it keeps nothing."""
        if not self._stateful:
            return None
        try:
            guest = self._instances.guest
            out = guest.slot(8)
            guest.ask("df_snapshot", out)
            data = guest.get(out, "state", self.program.limits.memory)
            guest.reset()
        except Trapped as trap:
            raise self.program.lost(trap) from trap
        return {"v": 1, "state": put(data)}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Give the guest its bytes back."""
        data = get(str(state["state"]))
        try:
            guest = self._instances.guest
            guest.ask("df_restore", guest.put(data), len(data))
            guest.reset()
        except Trapped as trap:
            raise self.program.lost(trap) from trap

    def close(self) -> None:
        """End the instance."""
        self._instances.close()


class _Making:
    """How the batch of one output is made of what the guest gave and of what passes it.

    Args:
        output: what the guest says of it.
        given: the columns it gives.
        bound: the columns of the output.
        schema: the input's.
    """

    def __init__(self, output: Output, given: pa.Schema, bound: pa.Schema, schema: pa.Schema) -> None:
        self._rows, self._bound, self._given = output.rows, bound, given
        # Put in place one by one: to take a batch apart and make it anew costs more than all else that is done with it.
        self._edits = [(schema.get_field_index(f.name), f, i) for i, f in enumerate(given) if i >= output.leading]

    def made(self, batch: Batch, columns: list[pa.Array]) -> Batch:
        """Return the batch.

        Args:
            batch: what the guest was given.
            columns: what it gave, the leading one with them.
        """
        if self._rows == "new":
            data = pa.RecordBatch.from_arrays(columns, schema=self._given)
            return Batch(batch.stream, cast_batch(data, self._bound), batch.offset)
        base = batch.take(_indices(columns[0], batch.data)) if self._rows == "take" else batch
        data = base.data
        for at, field, i in self._edits:
            data = data.append_column(field, columns[i]) if at < 0 else data.set_column(at, field, columns[i])
        made = base.with_data(cast_batch(data, self._bound))
        return made.filter(columns[0]) if self._rows == "mask" else made


def _indices(found: Any, data: pa.RecordBatch) -> pa.Array:
    """Return indices of rows that are there, none of them so often that a small batch fills the host's memory.

    Raises:
        DataflareError: `wasm.bad-reply`.
    """
    from dataflare_sdk.compute import pc

    rows = data.num_rows
    if found.null_count or (len(found) and not (pc.min(found).as_py() >= 0 and pc.max(found).as_py() < rows)):
        raise BAD_REPLY.error(f"it names rows that are not among the {rows} it was given")
    most = max(TIMES, FLOOR // max(data.nbytes, 1))
    if len(found) > most and pc.max(pc.value_counts(found).field("counts")).as_py() > most:
        raise BAD_REPLY.error(f"it names one row more than {most} times")
    return found
