"""A stranger's plugin package, written into a folder, and its components at the level `process`."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dataflare.manifest import Manifest, read
from dataflare_plugins.isolation_process.host.launcher import Zygote
from dataflare_plugins.isolation_process.loader import ProcessLoader
from dataflare_sdk.testing import FakeContext

HERE = Path(__file__).parent
REFERENCES = HERE.parents[1] / "sdk" / "broken"
MANIFEST = """\
manifest: 1
name: stranger
version: 1.0.0
api: ">=1,<2"
publisher: stranger.example
isolation: process
provides:
  - {kind: source, name: numbers, entry: "stranger.connectors:Numbers", features: [full, ordered, replayable]}
  - {kind: source, name: parted, entry: "stranger.connectors:Parted", features: [full, ordered, replayable]}
  - {kind: source, name: listed, entry: "stranger.sources:ListSource"}
  - {kind: processor, name: acts, entry: "stranger.acts:Acts", features: [rowwise]}
  - {kind: processor, name: twice, entry: "stranger.connectors:Twice", features: [one_to_one, rowwise]}
  - {kind: processor, name: doubled, entry: "stranger.processors:Doubled"}
  - {kind: processor, name: summed, entry: "stranger.processors:Summed"}
  - {kind: destination, name: json, entry: "stranger.destinations:JsonDestination", features: [append, overwrite, two_phase, upsert]}
  - {kind: destination, name: db, entry: "stranger.destinations:DatabaseDestination"}
  - {kind: processor, name: collects, entry: "stranger.connectors:Collects"}
  - {kind: processor, name: remembering, entry: "stranger.acts:Remembering"}
  - {kind: processor, name: lying, entry: "stranger.acts:Lying"}
  - {kind: processor, name: losing, entry: "stranger.acts:Losing", features: [rowwise, one_to_one]}
  - {kind: lookup, name: other, entry: "stranger.acts:Other"}
"""

Build = Callable[..., Any]


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Return the folder that the stranger's package lies in: the reference components of the SDK's tests, and some that act up."""
    site = tmp_path / "store"
    package = site / "stranger"
    shutil.copytree(HERE / "stranger", package)
    for name in ("sources", "processors", "destinations"):
        shutil.copy(REFERENCES / f"{name}.py", package / f"{name}.py")
    (package / "plugin.yaml").write_text(MANIFEST)
    return site


@pytest.fixture
def loaders(confines: None) -> Iterator[Callable[..., ProcessLoader]]:
    """Make loaders, and close them; nothing of them is left afterwards."""
    made: list[ProcessLoader] = []

    def load(manifest: Manifest, grants: Mapping[str, Any] | None = None) -> ProcessLoader:
        made.append(ProcessLoader(manifest, grants or {}))
        return made[-1]

    yield load
    for loader in made:
        loader.close()
    assert Zygote._one is None, "a zygote is left"
    assert not [fd for fd in os.listdir("/proc/self/fd") if "dataflare" in _target(fd)], "shared memory is left"


def _target(handle: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


@pytest.fixture
def build(stranger: Path, tmp_path: Path, loaders: Callable[..., ProcessLoader]) -> Iterator[Build]:
    """Build a component in a worker: `build(entry, config, grants=, limits=, ctx=)`; every one is closed at the end."""
    made: list[Any] = []
    known: dict[str, ProcessLoader] = {}

    def build(
        entry: str,
        config: Mapping[str, Any] | None = None,
        *,
        grants: Mapping[str, Any] | None = None,
        limits: str = "",
        ctx: Any = None,
        extra: str = "",
    ) -> Any:
        key = f"{grants} {limits} {extra}"
        if key not in known:
            manifest = stranger / "stranger" / "plugin.yaml"
            manifest.write_text(MANIFEST + extra + (f"limits: {limits}\n" if limits else ""))
            known[key] = loaders(read(manifest, package="stranger"), grants)
        factory = known[key].factory(f"stranger.{entry}")
        found = factory(factory.configure(dict(config or {})), ctx or FakeContext(tmp_path / "work"))
        made.append(found)
        return found

    build.loader = lambda: next(iter(known.values()))  # type: ignore[attr-defined]
    (tmp_path / "work").mkdir()
    yield build
    for component in made:
        component._cell.close()
