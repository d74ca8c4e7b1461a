import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.logs import Logs, Redactor


def test_nothing_is_written_without_a_sink_and_loguru_not_touched() -> None:
    logs = Logs(Redactor(), "debug")
    logs.bind(run="r").error("nobody hears")
    assert logs._backend is None


def test_level_labels_and_redaction() -> None:
    redactor, sink = Redactor(), io.StringIO()
    log = Logs(redactor, "info", sink).bind(run="r1", node="n1")
    redactor.add("hunter2-canary")
    log.debug("not passed")
    log.info("password is {}", "hunter2-canary")
    try:
        raise ValueError("hunter2-canary")
    except ValueError:
        log.exception("it failed")
    text = sink.getvalue()
    assert "info: password is ***  (run=r1 node=n1)" in text
    assert "Traceback" in text
    assert "ValueError: ***" in text
    assert "hunter2" not in text
    assert "not passed" not in text


def test_json_lines() -> None:
    redactor, sink = Redactor(), io.StringIO()
    redactor.add('quo"ted\\canary')
    Logs(redactor, "info", sink, json=True).bind(run="r1").warning('a quo"ted\\canary {x}', "b", x="y")
    line = json.loads(sink.getvalue())
    assert (line["level"], line["message"], line["run"]) == ("warning", "a *** y", "r1")


def test_repeats_are_held_back_and_counted() -> None:
    now, sink = [0.0], io.StringIO()
    log = Logs(Redactor(), "info", sink, repeats=2, window=10, clock=lambda: now[0]).bind()
    for i in range(100):
        log.info("row {}", i)
    log.info("another")
    assert sink.getvalue().splitlines() == ["info: row 0", "info: row 1", "info: another"]
    now[0] = 11
    log.info("row {}", 100)
    assert sink.getvalue().splitlines()[3:] == ["info: the next message came 98 more times", "info: row 100"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=4).filter(lambda s: len(s.strip("* ").strip()) >= 4))
def test_a_secret_is_found_in_every_form(secret: str) -> None:
    from urllib.parse import quote_plus

    redactor = Redactor()
    redactor.add(secret)
    for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote_plus(secret)):
        assert form not in redactor.text(f"before {form} after")
    assert redactor.value({"a": [secret]}) == {"a": ["***"]}


def test_a_failing_redact_hook_hides_everything() -> None:
    redactor = Redactor()
    redactor.ask = lambda text: [text[:3]]
    assert redactor.text("abcdef") == "***def"

    def broken(text: str) -> list[str]:
        raise ValueError(text)

    redactor.ask = broken
    assert redactor.text("anything at all") == "***"


@pytest.mark.parametrize("short", ["", "a", "abc", "   a   "])
def test_short_secrets_do_not_garble_everything(short: str) -> None:
    redactor = Redactor()
    redactor.add(short)
    assert redactor.text("a banana abc") == "a banana abc"


def test_labels_do_not_hide_what_every_record_has_and_are_redacted_whatever_they_are() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd canary-4711"

    redactor, sink = Redactor(), io.StringIO()
    redactor.add("canary-4711")
    Logs(redactor, "info", sink, json=True).bind(level="high", run="r").info("m", odd=Odd(), inner={"k": b"canary-4711"})
    line = json.loads(sink.getvalue())
    assert (line["level"], line["level_"], line["message"], line["odd"]) == ("info", "high", "m", "odd ***")
    assert "canary" not in sink.getvalue()


def test_repeats_are_counted_for_each_node_and_told_at_the_end() -> None:
    sink = io.StringIO()
    logs = Logs(Redactor(), "info", sink, repeats=1, window=10, clock=lambda: 0.0)
    for node in ("a", "b"):
        for i in range(3):
            logs.bind(node=node).info("row {} of {{x}}", i)
    logs.bind().info("once")
    logs.close()
    assert sink.getvalue().splitlines() == [
        "info: row 0 of {x}  (node=a)",
        "info: row 0 of {x}  (node=b)",
        "info: once",
        "info: held back 2 more of: row {} of {{x}}  (node=a)",
        "info: held back 2 more of: row {} of {{x}}  (node=b)",
    ]


def test_messages_that_are_over_are_forgotten() -> None:
    now, sink = [0.0], io.StringIO()
    logs = Logs(Redactor(), "info", sink, clock=lambda: now[0])
    for i in range(5000):
        now[0] += 1
        logs.bind().info(f"message {i}")
    assert len(logs._seen) <= 1000
    assert len(sink.getvalue().splitlines()) == 5000


def test_a_file_gets_what_a_library_would_say_to_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    redactor = Redactor()
    redactor.add("canary-4711")
    one, other = Logs(redactor, "info"), Logs(Redactor(), "info")
    one.to_file(tmp_path / "logs" / "one.txt")
    other.to_file(tmp_path / "other.txt")
    one.bind(run="r1").info("password {}", "canary-4711")
    try:
        raise ValueError("canary-4711")
    except ValueError:
        one.bind().exception("it failed")
    other.bind().warning("of the other")
    one.close()
    other.close()
    one.bind().error("too late")
    text = (tmp_path / "logs" / "one.txt").read_text()
    assert "info: password ***  (run=r1)" in text
    assert "ValueError: ***" in text
    assert "other" not in text
    assert "too late" not in text
    assert "of the other" in (tmp_path / "other.txt").read_text()
    assert capsys.readouterr() == ("", "")
