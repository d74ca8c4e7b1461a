"""`plugin audit`: what plugins used and were denied, and whether the log of it is whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.audit_log.chain import AuditLog
from dataflare_sdk import DataflareError, code
from dataflare_sdk.commands import Invocation, verb

BROKEN = code(
    "audit.broken",
    6,
    "The audit log is not as it was written: a record was changed, removed or inserted.",
    "Find out who can write to it; the records before the place named are whole.",
)


@click.command("audit")
@click.option("--verify", is_flag=True, help="Check that no record was changed, removed or inserted.")
@click.option("--expect", metavar="HASH", help="With --verify: the hash that an earlier --verify told must be in the log.")
@click.option("--plugin", metavar="NAME", help="Only records of this plugin.")
@click.option("--denied", is_flag=True, help="Only denials.")
@click.option("-n", "newest", type=click.IntRange(min=1), metavar="N", help="Only the newest N.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path(),
    help="Folder of the workflow; the current one by default.",
)  # fmt: skip
@verb
def audit(call: Invocation, verify: bool, expect: str | None, plugin: str | None, denied: bool, newest: int | None, folder: Path) -> int:
    """List every use and denial of a capability by a plugin, the oldest first."""
    log = AuditLog.beside(folder)
    if verify:
        return _verify(call, log, expect)
    chosen = [r for r in log.records() if plugin in (None, r.get("plugin")) and not (denied and r.get("allowed"))]
    chosen = chosen[-newest:] if newest else chosen
    call.emit({"dataflare": 1, "command": call.command, "records": chosen})
    if not call.json:
        for record in chosen:
            call.say(_line(record))
    return 0


def _verify(call: Invocation, log: AuditLog, expect: str | None) -> int:
    findings = log.verify(expect)
    head = log.head()
    problems = [BROKEN.problem(f.what, file=str(log.folder / f.file), line=f.line or None) for f in findings]
    document: dict[str, Any] = {"dataflare": 1, "command": call.command, "whole": not findings, "head": head}
    document["problems"] = [p.to_json() for p in problems]
    if problems:
        return call.fail(DataflareError(*problems), document)
    call.emit(document)
    if not call.json:
        call.say(f"{head['n']} records, the newest {head['hash']}" if head else "nothing was recorded yet")
    return 0


def _line(record: dict[str, Any]) -> str:
    time = datetime.fromtimestamp(float(record.get("time", 0)), UTC).isoformat(timespec="seconds")
    verdict = "allowed" if record.get("allowed") else "DENIED"
    workflow = f"  ({record['workflow']})" if record.get("workflow") else ""
    # One record, one line: what a plugin named must not look like records of its own.
    return " ".join(f"{time}  {verdict}  {record.get('plugin')}  {record.get('action')}{workflow}".splitlines())
