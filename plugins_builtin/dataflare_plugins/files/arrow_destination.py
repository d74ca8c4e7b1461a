"""Arrow IPC files as destinations."""

from __future__ import annotations

from dataflare_plugins.files.destination import FileDestination, FileTarget
from dataflare_sdk.formats import ArrowWriter


class ArrowDestination(FileDestination[FileTarget]):
    """Arrow IPC files."""

    Config = FileTarget
    endings = (".arrow", ".feather", ".ipc")
    form = "arrow"
    writer_class = ArrowWriter
