"""CSV files as destinations."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from dataflare_plugins.files.destination import FileDestination, FileTarget
from dataflare_sdk import code, config, option
from dataflare_sdk.formats import CsvWriter

COLUMNS_DIFFER = code(
    "files.columns-differ", 4, "The file that is appended to has other columns.", "Write to a new file, or change the columns in a map."
)


@config
class CsvTarget(FileTarget):
    """How the CSV is written."""

    delimiter: str = option("Character between values.", default=",")
    header: bool = option("Begin with the names of the columns.", default=True)


class CsvDestination(FileDestination[CsvTarget]):
    """CSV, as DuckDB writes it."""

    Config = CsvTarget
    endings = (".csv", ".tsv", ".txt")
    writer_class = CsvWriter

    def _options(self) -> dict[str, Any]:
        return {"delimiter": self.config.delimiter, "header": self.config.header}

    def _check_columns(self, target: Path) -> None:
        if not self.config.header:
            return
        with target.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=self.config.delimiter), [])
        if names != self._schema.names:
            raise COLUMNS_DIFFER.error(
                f"'{self.config.path}' has the columns {', '.join(names)}; the rows have {', '.join(self._schema.names)}"
            )
