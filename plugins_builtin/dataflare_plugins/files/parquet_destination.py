"""Parquet files as destinations."""

from __future__ import annotations

import pyarrow as pa

from dataflare_plugins.files.destination import FileDestination, FileTarget
from dataflare_sdk.formats import ParquetWriter


class ParquetDestination(FileDestination[FileTarget]):
    """Parquet."""

    Config = FileTarget
    endings = (".parquet", ".pq")
    form = "parquet"
    writer_class = ParquetWriter

    def _stores(self, kind: pa.DataType) -> bool:
        return bool(kind != pa.month_day_nano_interval())
