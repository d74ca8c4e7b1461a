"""Plugins into the store and out of it: real wheels, real pip without an index, real processes."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from tests.plugins.plugin_store.building import library, wheel
from tests.plugins.plugin_store.conftest import Machine

SECRET = "capabilities: {secrets: [{ref: T, why: log in}]}\n"
MORE = "capabilities: {secrets: [{ref: T, why: log in}, {ref: U, why: more}], env: [{name: E}]}\n"
RUNS = "import pathlib; pathlib.Path('ran').write_text('x')\n"


def test_from_wheel_to_component_and_out_again(machine: Machine) -> None:
    path = wheel(machine.wheels, lines=SECRET, said="__import__('pathlib').Path('ran').write_text('x')")
    looked = machine.json("plugin", "inspect", path)["plugin"]
    assert (looked["standing"], looked["signature"]["status"], looked["origin"]) == ("not granted", "unsigned", "")
    assert looked["level"] == {"asked": "inprocess", "given": "process", "minimum": "inprocess"}
    assert looked["capabilities"] == [
        {"kind": "secrets", "what": "T", "why": "log in", "granted": False, "denied": False, "private": False}
    ]  # fmt: skip
    assert not machine.store.exists()
    made = machine.json("plugin", "install", path)["plugins"][0]
    assert (made["origin"], made["install"], made["standing"]) == ("store:acme 1.0.0", "store", "not granted")
    entry = machine.lock()["acme"]
    assert (entry["version"], entry["minimum"], entry["artifact"]) == ("1.0.0", "1.0.0", made["hashes"]["artifact"])
    assert [f["name"] for f in entry["files"]] == [path.name]
    assert "capabilities" not in entry
    listed = {p["name"]: p for p in machine.json("plugin", "list")["plugins"]}["acme"]
    assert (listed["standing"], listed["granted"], listed["install"], listed["isolation"]) == ("not granted", False, "store", "process")
    assert not (machine.work / "ran").exists()  # until here none of its code ran
    assert machine.said() == "plugin.not-granted"
    assert machine.json("plugin", "grant", "acme", "--in-process")["plugin"]["standing"] == "granted"
    assert machine.said() == 1
    assert (machine.work / "ran").exists()
    assert machine.json("plugin", "remove", "acme")["removed"] == "acme"
    assert machine.said() == "plugin.unknown"
    assert machine.lock() == {}
    assert [p.name for p in machine.store.iterdir()] == ["active.json", "guard"]


def test_code_that_is_not_on_the_path_of_this_python(machine: Machine) -> None:
    path = wheel(machine.wheels, said="__import__('acme.other').other.NAME", files={"acme/other.py": "NAME = 'good'\n"})
    machine.json("plugin", "install", path)
    assert machine.python("import acme").returncode == 1
    machine.policy(trust=["acme"])
    assert machine.said() == "good"
    assert not list(machine.store.rglob("*.pyc"))  # byte code is neither written …
    site = next(machine.store.rglob("site"))
    cached = site / "acme" / "__pycache__" / f"other.{sys.implementation.cache_tag}.pyc"
    evil = machine.root / "evil.py"
    evil.write_text("NAME = 'evil'\n")
    py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert machine.said() == "plugin.changed"  # … nor put there unseen
    machine.json("plugin", "grant", "acme")
    assert machine.said() == "good"  # … nor read


@pytest.mark.parametrize(
    ("name", "code"),
    [("acme-1.0.0.tar.gz", "plugin.not-a-wheel"), ("gone-1.0-py3-none-any.whl", "plugin.not-a-wheel"), ("a b; rm", "plugin.not-a-wheel"),
     ("--index-url=x", "usage.bad-option"), ("no-such-plugin", "plugin.not-found"), ("x @ file:///tmp", "plugin.not-a-wheel")],
)  # fmt: skip
def test_what_cannot_be_installed(machine: Machine, name: str, code: str) -> None:
    (machine.work / "acme-1.0.0.tar.gz").write_bytes(b"\x1f\x8b")
    done = machine.run("plugin", "install", name, "--json")
    assert json.loads(done.stdout)["error"]["code"] == code
    assert done.returncode == {"plugin.not-found": 4, "usage.bad-option": 2}.get(code, 3)


def test_a_source_distribution_is_never_built(machine: Machine, tmp_path: Path) -> None:
    import tarfile

    setup = tmp_path / "setup.py"
    setup.write_text(RUNS)
    with tarfile.open(machine.wheels / "acme-1.0.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "acme-1.0.0/setup.py")
    machine.json("plugin", "install", "acme", "--find-links", machine.wheels, status=4)
    assert not list(tmp_path.rglob("ran"))


def test_refusals_before_anything_is_stored(machine: Machine) -> None:
    cases = [
        (wheel(machine.wheels / "a", files={"evil.pth": "import os\n"}), "plugin.unsafe-wheel", 6),
        (wheel(machine.wheels / "b", manifest="manifest: 1\n"), "plugin.bad-manifest", 3),
        (wheel(machine.wheels / "c", points=""), "plugin.no-manifest", 3),
        (wheel(machine.wheels / "d", points="[dataflare.plugins]\na = acme\nb = acme\n"), "plugin.no-manifest", 3),
        (wheel(machine.wheels / "e", points="[dataflare.plugins]\na = elsewhere\n"), "plugin.no-manifest", 3),
        (wheel(machine.wheels / "f", files={"acme/x.abi3.so": b"\x7fELF"}), "plugin.unsafe-wheel", 6),
        (wheel(machine.wheels / "g", name="dataflare-files", files={"dataflare_files/x.py": ""}), "plugin.shadows", 6),
    ]
    good = (wheel(machine.wheels / "h").parent / "x").with_name("acme-1.0.0-py3-none-any.whl")
    other = wheel(machine.wheels / "i", manifest="manifest: 1\nname: other\nversion: 1.0.0\napi: '1'\npublisher: p\nprovides: []\n")
    for path, code, status in [*cases, (other, "plugin.bad-manifest", 3)]:
        assert machine.json("plugin", "install", path, status=status)["error"]["code"] == code, path
    assert [p.name for p in machine.store.iterdir()] == []
    records = machine.json("plugin", "audit", "--denied")["records"]
    assert [r["action"] for r in records] == [f"install: {code}" for _, code, _ in cases] + ["install: plugin.bad-manifest"]
    machine.json("plugin", "install", good)


def test_native_code_needs_its_line_and_consent(machine: Machine) -> None:
    path = wheel(machine.wheels, lines="native: true\n", files={"acme/x.abi3.so": b"\x7fELF"})
    assert machine.json("plugin", "install", path)["plugins"][0]["standing"] == "not granted"
    assert machine.json("plugin", "grant", "acme")["plugin"]["standing"] == "granted"


def test_two_plugins_with_clashing_dependencies(machine: Machine) -> None:
    for version in ("1.0", "2.0"):
        library(machine.wheels, "shared", version, f"VERSION = {version!r}\n")
    one = wheel(machine.wheels, "one", said="__import__('shared').VERSION", requires=("shared==1.0", "dataflare", "pyarrow>=1"))
    two = wheel(machine.wheels, "two", said="__import__('shared').VERSION", requires=("shared>=2",))
    machine.json("plugin", "install", one, two, "--find-links", machine.wheels, "--folder", machine.work)
    sites = {p.parent.parent.name: sorted(f.name for f in p.iterdir()) for p in machine.store.glob("*/*/site")}
    assert sites == {
        "one": ["one", "one-1.0.0.dist-info", "shared", "shared-1.0.dist-info"],
        "two": ["shared", "shared-2.0.dist-info", "two", "two-1.0.0.dist-info"],
    }
    machine.policy(isolation={"one": "inprocess", "two": "inprocess"})
    assert (machine.said("one"), machine.said("two")) == ("1.0", "2.0")
    # In one process there is room for one of them; the other is refused rather than given the wrong one.
    both = machine.python(
        "from dataflare.lifecycle import Runtime\nhost = Runtime('.').host\nprint(host.factory('lookup', 'one').said)\n"
        "try: host.factory('lookup', 'two')\nexcept Exception as e: print(e.code, e.exit_code)"
    )
    assert both.stdout.split() == ["1.0", "plugin.clash", "6"], both.stderr
    # What was loaded is not taken for installed, and a library finds its own version.
    known = machine.python(
        "import importlib_metadata, importlib.metadata as md\nfrom dataflare.lifecycle import Runtime\nfrom dataflare.discovery import discover\n"
        "Runtime('.').host.factory('lookup', 'one')\nprint([m.origin for m in discover().manifests if m.name == 'one'], md.version('shared'))\n"
        "print([d.version for d in md.distributions() if d.name in ('one', 'shared')])\n"
        "try: import json.shared\nexcept ImportError: print('none')"
    )
    assert known.stdout == "['store:one 1.0.0'] 1.0\n[]\nnone\n", known.stderr
    # What the host has is not brought, and a plugin that needs another one of it is not installed.
    needs = wheel(machine.wheels, "needs", requires=("dataflare>=99",))
    assert machine.json("plugin", "install", needs, status=4)["error"]["code"] == "plugin.not-found"


def test_an_update_that_asks_for_less_shrinks_and_one_that_asks_for_more_waits(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, version="1.0.0", lines=MORE, said="1"))
    machine.json("plugin", "grant", "acme", "--in-process")
    assert machine.said() == 1
    less = machine.json("plugin", "upgrade", wheel(machine.wheels, version="1.1.0", lines=SECRET, said="2"))["plugin"]
    assert (less["standing"], less["version"]) == ("granted", "1.1.0")
    assert machine.lock()["acme"]["capabilities"] == {"secrets": [{"ref": "T", "why": "log in"}]}
    assert machine.said() == 2
    more = machine.json("plugin", "upgrade", wheel(machine.wheels, version="1.2.0", lines=MORE, said="3"))["plugin"]
    assert more["standing"] == "asks for more"
    assert more["missing"] == {"secrets": [{"ref": "U", "why": "more"}], "env": [{"name": "E"}]}
    assert machine.said() == "plugin.asks-more"
    back = machine.json("plugin", "rollback", "acme")["plugin"]
    assert (back["version"], back["standing"], machine.said()) == ("1.1.0", "granted", 2)
    assert machine.json("plugin", "rollback", "acme")["plugin"]["version"] == "1.0.0"
    assert machine.json("plugin", "rollback", "acme", status=3)["error"]["code"] == "plugin.no-previous"
    assert machine.said() == "plugin.asks-more"  # what 1.1.0 gave up is not granted to 1.0.0 by itself
    machine.json("plugin", "upgrade", machine.wheels / "acme-1.2.0-py3-none-any.whl")
    machine.json("plugin", "grant", "acme", "--in-process")
    assert machine.said() == 3
    old = machine.json("plugin", "install", machine.wheels / "acme-1.1.0-py3-none-any.whl", status=6)
    assert old["error"]["code"] == "plugin.too-old"
    assert machine.said() == 3


def test_upgrade_takes_the_newest_by_name_and_only_of_the_store(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, version="1.0.0"))
    wheel(machine.wheels, version="1.10.0")
    wheel(machine.wheels, version="1.9.0")
    assert machine.json("plugin", "upgrade", "acme", "--find-links", machine.wheels)["plugin"]["version"] == "1.10.0"
    assert machine.json("plugin", "upgrade", "other", status=3)["error"]["code"] == "plugin.not-in-store"
    exact = machine.json("plugin", "install", "acme==1.10.0", "--find-links", machine.wheels)["plugins"][0]
    assert exact["version"] == "1.10.0"


def test_a_run_that_began_with_a_version_goes_on_with_it(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, version="1.0.0", said="1", files={"acme/late.py": "NAME = 'old'\n"}))
    machine.policy(isolation={"acme": "inprocess"})
    wheel(machine.wheels, version="2.0.0", said="2", files={"acme/late.py": "NAME = 'new'\n"})
    code = (
        "import sys\nfrom dataflare.lifecycle import Runtime\nhost = Runtime('.').host\nprint(host.factory('lookup', 'acme').said, flush=True)\n"
        "sys.stdin.readline()\nimport acme.late\nprint(acme.late.NAME, host.factory('lookup', 'acme').said)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=machine.work, env=machine.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "1\n"
        machine.json("plugin", "upgrade", machine.wheels / "acme-2.0.0-py3-none-any.whl")
        assert machine.said() == 2
        assert running.communicate("go\n")[0] == "old 1\n"


def test_the_lock_reproduces_exactly(machine: Machine, tmp_path: Path) -> None:
    library(machine.wheels, "shared", "1.0", "VERSION = 1\n")
    machine.json("plugin", "install", wheel(machine.wheels, lines=SECRET, requires=("shared",)), "--find-links", machine.wheels)
    machine.json("plugin", "grant", "acme", "--in-process")
    library(machine.wheels, "shared", "1.5", "VERSION = 15\n")
    wheel(machine.wheels, version="1.1.0")
    second = Machine(tmp_path / "second")
    (second.work / "dataflare.lock").write_text((machine.work / "dataflare.lock").read_text())
    assert second.said() == "plugin.unknown"
    made = second.json("plugin", "install", "--locked", "--find-links", machine.wheels)["plugins"][0]
    assert (made["version"], made["standing"], second.said()) == ("1.0.0", "granted", 1)
    first, again = ({k: v for k, v in m.lock()["acme"].items() if k != "when"} for m in (machine, second))
    assert first == again
    # The same name and version, but other bytes.
    library(machine.wheels, "shared", "1.0", "VERSION = 666\n")
    third = Machine(tmp_path / "third")
    (third.work / "dataflare.lock").write_text((machine.work / "dataflare.lock").read_text())
    assert third.json("plugin", "install", "--locked", "--find-links", machine.wheels, status=4)["error"]["code"] == "plugin.not-found"
    other = wheel(third.wheels, lines=SECRET, said="2")
    assert third.json("plugin", "install", "--locked", other, status=6)["error"]["code"] == "plugin.changed"
    assert third.json("plugin", "install", "--locked", "other", status=3)["error"]["code"] == "plugin.not-locked"
    assert third.run("plugin", "install").returncode == 2


def test_files_that_were_changed_refuse_to_start(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels, lines=SECRET))
    machine.json("plugin", "grant", "acme", "--in-process")
    assert machine.json("plugin", "verify")["plugins"][0]["status"] == "ok"
    code = next(machine.store.rglob("__init__.py"))
    code.chmod(0o644)
    code.write_text(code.read_text() + "# evil\n")
    assert machine.said() == "plugin.changed"
    found = machine.json("plugin", "verify", status=6)
    assert found["plugins"][0]["changed"] == ["what is installed"]
    assert found["problems"][0]["code"] == "plugin.changed"
    machine.json("plugin", "install", machine.wheels / "acme-1.0.0-py3-none-any.whl")  # the same files again: mended
    assert (machine.said(), machine.json("plugin", "verify")["plugins"][0]["status"]) == (1, "ok")
    kept = next(machine.store.rglob("artifact/*.whl"))
    kept.write_bytes(kept.read_bytes() + b"x")
    assert machine.json("plugin", "verify", "acme", status=6)["plugins"][0]["changed"] == [kept.name]


def test_disabled_and_enabled(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels))
    machine.policy(trust=["acme"])
    assert machine.json("plugin", "disable", "acme")["plugin"]["standing"] == "disabled"
    assert machine.said() == "plugin.disabled"
    assert machine.json("plugin", "enable", "acme")["plugin"]["standing"] == "trusted"
    assert machine.said() == 1
    assert machine.run("plugin", "disable", "dataflare-files").returncode == 2


def test_a_store_that_others_may_write_is_not_believed(machine: Machine) -> None:
    machine.json("plugin", "install", wheel(machine.wheels))
    (machine.store / "active.json").chmod(0o666)
    os.utime(machine.store / "active.json")
    listed = machine.json("plugin", "list")
    assert "acme" not in [p["name"] for p in listed["plugins"]]
    assert listed["broken"][0]["reason"] == "others may write to the plugin store"
    (machine.store / "active.json").write_text("{")
    (machine.store / "active.json").chmod(0o644)
    assert "cannot be read" in machine.json("plugin", "list")["broken"][0]["reason"]


def test_a_wasm_module_and_its_manifest(machine: Machine) -> None:
    folder = machine.root / "module"
    folder.mkdir()
    (folder / "double.wasm").write_bytes(b"\0asm\x01\0\0\0")
    lines = "isolation: wasm\nprovides:\n  - {kind: processor, name: double, entry: double.wasm, config: double.schema.json}\n"
    (folder / "plugin.yaml").write_text(f"manifest: 1\nname: double\nversion: 0.1.0\napi: '1'\npublisher: p\n{lines}")
    assert machine.json("plugin", "inspect", folder, status=3)["error"]["code"] == "plugin.no-manifest"
    (folder / "double.schema.json").write_text("{}")
    assert machine.json("plugin", "inspect", folder)["plugin"]["level"]["given"] == "wasm"
    made = machine.json("plugin", "install", folder / "double.wasm")["plugins"][0]
    assert (made["origin"], made["standing"]) == ("store:double 0.1.0", "asks for nothing")
    (site,) = machine.store.glob("double/*/site")
    assert sorted(p.name for p in site.iterdir()) == ["double.schema.json", "double.wasm", "plugin.yaml"]
    (site / "double.wasm").chmod(0o644)
    (site / "double.wasm").write_bytes(b"\0asm\x01\0\0\0evil")
    assert machine.json("plugin", "verify", "double", status=6)["plugins"][0]["status"] == "changed: what is installed"
    (folder / "double.wasm").write_bytes(b"MZ")
    assert machine.json("plugin", "install", folder, status=3)["error"]["code"] == "plugin.bad-wheel"
    (folder / "plugin.yaml").write_text((folder / "plugin.yaml").read_text().replace("double.schema.json", "../../etc/passwd"))
    (folder / "double.wasm").write_bytes(b"\0asm\x01\0\0\0")
    assert machine.json("plugin", "install", folder, status=3)["error"]["code"] == "plugin.no-manifest"


def test_a_wheel_that_hatchling_built(machine: Machine, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "built").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "dataflare-built"\nversion = "1.2.3"\ndependencies = ["dataflare"]\n'
        '[project.entry-points."dataflare.plugins"]\nbuilt = "built"\n[tool.hatch.build.targets.wheel]\npackages = ["built"]\n'
    )
    (project / "built" / "__init__.py").write_text("class Thing:\n    said = 'built'\n")
    (project / "built" / "plugin.yaml").write_text(
        "manifest: 1\nname: dataflare-built\nversion: 1.2.3\napi: '1'\npublisher: p\nprovides:\n  - {kind: lookup, name: built, entry: 'built:Thing'}\n"
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", machine.wheels, project]
    subprocess.run(command, check=True, env=machine.env)
    made = machine.json("plugin", "install", "dataflare-built", "--find-links", machine.wheels)["plugins"][0]
    assert (made["version"], made["standing"]) == ("1.2.3", "asks for nothing")
    machine.policy(isolation={"dataflare-built": "inprocess"})
    assert machine.said("built") == "built"


def test_what_pip_installed_is_a_trusted_install(machine: Machine) -> None:
    site = machine.root / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel(machine.wheels, lines=SECRET)]
    subprocess.run(command, check=True, env=machine.env)
    machine.path = site
    looked = machine.json("plugin", "inspect", "acme")["plugin"]
    assert (looked["install"], looked["origin"], looked["signature"]) == ("trusted install", "acme 1.0.0", None)
    assert "trusted install" in machine.run("plugin", "list").stdout
    assert machine.json("plugin", "remove", "acme", status=3)["error"]["fix"] == "pip uninstall acme"
    taken = machine.json("plugin", "install", machine.wheels / "acme-1.0.0-py3-none-any.whl", status=6)
    assert taken["error"]["code"] == "plugin.shadows"
    assert machine.json("plugin", "verify")["plugins"][0]["status"] == "not pinned"
    machine.json("plugin", "grant", "acme", "--in-process")
    assert (machine.said(), machine.json("plugin", "verify")["plugins"][0]["status"]) == (1, "ok")
    (site / "acme" / "extra.py").write_text("")
    assert machine.said() == "plugin.changed"
