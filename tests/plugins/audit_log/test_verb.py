"""`plugin audit`, as a person and a script see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflare.cli import main
from dataflare_plugins.audit_log.chain import AuditLog


def called(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["plugin", "audit", *args])
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


def test_list_filter_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert called(capsys, "--verify") == (0, "nothing was recorded yet\n", "")
    assert called(capsys) == (0, "", "")
    log = AuditLog.beside(tmp_path)
    log.append({"time": 0.0, "plugin": "acme", "action": "secret T", "allowed": True, "workflow": "orders"})
    log.append({"time": 1.0, "plugin": "other", "action": "net evil:1", "allowed": False, "workflow": ""})
    status, out, _ = called(capsys)
    assert (status, out.splitlines()) == (
        0,
        ["1970-01-01T00:00:00+00:00  allowed  acme  secret T  (orders)", "1970-01-01T00:00:01+00:00  DENIED  other  net evil:1"],
    )
    for flags in (["--denied"], ["--plugin", "other"], ["-n", "1"]):
        assert [r["plugin"] for r in json.loads(called(capsys, "--json", *flags)[1])["records"]] == ["other"]
    head = log.head()
    assert head is not None
    assert called(capsys, "--verify")[1] == f"2 records, the newest {head['hash']}\n"
    assert json.loads(called(capsys, "--verify", "--json")[1]) == {
        "dataflare": 1, "command": "plugin audit", "whole": True, "head": head, "problems": [],
    }  # fmt: skip
    path = log.folder / "log.jsonl"
    path.write_text(path.read_text().replace("evil", "good"))
    status, out, err = called(capsys, "--verify")
    assert (status, out) == (6, "")
    assert "log.jsonl:2: this record was changed [audit.broken]" in err
    document = json.loads(called(capsys, "--verify", "--json")[1])
    assert (document["whole"], document["problems"][0]["line"]) == (False, 2)
    assert called(capsys, "--verify", "--expect", "0" * 63 + "1")[0] == 6
