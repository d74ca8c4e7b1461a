"""`python`: a function of your own in a file, called per batch or per row."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, DataflareError, Processor, RowRejection, code, config, option
from dataflare_sdk.row_stage import single
from dataflare_sdk.schema import cast_column, normalise

MISSING = code("python.missing-function", 3, "The file or function of a `python` step does not exist.", "Check `file` and `function`.")
BROKEN = code("python.broken-file", 3, "The file of a `python` step cannot be imported.", "Mend the line named.")
BAD_COLUMNS = code("python.bad-columns", 3, "`columns` of a `python` step names a type that does not exist.", "Use a type of DuckDB's.")
BAD_RESULT = code(
    "data.python-result", 1, "A function returned something it may not.", "Return what `per` asks for, with the columns announced."
)
FAILED = code("data.python-failed", 1, "A function raised an exception.", "Mend the function or the row, or set `errors.on_record`.")


@config
class PythonConfig:
    """A function takes and gives a `pyarrow.RecordBatch`; per row, a dict and a dict, a list of dicts or None."""

    file: str = option("Python file, relative to the workflow.", example="steps.py")
    function: str = option("Name of the function in it.", example="score")
    per: Literal["batch", "row"] = option("What it is called with.", default="batch")
    columns: dict[str, str] | None = option("Columns it gives, with DuckDB types; by default those it takes.", default=None)


class PythonProcessor(Processor[PythonConfig]):
    """Runs code you wrote, in this process."""

    Config = PythonConfig
    features = frozenset({"nondeterministic"})

    def __init__(self, config: PythonConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._schema = pa.schema([])
        self._function: Callable[[Any], Any] | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Load the function; return the columns it announces."""
        _, schema = single(inputs)
        self._function = self._load()
        self._schema = schema if self.config.columns is None else self._announced(self.config.columns)
        return {"": self._schema}

    def _announced(self, columns: Mapping[str, str]) -> pa.Schema:
        engine = self.ctx.component("expression_engine", "duckdb")
        try:
            made = engine.bind({n: f"CAST(NULL AS {t})" for n, t in columns.items()}, pa.schema([])).schema
        except DataflareError as error:
            raise BAD_COLUMNS.error(error.problems[0].message, path=f"columns.{error.problems[0].path}") from error
        finally:
            engine.close()
        return normalise(made)

    def notes(self) -> Sequence[str]:
        """Say that nothing is known of what the function does."""
        return ["a Python function may give another result at every run: it is taken as not deterministic"]

    def _load(self) -> Callable[[Any], Any]:
        path = Path(self.ctx.base_dir) / self.config.file
        if not path.is_file():
            raise MISSING.error(f"the file '{self.config.file}' does not exist", path="file")
        # A name of its own: a file called json.py must not become the module json.
        name = f"dataflare_step_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
            raise BROKEN.error(f"{type(error).__name__}: {error}", file=str(path), line=line) from error
        found = getattr(module, self.config.function, None)
        if not callable(found):
            raise MISSING.error(f"'{self.config.file}' has no function '{self.config.function}'", path="function")
        return found  # type: ignore[no-any-return]

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Call the function with the batch, or with each of its rows."""
        assert self._function is not None
        if self.config.per == "batch":
            made = self._checked(self._function(batch.data))
            kept = made.num_rows == batch.data.num_rows
            return [("", Batch(batch.stream, made, batch.offset, (), batch.origin if kept else None))]
        rows, sources = [], []
        for i, row in enumerate(batch.data.to_pylist()):
            made_rows = self._rows_of(self._function(row))
            rows += made_rows
            sources += [i] * len(made_rows)
        return [("", self._rebuilt(batch, rows, sources))]

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Call the function row by row and give up the rows it fails on; per batch, row by row is its batch of one."""
        rejected: list[RowRejection] = []
        outputs: list[tuple[str, Batch]] = []
        for i in range(batch.data.num_rows):
            try:
                outputs += self.process(batch.slice(i, 1), input)
            except DataflareError as error:
                rejected.append(RowRejection(error.code, error.problems[0].message, index=i))
            except Exception as error:
                rejected.append(RowRejection(FAILED.name, f"{type(error).__name__}: {error}", index=i))
        return outputs, rejected

    def _checked(self, result: Any) -> pa.RecordBatch:
        if isinstance(result, pa.Table):
            result = result.combine_chunks()
            batches = result.to_batches()
            result = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=result.schema)
        if not isinstance(result, pa.RecordBatch):
            raise BAD_RESULT.error(f"'{self.config.function}' returned {type(result).__name__}, not a pyarrow.RecordBatch")
        missing = [n for n in self._schema.names if n not in result.schema.names]
        extra = [n for n in result.schema.names if n not in self._schema.names]
        if missing or extra:
            wrong = f"lacks the column '{missing[0]}'" if missing else f"has the column '{extra[0]}', which is not announced"
            raise BAD_RESULT.error(f"what '{self.config.function}' returned {wrong}")
        try:
            columns = [cast_column(result.column(f.name), f.type) for f in self._schema]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BAD_RESULT.error(f"what '{self.config.function}' returned does not fit its columns: {error}") from error
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _rows_of(self, result: Any) -> list[Mapping[str, Any]]:
        rows = [] if result is None else [result] if isinstance(result, Mapping) else result
        if not isinstance(rows, list) or not all(isinstance(r, Mapping) for r in rows):
            raise BAD_RESULT.error(f"'{self.config.function}' returned {type(result).__name__}, not a dict, a list of dicts or None")
        for row in rows:
            extra = [n for n in row if n not in self._schema.names]
            if extra:
                raise BAD_RESULT.error(f"'{self.config.function}' returned the column '{extra[0]}', which is not announced")
        return rows

    def _rebuilt(self, batch: Batch, rows: list[Mapping[str, Any]], sources: list[int]) -> Batch:
        try:
            data = pa.RecordBatch.from_pylist([dict(r) for r in rows], schema=self._schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise BAD_RESULT.error(f"what '{self.config.function}' returned does not fit its columns: {error}") from error
        origin = None if batch.origin is None else batch.origin.take(pa.array(sources, pa.int64()))
        return Batch(batch.stream, data, batch.offset, (), origin)


def _line_in(error: BaseException, path: Path) -> int | None:
    """Return the last line of a traceback that lies in a file."""
    lines = [f.lineno for f in inspect.getinnerframes(error.__traceback__) if f.filename == str(path)] if error.__traceback__ else []
    return lines[-1] if lines else None
