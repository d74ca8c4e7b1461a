"""A clean environment with the wheel of this tree in it, made once a session; only third-party packages are borrowed."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


class Clean:
    """An environment that has DataFlare from its wheel alone, and no index to ask."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self._home = folder

    def __call__(self, *command: str | Path, cwd: Path, path: str = "/usr/bin:/bin", **more: str) -> Said:
        """Run a command of the environment; `more` is put into its environment variables."""
        env = {
            "PATH": f"{self.bin}:{path}",
            "HOME": str(self._home),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            **more,
        }
        done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    def good(self, *command: str | Path, cwd: Path, path: str = "/usr/bin:/bin", **more: str) -> str:
        """Run a command that must succeed, and return its output."""
        said = self(*command, cwd=cwd, path=path, **more)
        assert said.code == 0, f"{command}\n{said.out}\n{said.err}"
        return said.out

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.bin / "python"


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Build the wheel and install it."""
    folder = tmp_path_factory.mktemp("clean")
    made = Clean(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    # Added as a folder of modules: its own .pth files, and with them this checkout, do not count.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    [wheel] = folder.glob("dataflare-*.whl")
    flags = ["--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    made.good(made.python, "-m", "pip", "install", *flags, wheel, cwd=folder)
    where = made.good(made.python, "-c", "import dataflare_plugins.scaffold as s; print(s.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder), f"it is not the wheel that runs: {where}"
    return made


@pytest.fixture
def new_plugin(clean: Clean, tmp_path: Path) -> Callable[..., Path]:
    """Make a plugin with the installed verb, where there is neither network nor git, and return its folder."""

    def made(kind: str, name: str, *flags: str, language: str = "python") -> Path:
        command = [clean.bin / "dataflare", "plugin", "new", "--kind", kind, "--language", language, "--name", name, "--yes", *flags]
        clean.good(*command, cwd=tmp_path, path="")
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [name]
        return tmp_path / name

    return made
