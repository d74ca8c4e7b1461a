"""M1: a run is one process that opens no port and talks to nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers.fixtures import missing

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, step

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
LOOK = """
import json, os, pathlib
done = False
def look(batch):
    global done
    if not done:
        me = pathlib.Path("/proc/self")
        links = [os.readlink(p) for p in (me / "fd").iterdir() if p.is_symlink()]
        children = "".join(p.read_text() for p in me.glob("task/*/children"))
        pathlib.Path("seen.json").write_text(json.dumps({"pid": os.getpid(), "children": children, "sockets": [l for l in links if l.startswith("socket:")]}))
        done = True
    return batch
"""


@pytest.mark.parametrize("state", ["new", "again"])
def test_one_process_and_no_socket(state: str, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    saved(tmp_path, flow({"s": generate(1000)}, step("l", "python", file="look.py", function="look"),
                         out={"out": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}}, "f": {"use": "parquet", "from": "l", "with": {"path": "o/"}}}))  # fmt: skip
    for _ in range(1 if state == "new" else 2):
        command = [sys.executable, "-m", "dataflare", "run", "w.json", "-q"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        process.communicate(timeout=120)
        assert process.returncode == 0
        seen = json.loads((tmp_path / "seen.json").read_text())
        assert seen == {"pid": process.pid, "children": "", "sockets": []}
        with pytest.raises(ProcessLookupError):  # nobody of its session is left
            os.killpg(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
def test_it_connects_to_nobody(lane: str, tmp_path: Path) -> None:
    """As the kernel sees it: neither our code nor a native library asks for a connection."""
    if shutil.which("strace") is None:
        missing("strace")
    out = {
        "out": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}},
        "f": {"use": "parquet", "from": "m", "with": {"path": "o/"}},
    }
    saved(tmp_path, flow({"s": generate(1000)}, step("m", "map", set={"j": "i + 1"}), out=out, runtime={"lane": lane}))
    strace = ["strace", "-f", "-qq", "-e", "trace=connect,bind,listen,sendto", "-o", "calls.txt"]
    done = subprocess.run([*strace, sys.executable, "-m", "dataflare", "run", "w.json", "-q"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "calls.txt").read_text() == ""
    asked = [*strace, sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX).connect_ex('/nowhere')"]
    subprocess.run(asked, cwd=tmp_path, check=True)
    assert "connect(" in (tmp_path / "calls.txt").read_text(), "strace would not have told"
