"""A machine of its own: store, settings and cache in a temporary folder, and a way to call `dataflare` there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from dataflare.cli import main


class Machine:
    """Folders of one user on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.store = root / "data" / "dataflare" / "plugins"
        self.settings = root / "config" / "dataflare"
        self.wheels = root / "wheels"
        self.path: Path | None = None
        for folder in (self.work, self.settings, self.wheels):
            folder.mkdir(parents=True)

    @property
    def env(self) -> dict[str, str]:
        homes = {f"XDG_{v}_HOME": str(self.root / v.lower()) for v in ("DATA", "CACHE", "CONFIG")}
        return {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            **homes,
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CACHE_DIR": str(self.root / "pip"),
        }

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this machine, in its working folder."""
        with patch.dict(os.environ, self.env), chdir(self.work):
            yield

    def run(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Call the command line: in this process, unless more is on the path there."""
        given = list(map(str, args))
        if self.path:
            return self.spawn(*given)
        out, err, status = io.StringIO(), io.StringIO(), 0
        with self.entered(), redirect_stdout(out), redirect_stderr(err):
            try:
                main(given)
            except SystemExit as end:
                status = int(end.code or 0)
        return subprocess.CompletedProcess(given, status, out.getvalue(), err.getvalue())

    def json(self, *args: str | Path, status: int = 0) -> dict[str, Any]:
        done = self.run(*args, "--json")
        assert done.returncode == status, done.stdout + done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def lock(self) -> dict[str, Any]:
        path = self.work / "dataflare.lock"
        made: dict[str, Any] = json.loads(path.read_text())["plugins"] if path.exists() else {}
        return made

    def policy(self, **said: Any) -> None:
        (self.settings / "policy.yaml").write_text(json.dumps(said))

    def spawn(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Call the command line in a process of its own."""
        return self.python("from dataflare.cli import main; main()", *args)

    def python(self, code: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a process of its own."""
        env = {**self.env, "PYTHONPATH": str(self.path)} if self.path else self.env
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.work, env=env, check=False, stdin=subprocess.DEVNULL)

    def said(self, name: str = "acme") -> Any:
        """Load the plugin's component and return what its code said, or the code of the refusal."""
        code = (
            "from dataflare.lifecycle import Runtime\nfrom dataflare.errors import DataflareError\n"
            f"try: print(repr(Runtime('.').host.factory('lookup', {name!r}).said))\nexcept DataflareError as e: print(repr(e.code))"
        )
        done = self.python(code)
        assert done.returncode == 0, done.stderr
        return eval(done.stdout.splitlines()[-1])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
