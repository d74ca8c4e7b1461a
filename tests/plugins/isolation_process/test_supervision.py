"""Workers that die, hang, flood and lie are contained, told by a code, and no batch is lost."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dataflare.errors import CAPABILITY_DENIED, DataflareError, RetriableError
from dataflare_plugins.isolation_process.host.keeper import WITHOUT, Keeper
from dataflare_plugins.isolation_process.host.questions import Questions
from dataflare_plugins.isolation_process.host.told import clean, raised
from dataflare_plugins.isolation_process.host.view import Around
from dataflare_plugins.isolation_process.proxies.hooks import Hooks
from dataflare_plugins.isolation_process.proxies.line import DEADLINE
from dataflare_sdk import Batch, End, ExtractSpec, Origin, Partition
from dataflare_sdk.testing import FakeContext

ROWS = pa.record_batch({"n": pa.array(range(5), pa.int64())})
Build = Callable[..., Any]


class Listening(FakeContext):
    """A context that keeps what is logged, and may refuse secrets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, secrets={"token": "canary-4711"})
        self.lines: list[tuple[str, tuple[Any, ...]]] = []
        self.log = self

    def __getattr__(self, level: str) -> Callable[..., None]:
        if level not in ("debug", "info", "warning", "error"):
            raise AttributeError(level)
        return lambda message, *args: self.lines.append((message, args))

    def secret(self, ref: str) -> str:
        if ref != "token":
            raise CAPABILITY_DENIED.error(f"no secret {ref}")
        return super().secret(ref)


def failure(call: Callable[[], Any]) -> DataflareError:
    with pytest.raises(DataflareError) as caught:
        call()
    return caught.value


def process(made: Any) -> Any:
    return made.process(Batch("x", ROWS, origin=Origin("x", ROWS, {})), "x")


def test_a_batch_goes_again_to_a_fresh_worker(build: Build, tmp_path: Path) -> None:
    grants = {"fs": [{"path": str(tmp_path / "marks"), "mode": "rw"}]}
    made = build("acts:Acts", {"act": "die_once", "where": str(tmp_path / "marks" / "died")}, grants=grants)
    made.output_schemas({"x": ROWS.schema})
    ((output, batch),) = process(made)
    assert (output, batch.data.column(0).to_pylist()) == ("", ["survived"] * 5)
    assert (tmp_path / "marks" / "died").exists()
    assert batch.origin.source == "x"


@pytest.mark.parametrize(("act", "limits"), [("die", ""), ("crash", ""), ("spin", "{deadline: 200ms}"), ("sleep", "{deadline: 200ms}")])
def test_one_that_always_fails_is_given_up_and_then_quarantined(build: Build, act: str, limits: str) -> None:
    made = build("acts:Acts", {"act": act}, limits=limits)
    error = failure(lambda: process(made))
    assert (error.code, error.exit_code, type(error)) == ("plugin.crashed", 4, RetriableError)
    error = failure(lambda: process(made))
    assert (error.code, error.exit_code, type(error)) == ("plugin.quarantined", 6, DataflareError)
    assert failure(lambda: build("acts:Acts", {"act": act}, limits=limits)).code == "plugin.quarantined"
    made.close()


def begun(made: Any) -> Callable[[], Any]:
    made.output_schemas({"x": ROWS.schema})
    return made.begin(Batch("x", ROWS, origin=Origin("x", ROWS, {})), "x")  # type: ignore[no-any-return]


def test_a_step_without_state_works_while_nobody_waits(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    made = build("connectors:Twice", {"marks": str(folder)}, grants={"fs": [{"path": str(folder), "mode": "rw"}]})
    assert "ahead" in made.features
    fetch = begun(made)
    until = time.monotonic() + 20
    while not (folder / "twice").exists():  # nobody has fetched it yet
        assert time.monotonic() < until
        time.sleep(0.01)
    ((output, batch),) = fetch()
    assert (output, batch.data.column(0).to_pylist()) == ("", [0, 2, 4, 6, 8])
    assert batch.origin.source == "x"


def test_another_call_leaves_what_was_begun(build: Build) -> None:
    made = build("connectors:Twice")
    fetch = begun(made)
    assert made.notes() == []
    assert [b.data.column(0).to_pylist() for _, b in made.process(Batch("x", ROWS.slice(0, 2)), "x")] == [[0, 2]]
    assert [b.data.column(0).to_pylist() for _, b in fetch()] == [[0, 2, 4, 6, 8]]


@pytest.mark.parametrize("when", ["working", "done", "gone"])
def test_what_was_begun_goes_again_to_a_fresh_worker(build: Build, when: str) -> None:
    made = build("connectors:Twice", {"wait": 30.0 if when == "working" else 0.0})
    fetch = begun(made)
    worker = made._cell._worker
    if when == "done":
        assert made.notes() == []
    if when == "gone":
        made._cell.lost(EOFError())
    else:
        worker.connection.kill()
    if when == "working":
        made._cell._build = (*made._cell._build[:1], {"wait": 0.0}, *made._cell._build[2:])
    assert [b.data.column(0).to_pylist() for _, b in fetch()] == [[0, 2, 4, 6, 8]]


def test_what_was_begun_goes_to_two_fresh_workers_at_most(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build("acts:Acts", {"act": "die"})
    fetch, keeper, started = begun(made), made._cell._keeper, 0
    start = keeper.start

    def counted(*arguments: Any) -> Any:
        nonlocal started
        started += 1
        return start(*arguments)

    monkeypatch.setattr(keeper, "start", counted)
    assert failure(fetch).code == "plugin.crashed"
    assert started == 2


def test_an_error_of_what_was_begun_is_raised_where_it_is_fetched(build: Build) -> None:
    made = build("connectors:Twice", {"refuse": 3})
    fetch = begun(made)
    assert made.notes() == []
    with pytest.raises(ValueError, match="3 is refused"):
        fetch()


def test_a_step_with_state_is_not_begun_ahead(build: Build) -> None:
    assert "ahead" not in build("processors:Summed").features


def numbers(build: Build, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a source in a worker, and a reader of it."""
    grants = {"fs": [{"path": str(folder), "mode": "rw"}]}
    source = build("connectors:Numbers", {"marks": str(folder), **settings}, grants=grants)
    [stream] = source.discover(ExtractSpec(), None)
    [part] = source.partitions(stream, ExtractSpec())
    return source, source.open(part, ExtractSpec(), None)


def test_a_source_reads_one_batch_ahead(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    source, reader = numbers(build, folder, rows=10)
    first = reader.read(4, 1 << 20, time.monotonic() + 5)
    until = time.monotonic() + 20
    while not (folder / "4").exists():  # nobody has asked for it yet
        assert time.monotonic() < until, list(folder.iterdir())
        time.sleep(0.01)
    time.sleep(0.2)
    assert not (folder / "8").exists(), "it reads further than one batch"
    source.ack(Partition("numbers", "numbers"), {"v": 1, "row": 4})  # a call between
    found = [first, *(reader.read(4, 1 << 20, time.monotonic() + 5) for _ in range(3))]
    assert [b.data.column(0).to_pylist() for b in found[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert isinstance(found[3], End)
    reader.close()


def test_the_parts_of_a_source_are_known_and_no_others_are_taken(build: Build) -> None:
    source = build("connectors:Parted", {"marks": ""})
    [stream] = source.discover(ExtractSpec(), None)
    [part] = source.partitions(stream, ExtractSpec())
    reader = source.open(part, ExtractSpec(), None)
    assert set(reader.partitions) == {"a"}
    found = []
    for _ in range(4):
        batch = reader.read(4, 1 << 20, time.monotonic() + 5)
        found.append((batch.partition, batch.data.column("s").to_pylist(), "".join(sorted(reader.partitions))))
    assert found == [("a", ["a"], "a"), ("b", ["b"], "ab"), ("c", ["c"], "abc"), ("a", ["a"], "abc")]
    error = failure(lambda: reader.read(4, 1 << 20, time.monotonic() + 5))
    assert error.code == "plugin.crashed"
    assert "a partition that the reader does not have" in str(error)
    reader.close()


def test_what_fails_ahead_is_told_when_it_is_asked_for(build: Build, tmp_path: Path) -> None:
    source, reader = numbers(build, tmp_path / "marks", fails=4)
    assert reader.read(4, 1 << 20, time.monotonic() + 5).data.num_rows == 4
    source.idle()
    with pytest.raises(ValueError, match="row 4 cannot be read"):
        reader.read(4, 1 << 20, time.monotonic() + 5)
    reader.close()


def test_a_worker_that_dies_ahead_is_told_when_it_is_asked_for(build: Build, tmp_path: Path) -> None:
    source, reader = numbers(build, tmp_path / "marks")
    assert reader.read(4, 1 << 20, time.monotonic() + 5).data.num_rows == 4
    signal.pidfd_send_signal(source._cell._worker.connection._process, signal.SIGKILL)
    error = failure(lambda: [reader.read(4, 1 << 20, time.monotonic() + 5) for _ in range(2)])
    assert (error.code, type(error)) == ("plugin.crashed", RetriableError)
    reader.close()


def test_a_step_with_a_state_is_not_asked_again(build: Build) -> None:
    made = build("acts:Remembering", {"act": "die"})
    error = failure(lambda: process(made))
    assert (error.code, type(error)) == ("plugin.crashed", RetriableError)
    assert not made._cell.alive
    assert failure(lambda: process(made)).code == "plugin.crashed"
    made.close()


def test_failures_far_apart_are_forgiven() -> None:
    now = [0.0]
    keeper = Keeper("p", ([], []), {}, lambda: now[0])
    for _ in range(20):
        now[0] += 16.0
        assert keeper.failed(EOFError()).code == "plugin.crashed"  # type: ignore[attr-defined]
    now[0] += 1.0
    codes = [keeper.failed(EOFError()).code for _ in range(4)]  # type: ignore[attr-defined]
    assert codes[-1] == "plugin.quarantined"


def test_a_worker_that_is_killed_from_outside(build: Build) -> None:
    made = build("connectors:Twice")
    first = made._cell._worker.connection._process
    signal.pidfd_send_signal(first, signal.SIGKILL)
    ((_, batch),) = process(made)
    assert batch.data.column(0).to_pylist() == [0, 2, 4, 6, 8]


def test_processor_time_is_bounded_over_a_workers_life(build: Build) -> None:
    made = build("acts:Remembering", {"act": "spin"}, limits="{cpu: 1s}")
    assert "ended" in str(failure(lambda: process(made)))


def test_processor_time_is_bounded_for_each_call(build: Build) -> None:
    made = build("acts:Remembering", {"act": "spin"}, limits="{cpu_per_batch: 300ms, deadline: 50s}")
    assert "more than 0.3 s of processor time" in str(failure(lambda: process(made)))
    made.close()


def test_time_that_is_slept_is_no_processor_time(build: Build) -> None:
    made = build("acts:Remembering", {"act": "nap"}, limits="{cpu_per_batch: 200ms, deadline: 50s}")
    for _ in range(2):
        assert process(made)[0][1].data.column(0)[0].as_py() == "rested"
    made.close()


def test_recursion_and_memory_are_the_workers_own(build: Build) -> None:
    made = build("acts:Acts", {"act": "recurse"}, limits="{memory: 64MiB, deadline: 1s}")
    try:
        process(made)
    except DataflareError as error:
        assert error.code in ("plugin.crashed", "plugin.quarantined")
    except Exception as error:
        assert type(error).__name__ in ("RecursionError", "MemoryError")


@pytest.mark.parametrize("act", ["pair", "bomb", "endless"])
def test_an_answer_that_is_none(build: Build, act: str) -> None:
    made = build("acts:Lying", {"act": act}, limits="{deadline: 500ms}")
    error = failure(lambda: process(made))
    assert error.code in ("plugin.crashed", "plugin.quarantined")


def test_a_type_that_does_not_cross_becomes_the_runtimes(build: Build) -> None:
    ((_, batch),) = process(build("acts:Lying", {"act": "dictionary"}))
    assert (batch.data.schema.field("x").type, batch.data.column(0).to_pylist()) == (pa.string(), ["a", "b", "a"])


def test_an_answer_of_the_wrong_type(build: Build) -> None:
    made = build("acts:Lying", {"act": "schema"})
    assert failure(lambda: made.output_schemas({"x": ROWS.schema})).code == "plugin.crashed"
    made = build("acts:Lying", {"act": "x"})
    assert failure(lambda: made.attempt(Batch("x", ROWS), "x")).code == "plugin.crashed"


@pytest.mark.parametrize("act", ["columns", "output"])
def test_rows_that_were_not_announced_are_no_answer(build: Build, act: str) -> None:
    """Further on they would be taken by their place."""
    made = build("acts:Lying", {"act": act})
    made.output_schemas({"x": ROWS.schema})
    assert failure(lambda: process(made)).code in ("plugin.crashed", "plugin.quarantined")


def test_who_says_one_to_one_is_held_to_it(build: Build) -> None:
    made = build("acts:Losing", {"act": "x"})
    made.output_schemas({"x": ROWS.schema})
    error = failure(lambda: process(made))
    assert error.code == "plugin.crashed"
    assert "4 rows for 5" in str(error)
    assert failure(lambda: made.attempt(Batch("x", ROWS), "x")).code in ("plugin.crashed", "plugin.quarantined")


def test_a_read_that_hangs_has_the_deadline_of_a_call(build: Build) -> None:
    made = build("connectors:Numbers", {"hang": True}, limits="{deadline: 300ms}")
    (stream,) = made.discover(ExtractSpec(), None)
    reader = made.open(Partition("0", stream.name), ExtractSpec(), None)
    begun = time.monotonic()
    assert failure(lambda: reader.read(10, 1 << 20, time.monotonic() + 0.2)).code == "plugin.crashed"
    assert time.monotonic() - begun < 10


def test_a_hook_has_seconds_whatever_its_manifest_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for hooks of plugins that have no part in it."""
    asked: list[float | None] = []

    class Connection:
        def call(self, *_: Any, seconds: float | None = None) -> None:
            asked.append(seconds)

    keeper = SimpleNamespace(name="p", check=lambda: None, start=lambda *_: SimpleNamespace(connection=Connection(), close=lambda: None))
    made = Hooks(keeper, "p", ["redact"], {})  # type: ignore[arg-type]
    made.dataflare_redact("text")
    assert asked == [DEADLINE]
    assert DEADLINE <= 5


def test_a_state_and_a_long_answer_cross(build: Build) -> None:
    made, kept = build("acts:Remembering", {"act": "identity"}), dict[str, bytes]()

    def put(data: bytes) -> str:
        kept[f"ref {len(kept)}"] = data
        return f"ref {len(kept) - 1}"

    state = made.snapshot(put)
    assert (state, kept["ref 0"]) == ({"ref": "ref 0"}, b"x" * 100_000)
    made.restore(state, kept.__getitem__)
    pieces = list(made.flush())
    assert len(pieces) == 200
    assert {len(b.data.column(0)[0].as_py()) for _, b in pieces} == {100_000}


def test_what_a_step_keeps_is_not_written_over(build: Build) -> None:
    made = build("connectors:Collects")
    batches = [pa.record_batch({"n": pa.array(range(i, i + 1000 * (i % 7 + 1)), pa.int64())}) for i in range(20)]
    made.output_schemas({"x": batches[0].schema})
    for batch in batches:
        assert list(made.process(Batch("x", batch), "x")) == []
    assert [b.data for _, b in made.flush()] == batches


@pytest.mark.parametrize("shared", [True, False])
def test_a_column_that_is_handed_on_stays_where_it_is(build: Build, shared: bool) -> None:
    build("connectors:Twice")
    build.loader()._keeper.shared = shared  # type: ignore[attr-defined]
    made = build("connectors:Twice")
    data = pa.record_batch({"s": pa.array(["a", None, "c"]), "n": pa.array([1, 2, None], pa.int64())})
    for _ in range(3):
        ((_, batch),) = made.process(Batch("x", data), "x")
        assert batch.data == pa.record_batch({"s": data.column("s"), "n": pa.array([2, 4, None], pa.int64())})
        assert batch.data.column("s").buffers()[2].address == data.column("s").buffers()[2].address


def test_an_answer_that_nobody_reads_to_its_end(build: Build) -> None:
    made = build("acts:Remembering", {"act": "identity"})
    flushing = made.flush()
    assert next(flushing)[1].data.num_rows == 1
    assert process(made)[0][1].data.num_rows == 5


def test_what_a_worker_says_is_bounded_and_cleaned(build: Build, tmp_path: Path) -> None:
    ctx = Listening(tmp_path / "work")
    made = build("acts:Acts", {"act": "flood"}, ctx=ctx)
    process(made)
    assert 0 < len(ctx.lines) < 600
    ctx.lines.clear()
    made = build("acts:Acts", {"act": "escape"}, ctx=ctx)
    with pytest.raises(KeyError) as caught:
        process(made)
    assert "\x1b" not in str(caught.value)
    assert "\\x1b]0;owned\\x07 {0.__class__}" in str(caught.value)
    assert "\x1b" not in "".join(caught.value.__notes__)
    assert ("{}", ("\\x1b[2J{config} %s \\x202e",)) in ctx.lines


def test_an_error_keeps_its_class_and_its_words(build: Build) -> None:
    made = build("connectors:Twice", {"refuse": 3})
    with pytest.raises(ValueError, match=r"^3 is refused") as caught:
        process(made)
    assert (type(caught.value).__name__, str(caught.value)) == ("ValueError", "3 is refused")
    assert "connectors.py" in caught.value.__notes__[0]


def test_a_wrong_configuration_is_told_with_its_place(build: Build, tmp_path: Path) -> None:
    build("connectors:Twice")
    factory = build.loader().factory("stranger.connectors:Twice")  # type: ignore[attr-defined]
    raw = factory.configure({"colum": "n"}, ("processors", 0, "with"))
    error = failure(lambda: factory(raw, FakeContext(tmp_path / "work")))
    assert [(p.code, p.path, p.fix) for p in error.problems] == [
        ("config.unknown-key", "processors[0].with.colum", "did you mean 'column'?")
    ]


def test_the_context_answers_within_what_is_granted(build: Build, tmp_path: Path) -> None:
    ctx = Listening(tmp_path / "work")
    for ref, told in (("token", "canary-4711"), ("other", "")):
        made = build("acts:Acts", {"act": "secret", "where": ref}, ctx=ctx)
        if told:
            assert process(made)[0][1].data.column(0)[0].as_py() == told
        else:
            assert failure(lambda made=made: process(made)).code == "capability.denied"
    made = build("acts:Acts", {"act": "other"}, ctx=ctx)
    assert failure(lambda: process(made)).code == "plugin.not-isolated"


def test_a_component_of_another_kind_is_refused(build: Build) -> None:
    build("connectors:Twice")
    error = failure(lambda: build.loader().factory("stranger.acts:Other"))  # type: ignore[attr-defined]
    assert (error.code, error.exit_code) == ("plugin.not-isolated", 6)
    assert "lookup" in str(error)


def test_a_manifest_asks_for_less_and_never_for_more() -> None:
    around = Around({"memory": "1000GiB", "threads": 10**6, "deadline": "7d", "cpu": "1500ms", "open_files": 1}, {}, Path())
    assert (around.memory, around.threads, around.deadline) == (64 << 30, 256, 3600.0)
    assert (around.cpu, around.open_files, around.scratch) == (2, 32, 64 << 20)
    error = failure(lambda: Keeper("p", ([], []), {"memory": "lots"}).start({}, None))
    assert (error.code, error.problems[0].path) == ("plugin.bad-manifest", "limits")


def test_code_that_is_not_there_is_told_apart(build: Build) -> None:
    line = '  - {kind: processor, name: gone, entry: "stranger.connectors:Gone"}\n'
    assert failure(lambda: build("connectors:Gone", extra=line)).code == "plugin.entry-missing"


def test_a_machine_that_cannot_confine_is_refused_and_may_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper("p", ([], []), {})
    lacking = {"missing": {"landlock": "none"}, "canaries": {"connect": "held: EACCES"}}
    error = failure(lambda: keeper._judge(lacking, needs_broker=False))
    assert (error.code, error.exit_code) == ("plugin.not-confined", 6)
    assert "landlock (none)" in str(error)
    monkeypatch.setenv(WITHOUT, "landlock")
    keeper._judge(lacking, needs_broker=False)
    monkeypatch.setenv(WITHOUT, "seccomp")
    assert failure(lambda: keeper._judge(lacking, needs_broker=False)).code == "plugin.not-confined"
    singing = {"missing": {}, "canaries": {"connect": "it worked"}}
    assert "canary: connect (it worked)" in str(failure(lambda: keeper._judge(singing, needs_broker=False)))
    # Without a layer only the canaries that it holds may sing.
    both = {"missing": {"seccomp": "none"}, "canaries": {"udp socket": "it worked", "read a forbidden file": "it worked"}}
    error = failure(lambda: keeper._judge(both, needs_broker=False))
    assert "canary: read a forbidden file (it worked)" in str(error)
    assert "udp" not in str(error)
    no_broker = {"missing": {"broker": "old kernel"}, "canaries": {}}
    keeper._judge(no_broker, needs_broker=False)
    assert failure(lambda: keeper._judge(no_broker, needs_broker=True)).code == "plugin.not-confined"


def test_a_layer_that_fails_is_told_and_may_be_accepted_by_name(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflare_plugins.isolation_process.host import keeper

    made = keeper.confined_policy

    def broken(*arguments: Any) -> dict[str, Any]:
        policy = made(*arguments)
        return {**policy, "read": [*policy["read"], "/not/there"]}

    monkeypatch.setattr(keeper, "confined_policy", broken)
    error = failure(lambda: build("connectors:Twice"))
    assert (error.code, error.exit_code) == ("plugin.not-confined", 6)
    assert "landlock ([Errno 2]" in str(error)
    monkeypatch.setenv(WITHOUT, "landlock")
    ctx = Listening(tmp_path / "work")
    made_without = build("connectors:Twice", ctx=ctx)
    assert process(made_without)[0][1].data.column(0).to_pylist() == [0, 2, 4, 6, 8]
    assert ("isolation without landlock", True) in ctx.audited
    assert any("without the layer" in message for message, _ in ctx.lines)
    assert list(build.loader().report["missing"]) == ["landlock"]  # type: ignore[attr-defined]


def test_a_metric_has_a_bounded_number_of_names(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    questions = Questions(ctx, lambda: 0.0)
    questions.tell([["metric", f"m{i}", 1.0, {}] for i in range(400)])
    questions.tell([["metric", "m0", float("inf"), {}], ["metric", "m0"], ["exec", "x"], 5])
    assert len(ctx.metrics) == 200
    assert ctx.metrics["m0"] == 1.0


def test_text_moves_no_cursor() -> None:
    assert clean("a\tb\nc\x1b[2J\x07\u202e\ud800") == "a    b\\nc\\x1b[2J\\x07\\x202e\\xd800"
    assert clean("x" * 5000).endswith("x …")
    traced = raised({"type": "ValueError", "base": "ValueError", "text": "a\nb", "trace": "Traceback\nall is well"})
    assert "\n" not in str(traced), "a second line could look like one of ours"
    assert traced.__notes__[0].splitlines()[1:] == ["  | Traceback", "  | all is well"]


def test_one_that_dies_while_it_is_closed_is_closed(build: Build, tmp_path: Path) -> None:
    ctx = Listening(tmp_path / "work")
    made = build("acts:Acts", {"act": "die_late"}, ctx=ctx)
    process(made)
    made.close()
    assert not made._cell.alive
    assert ctx.lines[-1] == ("{}", ("the worker of the plugin 'stranger' ended",))


def test_workers_end_with_their_component(build: Build) -> None:
    made = build("connectors:Twice")
    process_handle = os.dup(made._cell._worker.connection._process)
    made.close()
    ended = select.poll()
    ended.register(process_handle, select.POLLIN)
    assert ended.poll(0), "the worker still runs"
    os.close(process_handle)


HOST = """
import os, sys, time
from pathlib import Path
from dataflare.manifest import read
from dataflare_plugins.isolation_process.loader import ProcessLoader
from dataflare_sdk.testing import FakeContext
loader = ProcessLoader(read(Path(sys.argv[1]) / "stranger" / "plugin.yaml", package="stranger"), {})
factory = loader.factory("stranger.acts:Acts")
made = factory(factory.configure({"act": "spin"}), FakeContext(Path(sys.argv[1])))
info = Path(f"/proc/self/fdinfo/{made._cell._worker.connection._process}").read_text()
print([line.split()[1] for line in info.splitlines() if line.startswith("Pid:")][0], flush=True)
from dataflare_sdk import Batch
import pyarrow as pa
made.process(Batch("x", pa.record_batch({"n": [1]})), "x")
"""


def test_workers_end_with_their_host_even_when_it_is_killed(build: Build, stranger: Path) -> None:
    build("connectors:Twice")  # skips where nothing can be confined
    host = subprocess.Popen([sys.executable, "-c", HOST, str(stranger)], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    worker = os.pidfd_open(int(host.stdout.readline()))
    host.kill()
    host.wait()
    host.stdout.close()
    ended = select.poll()
    ended.register(worker, select.POLLIN)
    assert ended.poll(30_000), "a worker in an endless loop outlived its host"
    os.close(worker)
