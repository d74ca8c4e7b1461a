"""Manifests that lie: about who they are, what they can, where their code lies, and bombs in what is read before anything is run."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.plugins.isolation_wasm.building import GUESTS, built
from tests.plugins.isolation_wasm.server import serving
from tests.redteam import control
from tests.redteam.bench import FORGED, Bench, Done, Seen, judged
from tests.redteam.families import case
from tests.redteam.families.parts import HEAD

STEP = '  - {kind: processor, name: attacker, entry: "redteam:Attacker", summary: "Attacks", features: [rowwise]}\n'
WASM = '  - {kind: processor, name: attacker, entry: attacker.wasm, summary: "Attacks", features: [rowwise], config: attacker.json}\n'
CODE = '''
import pyarrow as pa

from dataflare_sdk import Processor, config, option, verb


def attack(read=None):
    """Leave a mark, or read what is not ours."""
    try:
        if read:
            with open(read + "/secret") as file:
                return file.read()
        with open({path!r}, "w"):
            return "written"
    except OSError as error:
        return "stopped: " + type(error).__name__


attack()  # at the import, too


@config
class Order:
    """Where."""

    folder: str = option("A folder.", default={folder!r})


class Attacker(Processor[Order]):
    """Attacks."""

    Config = Order
    features = frozenset({features})

    def output_schemas(self, inputs):
        return {{"": pa.schema([("said", pa.string())])}}

    def process(self, batch, input):
        rows = batch.data.num_rows - {fewer}
        return [("", batch.with_data(pa.record_batch({{"said": [attack({read})] * rows}})))]


def squatted(*_args, **_more):
    attack()
'''


def code(bench: Bench, *, read: str = "None", fewer: int = 0, features: str = "{'rowwise'}") -> dict[str, str | bytes]:
    """Return the code of a plugin that leaves a mark wherever it is run, unless something stops it."""
    (bench.hidden / "secret").write_text(bench.secret)
    text = CODE.format(path=str(bench.written), folder=str(bench.hidden), read=read, fewer=fewer, features=features)
    return {"__init__.py": text.replace(", verb\n", "\n")}


def judge(bench: Bench, done: Done, *codes: str, begun: bool = True) -> Seen:
    """Tell what came of a manifest; one that was taken must have run where its code could do nothing."""
    seen = judged(bench, done, codes, memory=600 << 20)
    said = [r.get("said", "") for r in bench.rows]
    if any("written" in s for s in said):
        return Seen("breached", f"{said}")
    return (
        Seen("broken", f"its code did not run: {said}")
        if seen.outcome == "denied" and begun and not any("stopped" in s for s in said)
        else seen
    )


def check(how: str, manifest: str, *, packages: tuple[str, ...] = ("yaml",), **more: str) -> Callable[[], control.Outcome]:
    """Return the control that reads the very manifest as somebody does who believes it."""
    return lambda: control.run_with(how, {"manifest": manifest, **more}, packages)


def _claim(name: str, what: str, manifest: str, policy: str, believed: str, *codes: str, dist: str = "redteam") -> None:
    """Make a case of a manifest that says it is somebody else."""

    def attack(bench: Bench) -> Seen:
        bench.install(dist, manifest, {})
        folder = bench.site / dist.replace("-", "_")
        if dist != "redteam":
            folder.rename(bench.site / "redteam")
            (bench.site / "redteam").rename(folder)
        for file, text in code(bench).items():
            (folder / file).write_text(str(text))
        (bench.work / "policy.yaml").write_text(policy)
        bench.workflow("attacker")
        return judge(bench, bench.run_workflow(), *codes)

    attack.__name__, attack.__doc__ = f"manifest_{name}", what
    case("manifest", "refused" if codes else "denied", check("believe-a-manifest", manifest, policy=policy, believed=believed))(attack)


ASKS = "capabilities: {secrets: [{ref: SECRET}]}\n"
OTHER = HEAD.replace("name: redteam", "name: acme") + "provides:\n" + STEP
OURS = HEAD.replace("redteam.example", "dataflare") + "provides:\n" + STEP
LABEL = HEAD.replace("redteam.example", "dataflare.evil.example") + "provides:\n" + STEP
CLAIMED = HEAD.replace("redteam.example", "acme.example") + "provides:\n" + STEP
_claim(
    "name_of_another",
    "Have another name than the distribution it came in.",
    OTHER,
    "trust: [acme]\nisolation: {acme: inprocess}\n",
    "name",
    "plugin.unknown",
)
_claim("publisher_dataflare", "Say that DataFlare made it.", OURS, "{}\n", "publisher", "plugin.unknown")
_claim(
    "publisher_below_dataflare",
    "Say that somebody made it whose name begins like DataFlare's.",
    LABEL,
    "{}\n",
    "publisher",
    "plugin.unknown",
)
_claim("publisher_that_is_trusted", "Say that a publisher made it whom the policy trusts, without a signature.", CLAIMED + ASKS, "trust: [acme.example]\n", "publisher", "plugin.not-granted")  # fmt: skip
_claim(
    "publisher_in_process",
    "Say that a publisher made it whose plugins may run in the host's process.",
    CLAIMED,
    "isolation: {acme.example: inprocess}\n",
    "publisher",
)
_claim(
    "asks_for_the_host_s_process",
    "Ask to be run in the host's own process.",
    HEAD + "isolation: inprocess\nprovides:\n" + STEP,
    "trust: [installed]\n",
    "isolation",
)


def _believed(manifest: str, believed: str) -> Callable[[], control.Outcome]:
    return check("believe-a-manifest", manifest, policy="{}", believed=believed)


PLAIN = HEAD + "isolation: process\nprovides:\n" + STEP


@case("manifest", "denied", _believed(PLAIN, "distribution"))
def manifest_distribution_that_begins_like_ours(bench: Bench) -> Seen:
    """Come in a distribution named `dataflare evil`, whose first word is the name of what is built in."""
    bench.install(
        "dataflare-evil",
        PLAIN.replace("name: redteam", "name: dataflare-evil")
        .replace("isolation: process", "isolation: inprocess")
        .replace("redteam:Attacker", "dataflare_evil:Attacker"),
        code(bench),
    )
    (bench.site / "dataflare_evil-1.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: dataflare evil\nVersion: 1.0.0\n")
    bench.workflow("attacker")
    return judge(bench, bench.run_workflow())


@case("manifest", "denied", check("open-what-a-manifest-names", PLAIN, file="secret"))
def manifest_default_for_a_folder(bench: Bench) -> Seen:
    """Ask for the folder that the configuration names, and name one by a default of the plugin's own."""
    asks = "capabilities: {fs: [{path: '${config.folder}', mode: ro, why: input}]}\n"
    bench.install("redteam", PLAIN + asks, code(bench, read="self.config.folder"))
    (bench.work / "policy.yaml").write_text("trust: [redteam]\n")
    bench.workflow("attacker")
    return judge(bench, bench.run_workflow())


@case(
    "manifest",
    "refused",
    check(
        "believe-a-manifest", HEAD + "provides:\n" + STEP.replace("[rowwise]", "[rowwise, one_to_one]"), policy="{}", believed="features"
    ),
)
def manifest_says_one_to_one(bench: Bench) -> Seen:
    """Say that every row gives one row, and leave one out: no row may be lost without a word."""
    manifest = PLAIN.replace("[rowwise]", "[rowwise, one_to_one]")
    bench.install("redteam", manifest, code(bench, fewer=1, features="{'rowwise', 'one_to_one'}"))
    bench.workflow("attacker")
    return judge(bench, bench.run_workflow(), "plugin.crashed", "plugin.quarantined")


SOURCE = """
import os

import pyarrow as pa

from dataflare_sdk import NoConfig, RowSource


class Attacker(RowSource):
    \"\"\"Says that it gives the same again.\"\"\"

    Config = NoConfig
    columns = {"a": "BIGINT", "b": "VARCHAR"}

    def rows(self):
        for i in range(200):
            yield {"a": i, "b": os.urandom(4).hex()}
"""


@case("manifest", "refused", lambda: control.run_with("resume-where-a-source-stopped", {}))
def manifest_says_replayable(bench: Bench) -> Seen:
    """Say that rows can be read again, and give others: no run can see that, so it is what certifying is for."""
    provides = '  - {kind: source, name: attacker, entry: "redteam:Attacker", features: [full, ordered, replayable]}\n'
    bench.install(
        "redteam",
        HEAD + "isolation: process\nprovides:\n" + provides,
        {"__init__.py": SOURCE, "certify.yaml": "components: {source/attacker: {}}\n"},
    )
    done = bench.dataflare("plugin", "certify", "redteam", "--no-crashes", "--json", timeout=180)
    seen = judged(bench, done, ("certify.failed",))
    found = {c["check"] for c in json.loads(done.out)["checks"] if c["status"] == "failed"}
    return seen if seen.outcome != "refused" or "resumes-after-any-offset" in found else Seen("broken", f"{found}")


def _entry(name: str, what: str, entry: str, *codes: str) -> None:
    def attack(bench: Bench) -> Seen:
        (bench.site / "outside.wasm").write_bytes(built(GUESTS / "identity.c"))
        manifest = HEAD + "isolation: wasm\nprovides:\n" + WASM.replace("attacker.wasm", entry).replace(", config: attacker.json", "")
        bench.install("redteam", manifest, {})
        bench.workflow("attacker")
        return judge(bench, bench.run_workflow(), *codes)

    attack.__name__, attack.__doc__ = f"manifest_{name}", what
    case("manifest", "refused", check("open-what-a-manifest-names", HEAD, file=entry))(attack)


_entry("entry_by_dots", "Name a module beside the plugin's folder.", "../outside.wasm", "wasm.invalid-module")
_entry(
    "entry_by_a_path", "Name a module by a path from the root.", "/tmp/world/hidden/secret", "wasm.invalid-module", "plugin.bad-manifest"
)


@case("manifest", "refused", check("import-what-a-manifest-names", HEAD, entry="shutil:rmtree"))
def manifest_entry_of_the_standard_library(bench: Bench) -> Seen:
    """Name a function of Python's own as the component, to be called with the configuration."""
    bench.install("redteam", HEAD + "provides:\n" + STEP.replace("redteam:Attacker", "shutil:rmtree"), code(bench))
    bench.workflow("attacker", {"path": str(bench.hidden)})
    return judge(
        bench, bench.run_workflow(), "plugin.entry-missing", "plugin.crashed", "plugin.not-isolated", "plugin.quarantined", "internal.bug"
    )


# -- schemas of a configuration --------------------------------------------------------------------------------

JSONSCHEMA = ("jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "attrs", "typing_extensions", "yaml")
DOUBLING = {
    "$ref": "#/$defs/a0",
    "$defs": {**{f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}, "a40": {"type": "object"}},
}
PATTERN = {"properties": {"do": {"type": "string", "pattern": "^(a+)+$"}}}


def schema(bench: Bench, made: object, do: str = "good") -> Done:
    """Run a workflow with a module whose configuration is held to a schema."""
    files: dict[str, str | bytes] = {"attacker.wasm": built(GUESTS / "unruly.c"), "attacker.json": json.dumps(made)}
    bench.install("redteam", HEAD + "isolation: wasm\nprovides:\n" + WASM, files)
    bench.workflow("attacker", {"do": do}, {"n": "i", "s": "'x'"})
    return bench.run_workflow()


@case("manifest", "refused", check("follow-a-reference", HEAD))
def manifest_schema_that_refers_elsewhere(bench: Bench) -> Seen:
    """Refer from the schema of a configuration to a document on a server."""
    with serving() as server:
        done = schema(bench, {"$ref": f"http://127.0.0.1:{server.port}/schema.json"})
        bench.heard += [bench.mark for _ in server.asked]
        return judge(bench, done, "wasm.invalid-module")


@case("manifest", "refused", check("check-by-a-schema", HEAD, packages=JSONSCHEMA, schema=json.dumps(DOUBLING), value='{"do": "good"}'))
def manifest_schema_that_doubles_itself(bench: Bench) -> Seen:
    """Refer from every part of a schema twice to the next: forty lines take for ever."""
    return judge(bench, schema(bench, DOUBLING), "config.invalid")


SLOW = "a" * 60 + "!"


@case(
    "manifest", "refused", check("check-by-a-schema", HEAD, packages=JSONSCHEMA, schema=json.dumps(PATTERN), value=json.dumps({"do": SLOW}))
)
def manifest_schema_with_a_slow_pattern(bench: Bench) -> Seen:
    """Bring a pattern that takes for ever on sixty letters: it is not run, and the module itself refuses the value."""
    return judge(bench, schema(bench, PATTERN, SLOW), "wasm.bad-config")


# -- bombs in the manifest itself: whoever lists plugins reads it -----------------------------------------------


def _bomb(name: str, what: str, manifest: str, how: str = "read-a-manifest", **more: str) -> None:
    def attack(bench: Bench) -> Seen:
        bench.install("redteam", manifest.replace("/tmp/world/hidden/new", str(bench.written)), code(bench))
        listed = bench.dataflare("plugin", "list", "--json", timeout=30)
        helped = bench.dataflare("--help", timeout=30)
        seen = judged(bench, listed, memory=400 << 20)
        if seen.outcome != "denied":
            return seen
        if helped.code != 0 or "redteam" not in json.dumps(json.loads(listed.out).get("broken", [])):
            return Seen("broken", f"{listed.out[-200:]} {helped.err[-200:]}")
        bench.workflow("attacker")
        return judge(bench, bench.run_workflow(), "plugin.unknown")

    attack.__name__, attack.__doc__ = f"manifest_{name}", what
    case("manifest", "refused", check(how, manifest, **more))(attack)


ALIASES = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9) if i else ', '.join('x' * 9)}]\n" for i in range(12))
_bomb(
    "aliases",
    "Double a list again and again by aliases.",
    HEAD + "limits:\n" + "".join("  " + line + "\n" for line in ALIASES.splitlines()),
)
_bomb("that_holds_itself", "Be a list that holds itself.", HEAD + "limits: {a: &a [*a, *a]}\n", "walk-through-a-manifest")
_bomb("deep", "Nest three thousand lists.", HEAD + "limits: " + "[" * 3_000 + "]" * 3_000 + "\n", "write-an-index")
_bomb("slow_version", "Have a version that takes hours to be looked at.", HEAD.replace("1.0.0", "1" * 300_000 + "!"), "match-a-version")
_bomb(
    "huge_number", "Have a number that Python refuses to write down.", HEAD + "limits: {memory: 0x" + "f" * 5_000 + "}\n", "write-an-index"
)
_bomb("huge_key", "Have a key that Python refuses to write down.", HEAD + "limits: {? 0x" + "f" * 5_000 + " : 1}\n", "write-an-index")
_bomb("object", "Have an object of Python's made, which runs a program.", HEAD + "limits: !!python/object/apply:os.system ['touch /tmp/world/hidden/new']\n", "make-objects")  # fmt: skip
_bomb("second_line", "Add a line to the question on a terminal, which says that all is well.", HEAD + "capabilities: {secrets: [{ref: T, why: \"log in)\\n" + FORGED + '"}]}\n', "tell-the-reasons")  # fmt: skip
_bomb(
    "escape_sequence",
    "Clear the terminal from a reason.",
    HEAD + 'capabilities: {secrets: [{ref: T, why: "\\e[2Jlog in"}]}\n',
    "tell-the-reasons",
)


# -- names that are taken ----------------------------------------------------------------------------------------


def squats(bench: Bench, provides: str, dist: str = "redteam") -> None:
    """Install a plugin that provides what is built in."""
    head = HEAD.replace("name: redteam", f"name: {dist}")
    bench.install(dist, head + ("provides:\n" + provides if provides else ""), code(bench))
    (bench.work / "policy.yaml").write_text("trust: [installed]\n")


def last_wins(name: str) -> Callable[[], control.Outcome]:
    """Return the control in which whoever comes last has the name."""
    return check("take-the-last", HEAD, name=name)


@case("manifest", "refused", last_wins("dataflare-files"))
def manifest_name_of_a_built_in(bench: Bench) -> Seen:
    """Take the name of a plugin that is built in, as a package on the path."""
    squats(bench, STEP.replace("redteam:", "dataflare_files:"), "dataflare-files")
    bench.workflow("attacker")
    return judge(bench, bench.run_workflow(), "plugin.unknown")


@case("manifest", "denied", last_wins("filter"))
def manifest_step_of_a_built_in(bench: Bench) -> Seen:
    """Provide a step with the name of one that is built in."""
    squats(bench, STEP.replace("name: attacker", "name: filter"))
    bench.workflow("filter", {"where": "n > 0"})
    seen = judge(bench, bench.run_workflow(), begun=False)
    return seen if seen.outcome != "denied" or len(bench.rows) == 2 else Seen("breached", f"{bench.rows}")


@case("manifest", "denied", last_wins("run"))
def manifest_verb_of_a_built_in(bench: Bench) -> Seen:
    """Provide the verb `run`, and describe it."""
    squats(bench, '  - {kind: command, name: run, entry: "redteam:squatted", summary: "Owned by the red team"}\n')
    bench.workflow("filter", {"where": "n > 0"})
    helped = bench.dataflare("--help")
    if "Owned" in helped.out:
        return Seen("breached", "a stranger describes a verb that is built in")
    return judge(bench, bench.run_workflow(), begun=False)


@case("manifest", "denied", last_wins("plugin"))
def manifest_verb_of_the_kernel(bench: Bench) -> Seen:
    """Provide the verbs `plugin` and `plugin list`, by which strangers are looked at."""
    lines = [
        f'  - {{kind: command, name: {n}, entry: "redteam:squatted", summary: "Owned by the red team"}}\n'
        for n in ("plugin", "plugin-list", "plugin-inspect")
    ]
    squats(bench, "".join(lines))
    helped = [bench.dataflare("--help"), bench.dataflare("plugin", "--help")]
    if any("Owned" in h.out for h in helped):
        return Seen("breached", "a stranger describes a verb that is built in")
    looked = bench.dataflare("plugin", "inspect", "redteam")
    seen = judged(bench, looked)
    return seen if seen.outcome != "denied" or "asks for nothing" in looked.out else Seen("broken", looked.out)
