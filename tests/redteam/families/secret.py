"""Secrets that a plugin was handed, and tries to leave where others read: the log, errors, metrics, dead letters, the state."""

from __future__ import annotations

import json

from tests.redteam import control
from tests.redteam.bench import Bench, Done, Seen, judged
from tests.redteam.families import case, parts

CAPABILITIES = "capabilities: {secrets: [{ref: SECRET}], state: {max_bytes: 1MiB}}\n"
CODE = '''
import json
import urllib.parse


class Attacker(Processor[Order]):
    """Attacks."""

    Config = Order
    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        self.secret = self.config.token or self.ctx.secret("SECRET")
        if self.config.how == "plan":
            raise ValueError(f"cannot log in with {self.secret}")
        return {"": pa.schema([(self.secret if self.config.how == "column" else "n", pa.string())])}

    def lineage(self):
        return {"": {"n": [("s", "n")]}}

    def process(self, batch, input):
        how, secret = self.config.how, self.secret
        self.ctx.log.error("begun")
        if how == "log":
            self.ctx.log.error(f"token {secret}")
            self.ctx.log.error(json.dumps({"token": secret}) + urllib.parse.quote(secret) + repr(secret))
            print("token", secret)
        if how == "metric":
            self.ctx.metric(secret, 1.0)
            self.ctx.metric("seen", 1.0, label=secret)
        if how == "error":
            raise RuntimeError(f"cannot log in with {secret}")
        if how == "problem":
            raise DataflareError(Problem("redteam.owned", f"no {secret}", secret, 1, 1, secret, f"try {secret}"))
        yield "", batch.with_data(pa.record_batch([pa.array(["x"] * batch.data.num_rows)], names=[secret if how == "column" else "n"]))
'''


def attacked(bench: Bench, how: str, *args: str, token: bool = False, errors: str = "fail") -> Done:
    """Run a workflow whose step was granted a secret, or is handed one by its configuration."""
    parts.step(bench, CODE, more=CAPABILITIES)
    entry = {"version": "1.0.0", "capabilities": {"secrets": [{"ref": "SECRET"}], "state": {"max_bytes": "1MiB"}}}
    (bench.work / "dataflare.lock").write_text(json.dumps({"plugins": {"redteam": entry}}))
    bench.workflow("attacker", {"how": how, **({"token": "${secret:SECRET}"} if token else {})}, errors=errors)
    return bench.dataflare(*(args or ("run", "workflow.json", "-v")))


def judge(bench: Bench, done: Done, *, began: bool = True) -> Seen:
    """Tell what came of a secret: nothing that was printed, and no file beside the workflow, has it; the run may fail."""
    seen = judged(bench, done)
    if began and "begun" not in done.err:
        return Seen("broken", f"the attack did not begin: {(done.out + done.err)[-300:]}")
    return parts.may_fail(seen, done)


def _secret(
    name: str, what: str, how: str, *args: str, token: bool = False, errors: str = "fail", text: str = "token {secret}", began: bool = True
) -> None:
    def attack(bench: Bench) -> Seen:
        done = attacked(bench, how, *args, token=token, errors=errors)
        seen = judge(bench, done, began=began)
        if seen.outcome != "denied" or errors == "fail":
            return seen
        return judge(bench, bench.dataflare("dlq", "show", "workflow.json"), began=False)

    attack.__name__, attack.__doc__ = f"secret_{name}", what
    case("secrets", "denied", lambda: control.run_with("print-a-secret", {"text": text}))(attack)


_secret("in_the_log", "Log a secret: as it is, and as JSON, URLs and Python write it.", "log")
_secret("in_the_log_as_json", "Log a secret where the log is JSON.", "log", "run", "workflow.json", "--json", "-v")
_secret("of_the_configuration", "Log a secret that the configuration handed over.", "log", token=True)
_secret("in_an_error", "Fail with a secret in the message.", "error", text="cannot log in with {secret}")
_secret("in_an_error_as_json", "Fail with a secret, where the answer is JSON.", "error", "run", "workflow.json", "--json", "-v")
_secret("in_a_problem", "Fail with a secret in every part of a problem.", "problem")
_secret("in_a_dead_letter", "Refuse a row with a secret in the reason, and have the letter shown.", "error", errors="dead_letter")
_secret("in_a_metric", "Count under a secret as a name, and as a label.", "metric", "run", "workflow.json", "--json", "-v")
_secret("while_planning", "Fail with a secret before the run.", "plan", "validate", "workflow.json", began=False)
_secret("in_a_plan", "Name a column like a secret, which a plan shows.", "column", "plan", "workflow.json", "--json", began=False)
_secret("in_the_state", "Use a secret and leave nothing of it beside the workflow: no plan, no lineage, no count.", "good", token=True)
