import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dataflare.discovery
from dataflare.discovery import discover

PROVIDES = "provides:\n  - {kind: source, name: acme, entry: 'acme:Source'}\n"
BOOM = "raise RuntimeError('imported')\n"


def names() -> list[str]:
    return [m.name for m in discover().manifests]


def test_a_plugin_is_found_without_being_imported(install: Callable[..., Path]) -> None:
    install("acme", BOOM, PROVIDES)
    found = {m.name: m for m in discover().manifests}["acme"]
    assert (found.origin, found.package, found.provides[0].name) == ("acme 1.0.0", "acme", "acme")
    assert "acme" not in sys.modules


def test_the_index_is_used_while_it_is_true(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install("acme", BOOM, PROVIDES)
    scans: list[int] = []
    real = dataflare.discovery.scan
    monkeypatch.setattr(dataflare.discovery, "scan", lambda: scans.append(1) or real())
    first = discover()
    assert discover() == first
    assert len(scans) == 1
    (folder / "plugin.yaml").write_text((folder / "plugin.yaml").read_text() + "native: true\n")
    assert next(m for m in discover().manifests if m.name == "acme").native
    install("second", BOOM)
    assert "second" in names()
    (folder / "plugin.yaml").unlink()
    assert "acme" not in names()
    assert len(scans) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "\x00" * 100])
def test_a_damaged_index_is_a_miss(install: Callable[..., Path], tmp_path: Path, content: str) -> None:
    install("acme", BOOM)
    discover()
    (index,) = (tmp_path / "cache" / "dataflare").iterdir()
    index.write_text(content)
    assert "acme" in names()


def test_an_index_others_may_write_is_not_believed(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme", BOOM)
    discover()
    (index,) = (tmp_path / "cache" / "dataflare").iterdir()
    index.write_text(index.read_text().replace("acme.example", "evil.example"))
    index.chmod(0o666)
    assert "evil.example" not in [m.publisher for m in discover().manifests]
    assert not index.stat().st_mode & 0o022


def test_a_cache_that_cannot_be_written_is_no_error(install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme", BOOM)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "acme" in names()


def test_a_broken_manifest_is_listed_and_not_fatal(install: Callable[..., Path]) -> None:
    install("acme", manifest="manifest: 1\n")
    install("fine")
    found = discover()
    assert "fine" in [m.name for m in found.manifests]
    assert [b.entry for b in found.broken] == ["acme"]
    assert "'name' is missing" in found.broken[0].reason


def test_an_entry_point_to_nowhere_is_listed(install: Callable[..., Path]) -> None:
    folder = install("acme")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert [b.reason for b in discover().broken] == ["its package cannot be found"]


def test_a_folder_without_manifest_is_passed_over_until_it_has_one(install: Callable[..., Path]) -> None:
    folder = install("acme")
    text = (folder / "plugin.yaml").read_text()
    (folder / "plugin.yaml").unlink()
    assert "acme" not in names()
    assert discover().broken == ()
    (folder / "plugin.yaml").write_text(text)
    assert "acme" in names()


def test_built_in_is_told_by_the_distribution(install: Callable[..., Path]) -> None:
    install("acme", manifest="manifest: 1\nname: acme\nversion: '1'\napi: '1'\npublisher: dataflare\n")
    assert "acme" in [b.entry for b in discover().broken]


@pytest.mark.parametrize("name", ["dataflare evil", "dataflare\n evil", "dataflare\tevil"])
def test_a_distribution_whose_name_begins_like_ours_is_not_built_in(install: Callable[..., Path], tmp_path: Path, name: str) -> None:
    install("evil", manifest="manifest: 1\nname: dataflare-evil\nversion: '1'\napi: '1'\npublisher: p\n", trusted=False)
    (tmp_path / "site" / "evil-1.0.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
    (found,) = [m for m in discover().manifests if m.name == "dataflare-evil"]
    assert (found.built_in, found.origin) == (False, "dataflare-evil 1.0.0")


def test_the_index_is_private(install: Callable[..., Path], tmp_path: Path) -> None:
    install("acme")
    discover()
    (index,) = (tmp_path / "cache" / "dataflare").iterdir()
    assert index.stat().st_uid == os.getuid()
    assert index.stat().st_mode & 0o077 == 0


def test_a_built_in_s_name_wins(install: Callable[..., Path]) -> None:
    install("dataflare-files", BOOM)
    found = discover()
    assert [m.origin.partition(" ")[0] for m in found.manifests if m.name == "dataflare-files"] == ["dataflare"]
    assert [(b.entry, b.reason) for b in found.broken] == [("dataflare_files", "it takes the name of the built-in 'dataflare-files'")]
