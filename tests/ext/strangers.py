"""Plugins of strangers: built as wheels, installed by pip into a folder of their own, found through that folder alone."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import commands

PACKAGES = Path(__file__).parent / "packages"


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(command: list[str], folder: Path, env: dict[str, str]) -> Said:
    """Run a command to its end, with nothing of the caller's environment that decides which plugins there are."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DATAFLARE_", "XDG_", "PYTHON", "PIP_"))}
    done = commands.run(command, cwd=folder, env={**kept, **env}, capture_output=True, text=True, timeout=240, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


class Place:
    """A folder with a workflow in it, and the strangers that are installed for whoever works there."""

    def __init__(self, folder: Path, wheels: Callable[[str], Path]) -> None:
        self.folder = folder
        self.sites: list[Path] = []
        self.env: dict[str, str] = {}
        self._wheels = wheels

    def install(self, *names: str) -> None:
        """Install packages of `tests/ext/packages`."""
        self.sites += [self._wheels(name) for name in names]

    def uninstall(self) -> None:
        """Take all of them away again."""
        self.sites = []

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def __call__(self, *arguments: str) -> Said:
        """Run `dataflare` in the folder, in a process of its own."""
        env = {
            "PYTHONPATH": os.pathsep.join(map(str, self.sites)),
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "XDG_CONFIG_HOME": str(self.folder / ".config"),
            **self.env,
        }
        return run([sys.executable, "-m", "dataflare", *arguments], self.folder, env)

    def ran(self, *arguments: str) -> dict[str, Any]:
        """Run a workflow to its good end and return the document."""
        said = self("run", *arguments, "--json")
        assert said.code == 0, said.out + said.err
        return said.document


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build a package's wheel without an index, install it into a folder, and return that folder; once a session."""
    place = tmp_path_factory.mktemp("strangers")

    def made(name: str) -> Path:
        site = place / name
        if not site.exists():
            built = run(
                [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "wheels" / name)], PACKAGES / name, {}
            )
            assert built.code == 0, built.err
            [wheel] = (place / "wheels" / name).glob("*.whl")
            flags = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
            installed = run([sys.executable, "-m", "pip", "install", *flags, str(wheel)], place, {})
            assert installed.code == 0, installed.err
        return site

    return made


@pytest.fixture
def place(tmp_path: Path, wheels: Callable[[str], Path]) -> Place:
    """An empty folder, with nothing installed but DataFlare, whose operator trusts what is installed."""
    made = Place(tmp_path, wheels)
    # By name: what a plugin says of its publisher is its own word, and lets nobody into this process.
    names = [path.read_text("utf-8").partition("name: ")[2].partition("\n")[0] for path in PACKAGES.glob("*/*/plugin.yaml")]
    made.write("policy.yaml", f"trust: [{', '.join([*sorted(names), 'liar'])}]\n")
    return made
