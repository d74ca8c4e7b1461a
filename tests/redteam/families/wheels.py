"""Wheels and other archives made to write elsewhere, to run by themselves, or to be another one than was looked at: installed for real."""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.plugins.plugin_store.building import MANIFEST, digest, packed, wheel
from tests.plugins.plugin_store.test_wheels import with_member
from tests.redteam import control
from tests.redteam.bench import Bench, Done, Seen, judged
from tests.redteam.families import case

RUNS = "open({path!r}, 'w').close()\n"
"""What a file of the attacker's does when it is run: it leaves a mark."""


def listed(name: str, data: bytes) -> Callable[[str], str]:
    """Return what adds a file to RECORD, as it is."""
    return lambda text: f"{text}{name},sha256={digest(data)},{len(data)}\n"


def judge(bench: Bench, done: Done, *codes: str) -> Seen:
    """Tell what came of an installation: beside the store and the caches nothing may have been written, and nothing of the wheel run."""
    seen = judged(bench, done, codes, memory=600 << 20)
    known = {"work", "data", "cache", "config", "wheels", "hidden", "site", "stdout", "stderr", "pip"}
    elsewhere = sorted(p.name for p in bench.root.iterdir() if p.name not in known)
    elsewhere += sorted(p.name for p in bench.work.iterdir() if not p.name.startswith(".") and p.name != "dataflare.lock")
    stored = [p.name for p in bench.store.rglob("*") if "evil" in p.name] if codes and bench.store.exists() else []
    if elsewhere or stored:
        return Seen("breached", f"there is {', '.join(elsewhere + stored)}")
    return seen


def installed(bench: Bench, path: Path, *args: str | Path) -> Done:
    """Install a wheel."""
    return bench.dataflare("plugin", "install", path, "--json", *args)


def naive(how: str, make: Callable[[Path], Path]) -> Callable[[], control.Outcome]:
    """Return the control that unpacks the very archive as somebody does who trusts it."""

    def check() -> control.Outcome:
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder))
            return control.run_with(how, {"name": path.name, "wheel": path.read_bytes()})

    return check


def _wheel(
    name: str,
    what: str,
    make: Callable[[Path, str], Path],
    codes: tuple[str, ...] = ("plugin.unsafe-wheel",),
    how: str = "unpack-a-wheel",
    check: Callable[[], control.Outcome] | None = None,
) -> None:
    """Make a case of a wheel: `make(folder, path)` gives it, with code in it that leaves a mark at a path."""

    def attack(bench: Bench) -> Seen:
        return judge(bench, installed(bench, make(bench.wheels, str(bench.written))), *codes)

    attack.__name__, attack.__doc__ = f"wheel_{name}", what
    case("install", "refused", check or naive(how, lambda folder: make(folder, "/tmp/world/hidden/new")))(attack)


def _member(name: str, data: bytes = b"x", kind: int = 0) -> Callable[[Path, str], Path]:
    return lambda folder, path: wheel(folder, change=with_member(name, data, kind), record=listed(name, data))


def _files(**files: str) -> Callable[[Path, str], Path]:
    return lambda folder, path: wheel(folder, files={n: t.format(runs=RUNS.format(path=path)) for n, t in files.items()})


def _link(folder: Path, path: str) -> Path:
    """A link that leads out of the folder, and a file that is written through it."""

    def change(archive: zipfile.ZipFile) -> None:
        with_member("acme/link", str(Path(path).parent).encode(), stat.S_IFLNK | 0o777)(archive)
        with_member(f"acme/link/{Path(path).name}", b"x")(archive)

    record = lambda text: listed("acme/link", str(Path(path).parent).encode())(listed(f"acme/link/{Path(path).name}", b"x")(text))  # noqa: E731
    return wheel(folder, change=change, record=record)


def _twice(folder: Path, path: str) -> Path:
    """The file that is looked at first is harmless, the one that is written last is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wheel(folder, change=with_member("acme/__init__.py", b"evil = 1\n"))


def _bomb(folder: Path, path: str) -> Path:
    return wheel(folder, files={"acme/zeros.bin": bytes(300 << 20)})


def _many(folder: Path, path: str) -> Path:
    return wheel(folder, files={f"acme/e{i}.py": "" for i in range(20_100)})


def _overlapping(folder: Path, path: str) -> Path:
    """Thousands of names for the same packed bytes: every one of them unpacks to all of it."""
    made = wheel(folder, files={"acme/big.bin": bytes(range(256)) * (1 << 15)})
    names = [f"acme/x{i:03}.bin" for i in range(160)]
    with zipfile.ZipFile(made, "a") as archive:
        whole = archive.getinfo("acme/big.bin")
        for name in names:
            copy = zipfile.ZipInfo(name)
            for key in ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "external_attr"):
                setattr(copy, key, getattr(whole, key))
            archive.filelist.append(copy)
            archive.NameToInfo[name] = copy
        archive._didModify = True  # type: ignore[attr-defined]
    return made


def _later(folder: Path, path: str) -> Path:
    return wheel(folder, change=with_member("acme/evil.py", b"evil = 1\n"))


def _another(folder: Path, path: str) -> Path:
    return wheel(
        folder, files={"acme/evil.py": "evil = 1\n"}, record=lambda text: text.replace(digest(b"evil = 1\n"), digest(b"good = 1\n"))
    )


def _case(folder: Path, path: str) -> Path:
    return wheel(folder, files={"acme/plugin_code.py": "good = 1\n", "acme/Plugin_Code.py": "evil = 1\n"})


def _native(folder: Path, path: str) -> Path:
    return wheel(folder, files={"acme/evil.abi3.so": b"\x7fELF"})


def _name(folder: Path, path: str) -> Path:
    return wheel(folder, name="dataflare-files", files={"dataflare_files/evil.py": ""})


def _metadata(folder: Path, path: str) -> Path:
    return wheel(folder, files={"acme-1.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0.0\n"})


def _address(folder: Path, path: str) -> Path:
    return wheel(folder, requires=(f"evil @ {source(folder, path).as_uri()}",))


def source(folder: Path, path: str) -> Path:
    """Write a source distribution whose build leaves a mark."""
    inside = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": RUNS.format(path=path),
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "evil-1.0.0.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        for name, text in inside.items():
            member = tarfile.TarInfo(f"evil-1.0.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made


_wheel("dots", "Write outside of the folder by `..`.", _member("../../../../hidden/new"), how="unpack-a-wheel-beside")
_wheel("absolute_path", "Write to a path of the machine's root.", lambda f, p: _member(p)(f, p))
_wheel("backslashes", "Write outside by the separators of another system.", _member("acme\\..\\..\\evil.py"), how="unpack-as-on-windows")
_wheel("link_out_of_the_folder", "Bring a link, and a file that is written through it.", _link, how="unpack-with-links")
_wheel(
    "path_file",
    "Bring a `.pth` file, which Python runs at every start.",
    _files(**{"evil.pth": "import os; {runs}"}),
    how="start-python-beside",
)
_wheel(
    "sitecustomize", "Bring a module that Python runs at every start.", _files(**{"sitecustomize.py": "{runs}"}), how="start-python-beside"
)
_wheel(
    "path_file_by_data",
    "Bring a `.pth` file in the folder of data.",
    _files(**{"acme-1.0.0.data/purelib/evil.pth": "import os; {runs}"}),
    how="start-python-beside",
)
_wheel("unknown_place_of_data", "Bring data for a place that wheels do not have.", _files(**{"acme-1.0.0.data/startup/evil.py": "{runs}"}))
_wheel(
    "standard_library",
    "Bring a module that stands in for one of Python's own.",
    _files(**{"json/__init__.py": "{runs}"}),
    ("plugin.shadows",),
    "import-json-beside",
)
_wheel("ours", "Bring a module of DataFlare's.", _files(**{"dataflare_sdk/evil.py": "{runs}"}), ("plugin.shadows",))
_wheel("two_files_of_one_name", "Bring two files of one name: one is looked at, the other is written.", _twice)
_wheel(
    "names_that_differ_in_case", "Bring two files that are one where case does not count.", _case, how="unpack-where-case-does-not-count"
)
_wheel("bomb", "Unpack to three hundred megabytes of zeros.", _bomb, ("plugin.too-large",))
_wheel("many_files", "Unpack to twenty thousand files.", _many, ("plugin.too-large",))
_wheel("overlapping", "Name the same packed bytes again and again.", _overlapping, ("plugin.too-large",), "unpack-what-overlaps")
_wheel("file_that_nobody_listed", "Bring a file that RECORD does not list.", _later)
_wheel("another_file_than_listed", "Bring another file than RECORD lists.", _another)
_wheel("native_code_unsaid", "Bring native code without a word of it in the manifest.", _native)
_wheel("name_of_a_built_in", "Take the name of a plugin that is built in.", _name, ("plugin.shadows",))
_wheel("metadata_of_another", "Be another distribution within than by name.", _metadata, ("plugin.bad-wheel",))
_wheel(
    "name_that_acts_on_the_terminal",
    "Bring a file whose name clears the terminal and turns the text around.",
    _member("acme/\x1b[2J\u202eevil.py"),
    how="list-a-wheel",
)
_wheel(
    "dependency_at_an_address",
    "Depend on a source distribution at an address, which pip builds.",
    _address,
    check=lambda: control.run_with("fetch-with-pip", {}, ("pip",)),
)


@case("install", "denied", naive("install-scripts", lambda folder: _scripts(folder)))
def wheel_scripts_and_data(bench: Bench) -> Seen:
    """Bring scripts, headers and data for folders beside that of the packages: they are left out."""
    done = installed(bench, _scripts(bench.wheels))
    brought = [p.name for p in bench.store.rglob("evil*")] if bench.store.exists() else []
    return Seen("breached", f"{brought}") if brought else judge(bench, done)


def _scripts(folder: Path) -> Path:
    where = ("scripts/evil", "data/etc/evil", "headers/evil.h")
    return wheel(folder, files={f"acme-1.0.0.data/{w}": "#!python\n" for w in where})


@case("install", "refused", lambda: control.run_with("fetch-with-pip", {}, ("pip",)))
def wheel_address_of_a_dependency(bench: Bench) -> Seen:
    """Depend on a wheel that depends on a source distribution at an address: pip itself is given nothing to build with."""
    made = source(bench.root / "wheels" / "s", str(bench.written))
    info = "middle-1.0.0.dist-info"
    texts: dict[str, str | bytes] = {
        "middle/__init__.py": "", f"{info}/METADATA": f"Metadata-Version: 2.1\nName: middle\nVersion: 1.0.0\nRequires-Dist: evil @ {made.as_uri()}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    packed(bench.wheels / "middle-1.0.0-py3-none-any.whl", info, texts)
    done = installed(bench, wheel(bench.wheels, requires=("middle",)), "--find-links", bench.wheels)
    if "only wheels are taken" not in done.out:
        return Seen("broken", f"pip did not come to the building: {done.out[-200:]}")
    return judge(bench, done, "plugin.not-found")


@case("install", "refused", lambda: control.run_with("fetch-with-pip", {}, ("pip",)))
def wheel_that_is_a_source_distribution(bench: Bench) -> Seen:
    """Have a source distribution installed, whose build runs its code."""
    return judge(bench, installed(bench, source(bench.wheels, str(bench.written))), "plugin.not-a-wheel")


@case("install", "refused", lambda: control.run_with("trust-a-lock", {}))
def wheel_changed_after_the_grant(bench: Bench) -> Seen:
    """Change a file of a plugin in the store after it was granted."""
    lines = "capabilities: {secrets: [{ref: T}]}\n"
    first = installed(bench, wheel(bench.wheels, manifest=_stepping("") + lines, files={"acme/step.py": _STEP}))
    granted = bench.dataflare("plugin", "grant", "acme", "--in-process", "--json")
    code = next(bench.store.rglob("step.py"))
    code.chmod(0o644)
    code.write_text(code.read_text() + RUNS.format(path=str(bench.written)))
    bench.workflow("step")
    done = bench.run_workflow()
    (bench.work / "workflow.json").unlink()
    if first.code or granted.code:
        return Seen("broken", (first.err + granted.err)[-200:])
    return judge(bench, done, "plugin.changed")


_STEP = """
from dataflare_sdk import NoConfig, Processor
class Step(Processor):
    '''Passes rows on.'''
    Config = NoConfig
    features = frozenset({"rowwise"})
    def output_schemas(self, inputs):
        return {"": next(iter(inputs.values()))}
    def process(self, batch, input):
        return [("", batch)]
"""


def _stepping(more: str) -> str:
    head = MANIFEST.format(name="acme", version="1.0.0", package="acme").partition("provides:")[0]
    return head + 'provides:\n  - {kind: processor, name: step, entry: "acme.step:Step", features: [rowwise]}\n' + more
