"""A test in a process of its own, to be killed: `python -m dataflare_plugins.workflow_tests.child FILE INDEX FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from dataflare_plugins.workflow_tests.document import load
from dataflare_plugins.workflow_tests.play import Player
from dataflare_sdk.commands import Runtime


def main(file: str, index: str, folder: str) -> None:
    """Run the test; its outcome is left to whoever goes on with it."""
    with Runtime(Path(file).parent, {"log.level": "error"}) as runtime:
        Player(runtime, load(runtime, Path(file))).play(int(index), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
