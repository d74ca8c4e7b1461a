import time
from pathlib import Path

import pytest
import yaml

from dataflare.errors import DataflareError
from dataflare.manifest import Manifest, read
from dataflare.versions import in_range

GOOD = {
    "manifest": 1,
    "name": "acme",
    "version": "1.4.0",
    "api": ">=1,<2",
    "publisher": "acme.example",
    "isolation": "process",
    "provides": [{"kind": "source", "name": "acme", "entry": "acme:Source", "features": ["full"]}],
    "hooks": ["dataflare_run_event"],
    "capabilities": {"secrets": [{"ref": "token", "why": "log in"}], "state": {"max_bytes": "1MiB"}},
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "plugin.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_manifest_is_read_whole(tmp_path: Path) -> None:
    made = read(written(tmp_path, GOOD), package="acme", origin="acme 1.4.0")
    assert (made.name, made.version, made.isolation, made.hooks) == ("acme", "1.4.0", "process", ("run_event",))
    assert made.provides[0].features == ("full",)
    assert made.hash.startswith("sha256:")
    assert not made.built_in
    assert Manifest.from_json(made.to_json()) == made


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    first = read(written(tmp_path, GOOD)).hash
    path = written(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b"# changed\n")
    assert read(path).hash != first


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"provids": []}, "provids"),
        ({"version": 1.4}, "version"),
        ({"isolation": "inproces"}, "isolation"),
        ({"manifest": 2}, "manifest"),
        ({"manifest": True}, "manifest"),
        ({"api": ">=2"}, "api"),
        ({"publisher": "dataflare"}, "publisher"),
        ({"capabilities": {"exec": []}}, "capabilities.exec"),
        ({"capabilities": {"secrets": ["token"]}}, "capabilities.secrets[0]"),
        ({"capabilities": {"net": [{"port": 1}]}}, "capabilities.net[0]"),
        ({"capabilities": {"net": [{"host": "a", "prot": 1}]}}, "capabilities.net[0].prot"),
        ({"capabilities": {"fs": [{"path": "a", "mode": "x"}]}}, "capabilities.fs[0].mode"),
        ({"capabilities": {"state": {"max": 1}}}, "capabilities.state"),
        ({"capabilities": {"host": [{"log": 1}]}}, "capabilities.host"),
        ({"provides": [{"kind": "source", "name": "x", "entry": "x:X", "summary": "a\x1b[2Jb"}]}, "provides[0].summary"),
        ({"publisher": "dataflare.evil"}, "publisher"),
        ({"name": "acme2"}, "name"),
        ({"name": "acm"}, "name"),
        ({"provides": [{"kind": "source", "name": "x"}]}, "provides[0].entry"),
        ({"provides": [{"kind": "sauce", "name": "x", "entry": "x:X"}]}, "provides[0].kind"),
        ({"provides": ["csv"]}, "provides[0]"),
        ({"hooks": [1]}, "hooks[0]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, object], path: str) -> None:
    with pytest.raises(DataflareError) as caught:
        read(written(tmp_path, GOOD | change), origin="acme 1.4.0")
    assert caught.value.code == "plugin.bad-manifest"
    assert caught.value.exit_code == 3
    assert path in [p.path for p in caught.value.problems]


LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9))


@pytest.mark.parametrize(
    "change",
    [
        "version: '" + "1" * 200_000 + "!'", "manifest: 0x" + "f" * 5_000, "? 0x" + "f" * 5_000 + "\n: 1", "api: '>=" + "1" * 5_000 + "'",
        "limits: {memory: 0x" + "f" * 5_000 + "}", "publisher: \"a\\nb 1.0  granted\"", "publisher: " + "x" * 5_000,
        "capabilities: {secrets: [{ref: T, why: \"a\\n  net *: granted\"}]}", "limits: {\"a\\nb\": 1}",
    ],
    ids=["slow-version", "huge-number", "huge-key", "huge-range", "huge-limit", "second-line", "long", "second-reason", "second-key"],
)  # fmt: skip
def test_what_would_hang_break_or_forge_is_refused_at_once(tmp_path: Path, change: str) -> None:
    """Whoever lists plugins reads everybody's manifest: a line of one must not stop them, nor look like another's."""
    rest = {key: value for key, value in GOOD.items() if key != change.partition(":")[0]}
    path = tmp_path / "plugin.yaml"
    path.write_text(yaml.safe_dump(rest) + change + "\n")
    begun = time.monotonic()
    with pytest.raises(DataflareError) as caught:
        read(path)
    assert {p.code for p in caught.value.problems} == {"plugin.bad-manifest"}
    assert all(any(word in p.message for word in ("one line", "at most", "says too much")) for p in caught.value.problems)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "text",
    [
        "a: [", "- 1", "", "!!python/object/apply:os.getcwd []", "\x00", LAUGHS, "a: &a [*a]", "&a {b: *a}", "[" * 100_000,
        "version: 2026-99-99", f"version: {'9' * 10_000}", "x: " + "y" * (1 << 20), "? [a]\n: b", "{a: 1}: b",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plugin.yaml"
    path.write_text(text)
    with pytest.raises(DataflareError, match=r"plugin\.bad-manifest"):
        read(path)


@pytest.mark.parametrize(
    ("version", "versions", "inside"),
    [
        ("1.0", ">=1,<2", True),
        ("2.0", ">=1,<2", False),
        ("1.2.9", "1.2", True),
        ("1.20", "1.2", False),
        ("1.2", "==1.2.0", True),
        ("1.4.7", "~=1.4", True),
        ("2.0", "~=1.4", False),
        ("1.4.7rc1", ">1.4", True),
        ("1.0", "!=1.0.0", False),
        ("1.0", "abc", False),
    ],
)
def test_ranges(version: str, versions: str, inside: bool) -> None:
    assert in_range(version, versions) is inside
