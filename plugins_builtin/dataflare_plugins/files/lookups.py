"""Files asked by key: each request reads them, so this is for what is too large to be held and rarely asked."""

from __future__ import annotations

from dataflare_plugins.files.csv_source import CsvSource
from dataflare_plugins.files.jsonl_source import JsonlSource
from dataflare_plugins.files.parquet_source import ParquetSource
from dataflare_sdk.lookup import ScanLookup


class CsvLookup(ScanLookup):
    """CSV files; a file that is replaced is seen by the next request."""

    Config = CsvSource.Config
    source = CsvSource
    features = frozenset({"scans"})
    most = 100_000


class JsonlLookup(ScanLookup):
    """JSON lines; a file that is replaced is seen by the next request."""

    Config = JsonlSource.Config
    source = JsonlSource
    features = frozenset({"scans"})
    most = 100_000


class ParquetLookup(ScanLookup):
    """Parquet files; a file that is replaced is seen by the next request."""

    Config = ParquetSource.Config
    source = ParquetSource
    features = frozenset({"scans"})
    most = 100_000
