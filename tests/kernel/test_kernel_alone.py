"""K4: with every built-in uninstalled the kernel starts, and lists zero plugins."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import dataflare

NEEDS = ("click", "pluggy", "yaml", "importlib_metadata", "lazy_importer", "zipp", "loguru")
CODE = "import sys; sys.path[:0] = [{site!r}]; from dataflare.cli import main; main()"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder with the kernel and what it depends on, and nothing else."""
    for name in NEEDS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            (tmp_path / name).symlink_to(Path(spec.origin).parent)
    (tmp_path / "dataflare").symlink_to(Path(dataflare.__file__).parent)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["plugin", "list", "--json"], '{"plugins":[]}\n'),
        (["plugin", "list"], ""),
    ],
)
def test_the_kernel_alone_lists_no_plugins(alone: Path, args: list[str], expected: str) -> None:
    done = run(alone, *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_the_kernel_alone_helps_and_knows_no_verbs(alone: Path) -> None:
    done = run(alone, "--help")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("plugin  List plugins and manage them")
    assert run(alone, "run").returncode == 2


def test_the_kernel_alone_says_what_is_missing(alone: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(alone)!r}]; import dataflare; "
        "print(dataflare.run({}).error['code'], 'dataflare_sdk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=alone, env=clean(alone), check=True)
    assert done.stdout == "plugin.unknown False\n"


def run(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", CODE.format(site=str(site)), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=site, env=clean(site), check=False)


def clean(site: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(site / "cache"), "XDG_CONFIG_HOME": str(site / "config")}
