"""State in PostgreSQL: the contract, the lock, the fence, lost connections, what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tests.servers.processes import wait_until

from dataflare_plugins.state_postgres import store as store_module
from dataflare_plugins.state_postgres.store import StateConfig, StatePostgres
from dataflare_sdk import Checkpoint, DataflareError, DeadLetter, RetriableError
from dataflare_sdk.testing import FakeContext, LetterStoreSuite, StateStoreSuite


@pytest.fixture
def make(postgres: Any, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def open_store(url: str | None = None) -> StatePostgres:
            store = StatePostgres(StateConfig(url=url or postgres.url), FakeContext(tmp_path))
            return stack.enter_context(closing(store))

        yield open_store


def checkpoint(epoch: int, **more: Any) -> Checkpoint:
    return Checkpoint(epoch, "run-1", "hash", {}, {"s": {"row": epoch}}, **more)


def test_it_conforms(postgres: Any, tmp_path: Path) -> None:
    def at(place: Path) -> StatePostgres:
        """One database for each of the suite's folders."""
        name = f"{postgres.name}_{place.name}"
        if not postgres.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
            postgres.execute(f"CREATE DATABASE {name}")
        return StatePostgres(StateConfig(url=postgres.server.url(name)), FakeContext(place))

    StateStoreSuite(at, folder=tmp_path).assert_conforms()
    LetterStoreSuite(at, folder=tmp_path).assert_conforms()


OLD = """
CREATE SCHEMA dataflare_state;
SET search_path = dataflare_state;
{schema};
INSERT INTO workflows VALUES ('w', 'id', 3);
INSERT INTO letters(workflow, run_id, epoch, n, body, saved_at) VALUES
  ('w', 'run-1', 1, 0, '{{"cause":"why","code":"data.x","id":"","position":{{"row":3}},"raw":null,"row":{{"a":1}},"run_id":"run-1","saved_at":0.0,"source":"s","step":"clean"}}', 5.0),
  ('w', 'run-1', 1, 1, '{{"cause":"why","code":"data.y","id":"","position":null,"raw":"?","row":null,"run_id":"run-1","saved_at":0.0,"source":null,"step":"s"}}', 6.0);
"""


def test_a_database_of_an_older_version_is_migrated(make: Any, postgres: Any) -> None:
    """Format 1: letters were JSON alone; the tables were made by the statements of `schema.sql`, as they are still."""
    schema = Path(store_module.__file__).with_name("schema.sql").read_text()
    postgres.execute(OLD.format(schema=schema))
    store = make()
    found = store.find_letters("w")
    assert [(x.step, x.source, x.code, x.row, x.raw, x.status, x.saved_at) for x in found] == [
        ("clean", "s", "data.x", {"a": 1}, None, "open", 5.0),
        ("s", None, "data.y", None, "?", "open", 6.0),
    ]
    assert [g["count"] for g in make().count_letters("w")] == [1, 1]
    assert store.acquire("w").fence == 4
    postgres.execute("UPDATE dataflare_state.entries SET value = '3' WHERE scope = 'state' AND key = 'format'")
    with pytest.raises(DataflareError) as caught:
        make().load("w")
    assert caught.value.code == "state.newer-format"


def test_looking_makes_nothing(make: Any, postgres: Any) -> None:
    store = make()
    assert store.load("w") is None
    assert store.runs() == []
    assert store.holder("w") is None
    assert postgres.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'dataflare_state'") == "0\n"


def test_offline_no_server_is_asked(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    ctx.offline = True
    with closing(StatePostgres(StateConfig(url="postgresql://nobody@127.0.0.1:1/x"), ctx)) as store:
        assert store.load("w") is None


def test_a_second_run_is_told_who_runs(make: Any) -> None:
    first, second = make(), make()
    first.acquire("w")
    with pytest.raises(DataflareError, match=f"pid {os.getpid()} on {socket.gethostname()}") as caught:
        second.acquire("w")
    assert caught.value.code == "run.busy"
    assert second.holder("w") == f"pid {os.getpid()} on {socket.gethostname()}"
    second.acquire("other")  # another workflow is free
    first.release()
    assert second.holder("w") is None


HOLD = """
import sys
from pathlib import Path
from dataflare_plugins.state_postgres.store import StateConfig, StatePostgres
from dataflare_sdk.testing import FakeContext
store = StatePostgres(StateConfig(url=sys.argv[1]), FakeContext(Path(".")))
store.acquire("w")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_frees_the_lock(make: Any, postgres: Any) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, postgres.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder.stdout, holder.stdin:
        assert holder.stdout.readline() == "held\n"
        store = make()
        with pytest.raises(DataflareError, match=f"pid {holder.pid}"):
            store.acquire("w")
        holder.kill()
        holder.wait()
    wait_until(lambda: store.holder("w") is None, lambda: "the lock of a dead process is held")  # the server sees it a moment later
    assert store.acquire("w").fence == 2


def test_an_open_write_holds_a_newer_lease_off(make: Any) -> None:
    """A zombie's write and the take-over never overlap: the fence is raised after its end, or the write is refused."""
    zombie, newer = make(), make()
    zombie.acquire("w")
    order = []

    def slow(execute: Any) -> None:
        import threading

        taking = threading.Thread(target=lambda: (newer.acquire("w", take_over=True), order.append("taken over")))
        taking.start()
        taking.join(0.5)
        order.append("written")
        execute("INSERT INTO entries(scope, key, value) VALUES('zombie', 'k', 'v')")

    zombie._write(slow)
    wait_until(lambda: len(order) == 2, lambda: "the take-over hangs")
    assert order == ["written", "taken over"]
    with pytest.raises(DataflareError) as caught:
        zombie.log(checkpoint(1))
    assert caught.value.code == "state.fenced"


def test_a_lost_connection_is_of_the_moment(make: Any, postgres: Any) -> None:
    store, other = make(), make()
    store.acquire("w")
    store.log(checkpoint(1))
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'dataflare%'"
    postgres.execute(kill)
    with pytest.raises(RetriableError) as caught:
        store.done(1)
    assert caught.value.code == "state.lost"
    store.done(1)  # again, over a new connection, with the lock taken anew
    with pytest.raises(DataflareError) as busy:
        other.acquire("w")
    assert (busy.value.code if busy.value.code != "state.lost" else "") == "run.busy"


def test_who_was_faster_after_a_cut_keeps_the_lock(make: Any, postgres: Any) -> None:
    slow, fast = make(), make()
    slow.acquire("w")
    postgres.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'dataflare%'")
    fast.acquire("w")
    with pytest.raises(RetriableError):
        slow.log(checkpoint(1))
    with pytest.raises(DataflareError) as caught:
        slow.log(checkpoint(1))
    assert caught.value.code in ("run.busy", "state.fenced")
    fast.log(checkpoint(1))


def test_a_damaged_checkpoint_is_not_used(make: Any, postgres: Any) -> None:
    store = make()
    store.acquire("w")
    for epoch in (1, 2):
        store.log(checkpoint(epoch))
    postgres.execute("UPDATE dataflare_state.checkpoints SET body = replace(body, 'hash', 'hush') WHERE epoch = 2")
    found = store.load("w")
    assert found is not None
    assert found.epoch == 1
    postgres.execute("UPDATE dataflare_state.checkpoints SET crc = crc + 1")
    with pytest.raises(DataflareError) as caught:
        store.load("w")
    assert caught.value.code == "state.damaged"


def test_chunks_nobody_names_are_swept_and_others_stay(make: Any, postgres: Any) -> None:
    store, other = make(), make()
    store.acquire("w")
    other.acquire("x")
    theirs = other.put(b"not named yet")
    for epoch in range(1, 6):
        ref = store.put(f"state {epoch}".encode())
        store.log(checkpoint(epoch, states={"n": {"refs": [ref]}}))
        store.done(epoch)
    assert postgres.psql("SELECT count(*) FROM dataflare_state.chunks WHERE workflow = 'w'") == "3\n"
    assert other.get(theirs) == b"not named yet"
    assert store.get(ref) == b"state 5"
    postgres.execute("UPDATE dataflare_state.chunks SET data = data || 'x'")
    with pytest.raises(DataflareError) as caught:
        store.get(ref)
    assert caught.value.code == "state.damaged"


def test_any_text_is_kept(make: Any) -> None:
    store = make()
    store.acquire("w'; --")
    odd = {"text": "nul \0, lone \ud83d, 'quote', %s, ?"}
    store.log(checkpoint(1, extra=odd), [DeadLetter("run-1", "s", "c", "why ?", row=odd)])
    store.done(1)
    found = store.load("w'; --")
    assert found is not None
    assert found.extra == odd
    assert store.letters("w'; --")[0].row == odd


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://u:hush-hush@127.0.0.1:1/x", "state.lost"),
        ("postgresql://u:hush-hush@:x:/a b=c", "state.bad-url"),
        ("hush-hush", "state.bad-url"),
    ],
)
def test_what_cannot_be_reached(make: Any, url: str, code: str) -> None:
    with pytest.raises(DataflareError) as caught:
        make(url).acquire("w")
    assert caught.value.code == code
    assert "hush-hush" not in str(caught.value)


def test_what_is_refused(make: Any, postgres: Any) -> None:
    for url in (postgres.server.url(postgres.name, password="wrong-word"), postgres.server.url("no_such_database")):
        with pytest.raises(DataflareError) as caught:
            make(url).acquire("w")
        assert caught.value.code == "state.unusable"
        assert not isinstance(caught.value, RetriableError)
        assert "wrong-word" not in str(caught.value)
    name = f"poor_{postgres.name}"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
    try:
        with pytest.raises(DataflareError, match="permission denied"):
            make(postgres.server.url(postgres.name, user=name, password="p")).acquire("w")
    finally:
        postgres.execute(f"DROP ROLE {name}")
