"""Files of JSON lines as destinations."""

from __future__ import annotations

from dataflare_plugins.files.destination import FileDestination, FileTarget
from dataflare_sdk.formats import JsonlWriter


class JsonlDestination(FileDestination[FileTarget]):
    """JSON lines, as DuckDB writes them."""

    Config = FileTarget
    endings = (".jsonl", ".ndjson", ".json")
    form = "jsonl"
    writer_class = JsonlWriter
