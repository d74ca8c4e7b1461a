"""Each layer of the sandbox denies what it should. Every act is a plugin's own, in its worker, on canary files."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflare_plugins.isolation_process.host.view import Around, confined_policy
from dataflare_plugins.isolation_process.sandbox import seccomp
from dataflare_plugins.isolation_process.sandbox.confine import LAYERS
from dataflare_plugins.isolation_process.sandbox.syscalls import NUMBERS
from dataflare_sdk import Batch
from dataflare_sdk.testing import FakeContext

ROW = pa.record_batch({"n": pa.array([1], pa.int64())})


@pytest.fixture
def does(build: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Have the plugin do something and return what came of it."""

    def did(act: str, where: Any = "", port: int = 0, **more: Any) -> str:
        made = build("acts:Acts", {"act": act, "where": str(where), "port": port}, **more)
        return str(made.process(Batch("x", ROW), "x")[0][1].data.column(0)[0].as_py())

    return did


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "canary.txt"
    path.parent.mkdir()
    path.write_text("canary-4711")
    return path


@pytest.fixture
def server() -> Iterator[int]:
    """A server on the loopback that says hello back."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    made, _ = listening.accept()
                except OSError:
                    return
                with made:
                    made.sendall(b"got " + made.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_every_layer_holds_and_every_canary_is_silent(build: Callable[..., Any]) -> None:
    build("connectors:Twice")
    report = build.loader().report  # type: ignore[attr-defined]
    assert report["requested"] == list(LAYERS)
    assert report["missing"] == {}
    assert sorted(report["enforced"]) == sorted(LAYERS)
    assert len(report["canaries"]) == 8
    assert all(v.startswith("held") for v in report["canaries"].values()), report["canaries"]


# -- files ---------------------------------------------------------------------------------------------------


def test_a_file_that_was_not_granted_is_not_there(does: Callable[..., str], canary: Path) -> None:
    assert does("read", canary).startswith("FileNotFoundError")
    assert does("read", "/etc/shadow").startswith("FileNotFoundError")
    assert does("read", "/proc/1/environ").startswith("FileNotFoundError")
    assert "root" not in does("read", "/etc/passwd")


def test_a_granted_file_can_be_read_and_not_written(does: Callable[..., str], canary: Path) -> None:
    grants = {"fs": [{"path": str(canary), "mode": "ro", "why": "a test"}]}
    assert does("read", canary, grants=grants) == "canary-4711"
    assert does("write", canary, grants=grants).startswith("OSError 30"), "the mount itself is not read-only"
    assert canary.read_text() == "canary-4711"
    assert does("read", canary.with_name("other"), grants=grants).startswith("FileNotFoundError")


def test_a_granted_folder_can_be_written_and_holds_files_only(does: Callable[..., str], canary: Path) -> None:
    grants = {"fs": [{"path": str(canary.parent), "mode": "rw"}]}
    made = canary.with_name("made.txt")
    assert does("write", made, grants=grants) == "done"
    assert made.read_text() == "written by the plugin"
    assert does("link", canary.with_name("link"), grants=grants).startswith("PermissionError")
    assert does("set_id", canary.with_name("set"), grants=grants) == "[]"
    assert canary.with_name("set").stat().st_mode & 0o6000 == 0
    assert sorted(p.name for p in canary.parent.iterdir()) == ["canary.txt", "made.txt", "set"]


def test_what_only_root_may_read_of_the_system_stays_so() -> None:
    grants = {"net": [{"host": "a.example"}], "fs": [{"path": "/var/x", "mode": "ro"}]}
    policy = confined_policy(Around({}, grants, Path("/")), ["/opt/plugin"], ["/opt"], None)
    owned = [b["from"] for b in policy["binds"] if b.get("owned")]
    assert "/opt/plugin" in owned
    assert not [p for p in owned if p.startswith(("/usr/lib", "/lib", "/etc", "/dev"))]
    assert not [b for b in policy["binds"] if b.get("from", "").startswith("/etc/") and Path(b["from"], "private").exists()]


def test_a_grant_takes_its_path_from_the_workflow(build: Callable[..., Any], canary: Path) -> None:
    grants = {"fs": [{"path": "${config.where}", "mode": "ro"}]}
    made = build("acts:Acts", {"act": "read", "where": str(canary)}, grants=grants)
    assert made.process(Batch("x", ROW), "x")[0][1].data.column(0)[0].as_py() == "canary-4711"


def test_its_own_scratch_is_bounded_and_the_rest_is_read_only(does: Callable[..., str]) -> None:
    assert does("scratch") == "done"
    assert does("fill").startswith("OSError 28")
    for path in ("/x", "/usr/lib/x", "/etc/x"):
        assert does("write", path).startswith(("PermissionError", "OSError 30"))


def test_the_staging_of_another_node_is_closed(does: Callable[..., str], tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work")
    ctx.staging_dir = tmp_path / "work" / "staging" / "7" / "node"
    other = tmp_path / "work" / "staging" / "7" / "other"
    other.mkdir(parents=True)
    (other / "canary").write_text("canary-4711")
    (other / "canary").chmod(0o644)
    assert does("write", ctx.staging_dir / "mine", ctx=ctx) == "done"
    assert does("read", other / "canary", ctx=ctx).startswith("PermissionError")
    assert does("write", other / "new", ctx=ctx).startswith("PermissionError")


# -- processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["fork", "execute", "trace", "ring", "memory_file", "unshare", "netlink", "listen"])
def test_a_call_that_leads_out_is_refused(does: Callable[..., str], act: str) -> None:
    assert does(act).startswith("PermissionError"), act


def test_limits_hold(does: Callable[..., str]) -> None:
    assert does("hog").startswith("MemoryError")
    assert does("shared_hog").startswith("OSError 12")
    assert does("thread_bomb").startswith("RuntimeError")
    assert does("raise_limits").startswith(("PermissionError", "ValueError"))


def test_it_is_alone(does: Callable[..., str]) -> None:
    assert does("kill_all").startswith(("ProcessLookupError", "PermissionError"))
    assert does("signal_outside") == "[]"
    uid, euid, gid, environment, pid, parent = eval(does("identity"))
    assert (uid, euid, gid, pid, parent) == (65534, 65534, 65534, 1, 0)
    assert environment == ["ARROW_DEFAULT_MEMORY_POOL", "HOME", "LANG", "MALLOC_ARENA_MAX", "TMPDIR"]
    assert len(eval(does("descriptors"))) == 3, "more is open than the control channel and the memory of both directions"


def test_a_variable_is_granted_by_name(does: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANGER_REGION", "eu")
    monkeypatch.setenv("STRANGER_SECRET", "canary-4711")
    environment = eval(does("identity", grants={"env": [{"name": "STRANGER_REGION"}]}))[3]
    assert "STRANGER_REGION" in environment
    assert "STRANGER_SECRET" not in environment


# -- network -------------------------------------------------------------------------------------------------


def test_a_granted_host_is_reached_by_name_with_unmodified_sockets(does: Callable[..., str], server: int, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work")
    grants = {"net": [{"host": "localhost", "port": server, "private": True}, {"host": "LocalHost4.test", "port": "${config.port}"}]}
    assert does("talk", "localhost", server, grants=grants, ctx=ctx) == "got hello"
    assert does("lookup", "localhost4.test", server, grants=grants, ctx=ctx).startswith("198.18.")
    assert (f"net localhost:{server}", True) in ctx.audited


def test_what_was_not_granted_is_refused_and_recorded(does: Callable[..., str], server: int, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work")
    grants = {"net": [{"host": "localhost", "port": server + 1, "private": True}]}
    assert does("talk_raw", "127.0.0.1", server, grants=grants, ctx=ctx).startswith("PermissionError")
    assert does("talk_raw", "169.254.169.254", 80, grants=grants, ctx=ctx).startswith("PermissionError")
    assert does("talk", "localhost", server, grants=grants, ctx=ctx).startswith("PermissionError")
    assert does("lookup", "other.example", 80, grants=grants, ctx=ctx).startswith("gaierror")
    denied = {action for action, allowed in ctx.audited if not allowed}
    assert denied == {f"net 127.0.0.1:{server}", "net 169.254.169.254:80", f"net localhost:{server}"}


def test_a_private_address_needs_a_grant_that_says_so(does: Callable[..., str], server: int, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work")
    grants = {"net": [{"host": "localhost", "port": server}]}
    assert does("talk", "localhost", server, grants=grants, ctx=ctx).startswith("PermissionError")
    assert any(not allowed and action.startswith(f"net localhost:{server} at ") for action, allowed in ctx.audited)


def test_nothing_is_reached_while_only_local_files_may_be_touched(does: Callable[..., str], server: int, tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path / "work")
    ctx.offline = True
    grants = {"net": [{"host": "127.0.0.1", "port": server, "private": True}]}
    assert does("talk", "127.0.0.1", server, grants=grants, ctx=ctx).startswith("PermissionError")


@pytest.mark.parametrize("act", ["udp", "multipath", "fast_open"])
def test_no_way_around_the_broker(does: Callable[..., str], server: int, act: str) -> None:
    grants = {"net": [{"host": "127.0.0.1", "port": server, "private": True}]}
    assert does(act, "127.0.0.1", server, grants=grants).startswith(("PermissionError", "OSError 101")), act


def test_a_granted_connection_leads_nowhere_else(does: Callable[..., str], server: int) -> None:
    grants = {"net": [{"host": "127.0.0.1", "port": server, "private": True}]}
    assert does("reuse", "127.0.0.1", server, grants=grants).startswith("PermissionError")


def test_the_broker_goes_on_after_an_address_that_is_none(does: Callable[..., str], server: int) -> None:
    grants = {"net": [{"host": "127.0.0.1", "port": server, "private": True}]}
    assert does("nowhere", "127.0.0.1", server, grants=grants) == "EFAULT got hello"


def test_a_unix_socket_is_refused(does: Callable[..., str], canary: Path) -> None:
    grants = {"fs": [{"path": str(canary.parent), "mode": "rw"}]}
    assert does("unix", canary.with_name("socket"), grants=grants).startswith("PermissionError")


# -- the filter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_within_it(machine: str) -> None:
    program = seccomp.build(machine)
    assert len(program) < 4096
    for i, (code, yes, no, _) in enumerate(program):
        if code & 7 == 5:
            assert i + 1 + max(yes, no) < len(program)
            assert max(yes, no) < 256
    assert program[-1] == (6, 0, 0, 0x00050001)
    assert set(seccomp.GUARDED) <= set(NUMBERS)


def test_both_architectures_let_the_same_through() -> None:
    numbers = list(NUMBERS.values())
    assert len({x for x, _ in numbers if x is not None}) == sum(x is not None for x, _ in numbers)
    assert len({a for _, a in numbers if a is not None}) == sum(a is not None for _, a in numbers)
