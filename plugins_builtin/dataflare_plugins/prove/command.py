"""`dataflare prove`: kill a workflow again and again on scratch systems, and compare row for row."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflare_sdk.commands import Invocation, verb

if TYPE_CHECKING:
    from dataflare_plugins.prove.proof import Proof


@click.command("prove")
@click.argument("file", default="dataflare.yaml", metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("--kills", default=50, show_default=True, type=click.IntRange(min=1), help="How many SIGKILLs.")
@click.option("--each", default=1, show_default=True, type=click.IntRange(min=1), help="How many of them at every failpoint, at least.")
@click.option("--seed", default=1, show_default=True, help="The same seed draws the same kills and writes.")
@click.option("--list", "listed", is_flag=True, help="Only name the failpoints the workflow passes.")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Give a parameter.")
@click.option("--profile", metavar="NAME", help="Lay a profile of the file over it.")
@verb
def prove(
    call: Invocation, file: Path, kills: int, each: int, seed: int, listed: bool, params: tuple[str, ...], profile: str | None
) -> int:
    """Prove that a workflow loses and doubles nothing: on scratch systems of its own, never on those it names."""
    from dataflare_plugins.prove.proof import Proof

    script = file.with_suffix(".sql")
    root = Path(tempfile.mkdtemp(prefix="df-prove-"))
    root.chmod(0o755)
    try:
        with call.runtime(file.parent, profile=profile) as runtime:
            workflow = runtime.parse(file, _params(params), profile)
            text = script.read_text(encoding="utf-8") if script.exists() else None
            tell = lambda sentence: call.say(sentence, err=True)  # noqa: E731
            proof = Proof(runtime, workflow, root, kills=kills, each=each, seed=seed, script=text, tell=tell)
            try:
                passed = proof.rehearse()
                return _list(call, passed) if listed else _prove(call, proof, passed)
            finally:
                proof.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _params(given: tuple[str, ...]) -> dict[str, str]:
    made = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="-p")
        made[name] = value
    return made


def _list(call: Invocation, passed: dict[str, int]) -> int:
    call.emit({"dataflare": 1, "command": "prove", "failpoints": passed})
    if not call.json:
        for name, count in passed.items():
            call.say(f"{count:>7}  {name}")
    return 0


def _prove(call: Invocation, proof: Proof, passed: dict[str, int]) -> int:
    proof.kill(passed)
    document = proof.document()
    call.emit(document)
    if not call.json:
        _tell(call, document, proof.schedule.missing())
    return 0 if proof.proven() else 1


def _tell(call: Invocation, document: dict[str, Any], missing: list[str]) -> None:
    """Tell a person how it went."""
    rows, lost, extra = document["rows"], document["lost"], document["duplicated"]
    told = f"{document['kills']} kills in {document['runs']} runs, {document['rounds']} rounds, seed {document['seed']}"
    call.say(f"{document['workflow']}: {told}")
    call.say(f"rows expected {rows['expected']:,}, found {rows['found']:,}: {lost:,} lost, {extra:,} duplicated")
    for name, hits in document["failpoints"].items():
        call.say(f"{hits:>7}  {name}{'   not hit often enough' if name in missing else ''}")
    for one in document["differences"]:
        call.say(f"  {one['what']} in {one['destination']}: {one['row']}")
    proven = not document["lost"] and not document["duplicated"] and not missing
    call.say("proven: nothing lost, nothing twice" if proven else "NOT PROVEN")
