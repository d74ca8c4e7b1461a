"""The audit log: every use and denial of a capability, in a file that only grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import hookimpl


@hookimpl
def dataflare_audit(record: Mapping[str, Any]) -> None:
    """Append a record to the log beside the workflow."""
    from pathlib import Path

    from dataflare_plugins.audit_log.chain import AuditLog

    AuditLog.beside(Path(record["folder"])).append({k: v for k, v in record.items() if k != "folder"})
