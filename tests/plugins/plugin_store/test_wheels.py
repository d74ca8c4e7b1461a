"""Malicious and damaged wheels: refused with a code, nothing written, nothing run."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.plugin_store.building import digest, packed, wheel

from dataflare.errors import DataflareError
from dataflare_plugins.plugin_store import fetching, wheels
from dataflare_plugins.plugin_store.wheels import read_wheel, unpack

INFO = "acme-1.0.0.dist-info"


def refused(path: Path) -> str:
    with pytest.raises(DataflareError) as caught:
        read_wheel(path)
    assert caught.value.problems[0].file == str(path)
    return caught.value.code


def with_member(name: str, data: bytes = b"x", attributes: int = 0) -> Callable[[zipfile.ZipFile], None]:
    def change(archive: zipfile.ZipFile) -> None:
        member = zipfile.ZipInfo(name)
        member.external_attr = attributes << 16
        archive.writestr(member, data)

    return change


def test_a_good_wheel_is_read_and_unpacked_for_reading_only(tmp_path: Path) -> None:
    made = read_wheel(
        wheel(tmp_path, files={"acme-1.0.0.data/purelib/acme_more.py": "x = 1\n", "acme-1.0.0.data/scripts/acme": "#!python\n"})
    )
    assert (made.key, made.version, made.plugins) == ("acme", "1.0.0", ("acme",))
    unpack(made, tmp_path / "site")
    assert (tmp_path / "site" / "acme_more.py").read_text() == "x = 1\n"
    assert not list((tmp_path / "site").rglob("*scripts*"))
    assert not (tmp_path / "site" / "acme" / "__init__.py").stat().st_mode & 0o222


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py", "acme/../../evil.py", "/etc/evil", "acme//evil.py", "./evil.py", "acme\\..\\evil.py", "C:/evil.py", "a/\x1b[2J.py", "a\nb.py",
        "a/\u202eyp.exe",
    ],
)  # fmt: skip
def test_names_that_leave_the_folder_or_the_line(tmp_path: Path, name: str) -> None:
    listed = digest(b"x")
    path = wheel(tmp_path, change=with_member(name), record=lambda text: f"{text}{name},sha256={listed},1\n")
    assert refused(path) == "plugin.unsafe-wheel"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    listed = digest(b"/etc/passwd")
    path = wheel(
        tmp_path,
        change=with_member("acme/link.py", b"/etc/passwd", kind | 0o644),
        record=lambda text: f"{text}acme/link.py,sha256={listed},11\n",
    )
    assert refused(path) == "plugin.unsafe-wheel"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("evil.pth", "plugin.unsafe-wheel"),
        ("acme-1.0.0.data/purelib/evil.pth", "plugin.unsafe-wheel"),
        ("sitecustomize.py", "plugin.unsafe-wheel"),
        ("usercustomize/__init__.py", "plugin.unsafe-wheel"),
        ("acme-1.0.0.data/startup/x.py", "plugin.unsafe-wheel"),
        ("json/__init__.py", "plugin.shadows"),
        ("os.py", "plugin.shadows"),
        ("acme-1.0.0.data/platlib/socket.py", "plugin.shadows"),
        ("dataflare/evil.py", "plugin.shadows"),
        ("dataflare_sdk/__init__.py", "plugin.shadows"),
        ("dataflare_plugins/files/__init__.py", "plugin.shadows"),
        ("pyarrow/__init__.py", "plugin.shadows"),
        ("pyarrow.py", "plugin.shadows"),
    ],
)
def test_files_that_run_by_themselves_or_stand_in_for_others(tmp_path: Path, name: str, code: str) -> None:
    assert refused(wheel(tmp_path, files={name: "import os\n"})) == code


def test_record_lists_every_file_as_it_is(tmp_path: Path) -> None:
    assert refused(wheel(tmp_path, change=with_member("acme/late.py"))) == "plugin.unsafe-wheel"
    assert refused(wheel(tmp_path, record=lambda text: text.replace("sha256=", "md5="))) == "plugin.unsafe-wheel"
    assert refused(wheel(tmp_path, record=lambda text: text.replace(text.partition("sha256=")[2][:8], "AAAAAAAA"))) == "plugin.unsafe-wheel"
    assert refused(wheel(tmp_path, record=lambda _: "")) == "plugin.unsafe-wheel"


def test_two_files_of_one_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = wheel(tmp_path, change=with_member("acme/__init__.py"))
    assert refused(path) == "plugin.unsafe-wheel"
    assert refused(wheel(tmp_path, files={"acme/A.py": "", "acme/a.py": ""})) == "plugin.unsafe-wheel"
    made = read_wheel(wheel(tmp_path, files={"acme-1.0.0.data/purelib/acme/__init__.py": "evil"}))
    with pytest.raises(DataflareError, match=r"plugin\.shadows"):
        unpack(made, tmp_path / "site")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(wheel(tmp_path, files={"acme/zeros.bin": bytes(2 << 20)})) == "plugin.too-large"
    monkeypatch.setattr(wheels, "MAX_FILES", 8)
    assert refused(wheel(tmp_path, files={f"acme/{i}.py": "" for i in range(9)})) == "plugin.too-large"
    monkeypatch.setattr(wheels, "MAX_FILES", 100)
    monkeypatch.setattr(wheels, "MAX_BYTES", 1000)
    assert refused(wheel(tmp_path, files={"acme/x.bin": bytes(range(256)) * 4})) == "plugin.too-large"


@pytest.mark.parametrize(
    "name", ["acme-1.0.0.tar.gz", "acme-1.0.0.zip", "acme.whl", "acme-1.0.0-py3-none-any.whl.exe", "../x-1-py3-none-any.whl/.."]
)
def test_what_is_no_wheel(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / Path(name).name) == "plugin.not-a-wheel"


def test_damaged_wheels(tmp_path: Path) -> None:
    good = wheel(tmp_path / "good").read_bytes()
    path = tmp_path / "acme-1.0.0-py3-none-any.whl"
    path.write_bytes(good[: len(good) // 2])
    assert refused(path) == "plugin.bad-wheel"
    path.unlink()
    assert refused(path) == "plugin.not-a-wheel"
    assert refused(wheel(tmp_path, files={"other-1.0.0.dist-info/METADATA": "x"})) == "plugin.bad-wheel"
    assert refused(packed(path, INFO, {"acme/__init__.py": ""})) == "plugin.bad-wheel"
    other = "Metadata-Version: 2.1\nName: other\nVersion: 1.0.0\n"
    assert refused(wheel(tmp_path, files={f"{INFO}/METADATA": other})) == "plugin.bad-wheel"
    assert refused(wheel(tmp_path, files={f"{INFO}/METADATA": other.replace("other", "acme").replace("1.0.0", "2")})) == "plugin.bad-wheel"
    assert refused(wheel(tmp_path, points="[dataflare.plugins]\na = os; import x\n")) == "plugin.bad-wheel"
    assert refused(wheel(tmp_path, points="dataflare.plugins]\n")) == "plugin.bad-wheel"
    assert refused(wheel(tmp_path, files={f"{INFO}/METADATA": b"\xff\xfe"})) == "plugin.bad-wheel"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_wheel_with_any_byte_changed_is_refused_or_unpacks_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("wheels")
    good = wheel(folder)
    whole = good.read_bytes()
    wanted = {m: zipfile.ZipFile(good).read(m) for m in read_wheel(good).places}
    place = data.draw(st.integers(0, len(whole) - 1))
    good.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    try:
        made = read_wheel(good)
        unpack(made, folder / "site")
    except DataflareError as error:
        assert error.code.startswith("plugin.")
        return
    for member, content in wanted.items():
        # RECORD itself is listed nowhere; nothing is taken from it but the hashes.
        assert member.endswith("RECORD") or (folder / "site" / member).read_bytes() == content


def test_packed_as_wheels_never_are(tmp_path: Path) -> None:
    def change(archive: zipfile.ZipFile) -> None:
        archive.writestr("acme/x.py", b"x", compress_type=zipfile.ZIP_LZMA)

    listed = digest(b"x")
    assert refused(wheel(tmp_path, change=change, record=lambda text: f"{text}acme/x.py,sha256={listed},1\n")) == "plugin.unsafe-wheel"


def test_metadata_that_would_hang_or_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(wheel(tmp_path, record=lambda text: text + "x" * 200_000 + ",,\n")) == "plugin.bad-wheel"
    assert refused(wheel(tmp_path, requires=("a" + " " * 5_000 + "!",))) == "plugin.bad-wheel"
    monkeypatch.setattr(wheels, "MAX_METADATA", 1_000)
    assert refused(wheel(tmp_path, requires=("a>=1",) * 200)) == "plugin.too-large"


@pytest.mark.parametrize(
    "line", ["evil @ file:///tmp/evil.tar.gz", "evil@https://x.example/e.zip", "evil[a] @ git+https://x.example/e ; python_version > '3'"]
)
def test_a_dependency_at_an_address_is_refused(tmp_path: Path, line: str) -> None:
    assert refused(wheel(tmp_path, requires=(line,))) == "plugin.unsafe-wheel"
    assert read_wheel(wheel(tmp_path, requires=("good>=1; extra == 'a@b'",))).requires


def test_pip_starts_no_program(tmp_path: Path) -> None:
    """What pip is asked for may name an address of a source distribution, whose own backend would build it: it is not run."""
    import tarfile

    source = tmp_path / "evil-1.0"
    source.mkdir()
    (source / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (source / "backend.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with tarfile.open(tmp_path / "evil-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "evil-1.0")
    dest = tmp_path / "dest"
    dest.mkdir()
    with pytest.raises(DataflareError, match="only wheels are taken") as caught:
        fetching._pip("evil", ["--dest", str(dest), f"evil @ {(tmp_path / 'evil-1.0.tar.gz').as_uri()}"])
    assert caught.value.code == "plugin.not-found"
    assert not (tmp_path / "ran").exists()
    assert not list(dest.iterdir())
