"""Text of a stranger on its way to a terminal or a log: it clears nothing, turns nothing around, and no line of it looks like ours."""

from __future__ import annotations

from collections.abc import Callable

from tests.redteam import control
from tests.redteam.bench import FORGED, Bench, Done, Seen, judged
from tests.redteam.families import case, parts

TEXT = "\x1b[2J\x1b]0;owned\x07 \u202e\x9b1m\n" + FORGED
SAID = f"\nTEXT = {TEXT!r}\n"
CODE = '''

class Attacker(Processor[Order]):
    """Attacks."""

    Config = Order
    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        if self.config.how == "schema":
            raise ValueError(TEXT)
        return {"": pa.schema([(TEXT if self.config.how == "column" else "said", pa.string())])}

    def notes(self):
        return [TEXT] if self.config.how == "note" else []

    def process(self, batch, input):
        how, rows = self.config.how, batch.data.num_rows
        if how == "log":
            self.ctx.log.error(TEXT)
        if how == "print":
            print(TEXT)
        if how == "metric":
            self.ctx.metric(TEXT, 1.0)
            self.ctx.metric("seen", 1.0, label=TEXT)
        if how == "error":
            raise type(TEXT, (RuntimeError,), {})(TEXT)
        if how == "problem":
            raise DataflareError(Problem("redteam.owned", TEXT, TEXT, 1, 1, TEXT, TEXT))
        yield "", batch.with_data(pa.record_batch([pa.array([TEXT] * rows)], names=[TEXT if how == "column" else "said"]))
'''


def attacked(bench: Bench, how: str, *args: str) -> Done:
    """Run a workflow whose step says what acts on a terminal, as a person sees it."""
    parts.step(bench, SAID + CODE)
    bench.workflow("attacker", {"how": how})
    return bench.dataflare(*(args or ("run", "workflow.json", "-v")))


def judge(bench: Bench, done: Done) -> Seen:
    """Tell what came of a text: it may be shown, as long as nothing of it acts and no line begins with its words."""
    return parts.may_fail(judged(bench, done), done)


def _text(name: str, what: str, how: str, *args: str, said: bool = True) -> None:
    def attack(bench: Bench) -> Seen:
        done = attacked(bench, how, *args)
        seen = judge(bench, done)
        return (
            Seen("broken", f"it was not said: {(done.out + done.err)[-300:]}")
            if said and seen.outcome == "denied" and FORGED not in done.out + done.err
            else seen
        )

    attack.__name__, attack.__doc__ = f"terminal_{name}", what
    case("terminal", "denied", PRINTED)(attack)


PRINTED: Callable[[], control.Outcome] = lambda: control.run_with("print-as-it-is", {"text": TEXT})  # noqa: E731
_text("log", "Write a message into the log that clears the terminal and adds a line.", "log")
_text("print", "Print it on the plugin's own standard output.", "print")
_text("error", "Fail with it, by an exception that is named like it.", "error")
_text("problem", "Fail with it in every part of a problem: message, file, path, advice.", "problem")
_text("error_while_planning", "Fail with it before the run.", "schema", "run", "workflow.json", "-v")
_text("error_of_validate", "Fail with it when the workflow is checked.", "schema", "validate", "workflow.json")
_text("note", "Give it as a note of the plan.", "note", "validate", "workflow.json", said=False)
_text("metric", "Count under it as a name, and as a label.", "metric", said=False)
_text("column", "Name a column like it.", "column", "preview", "workflow.json", "p", said=False)
_text("values", "Give it as a value, which a preview shows.", "values", "preview", "workflow.json", "p")
_text("plan", "Name a column like it, which a plan shows.", "column", "plan", "workflow.json", said=False)


@case("terminal", "denied", PRINTED)
def terminal_dead_letter(bench: Bench) -> Seen:
    """Refuse a row with it, and have the letter shown."""
    parts.step(bench, SAID + CODE)
    bench.workflow("attacker", {"how": "error"}, errors="dead_letter")
    ran = bench.dataflare("run", "workflow.json")
    shown = bench.dataflare("dlq", "show", "workflow.json")
    seen = judge(bench, ran)
    return seen if seen.outcome != "denied" else judge(bench, shown)


@case("terminal", "denied", PRINTED)
def terminal_version_of_a_distribution(bench: Bench) -> Seen:
    """Be a distribution whose version clears the terminal and adds a line to the list of plugins."""
    parts.step(bench, SAID + CODE)
    info = bench.site / "redteam-1.0.0.dist-info" / "METADATA"
    info.write_text(f"Metadata-Version: 2.1\nName: redteam\nVersion: 1.0\x1b[2J\u202e\n {FORGED}\n")
    listed = bench.dataflare("plugin", "list")
    seen = judge(bench, listed)
    return seen if seen.outcome != "denied" or "redteam" in listed.out + listed.err else Seen("broken", listed.err)


@case("terminal", "denied", PRINTED)
def terminal_name_that_is_not_there(bench: Bench) -> Seen:
    """Have somebody look at a plugin by a name that acts on the terminal, as a page may tell him to."""
    return judge(bench, bench.dataflare("plugin", "inspect", "\x1b[2J\u202e\x9b1m" + "\n" + FORGED))
