"""Attacks on the sandbox, as a stranger's plugin in a workflow. `make redteam` makes all of them; these are one of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.redteam import attacks, isolated

ALWAYS = (
    "read-a-secret-file", "read-through-proc-root", "hard-link-into-the-folder", "read-own-environment", "write-into-the-installed-code",
    "connect-to-loopback", "send-a-datagram", "connect-by-multipath", "connect-to-an-abstract-socket", "kill-another-process",
    "start-an-interpreter", "read-by-io-uring", "take-memory", "use-up-the-stack", "sleep-for-ever",
)  # fmt: skip


@pytest.mark.parametrize("name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.soak) for n in attacks.load()])
def test_an_attack_is_stopped(name: str, tmp_path: Path, confines: None) -> None:
    chosen = attacks.load()[name]
    seen = isolated.run(chosen, tmp_path)
    assert seen.outcome in (("denied", "contained") if "limits" in chosen.needs else ("denied",)), seen.detail


def test_a_sandbox_that_is_open_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself: what reads a secret that was granted has breached."""
    manifest = isolated.MANIFEST.replace(
        'why: "the folder it may read"}', 'why: "the folder it may read"}, {path: "${config.granted}/../hidden", mode: ro, why: all}'
    )
    monkeypatch.setattr(isolated, "MANIFEST", manifest)
    assert isolated.run(attacks.load()["read-a-secret-file"], tmp_path).outcome == "breached"
