"""A table or query of a DuckDB file, asked by key."""

from __future__ import annotations

from dataflare_plugins.duckdb.source import DuckdbConfig, DuckdbSource
from dataflare_sdk.lookup import ScanLookup


class DuckdbLookup(ScanLookup):
    """The file is attached for each request, so that another process may write it between two."""

    Config = DuckdbConfig
    source = DuckdbSource
    most = 20_000
