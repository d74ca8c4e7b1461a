"""`plugin certify`: what keeps to its contract is certified, and each way not to is found, at the level it was run at."""

import pytest
from tests.ext.strangers import Place, Said

HEAD = 'manifest: 1\nname: liar\nversion: 1.0.0\napi: ">=1,<2"\npublisher: stranger.example\nisolation: inprocess\n'
LIAR = """
import time
from dataflare_sdk import IteratorReader, RowSource, config, option

@config
class C:
    how: str = option("How it lies.")

class Liar(RowSource[C]):
    Config = C
    columns = {"a": "BIGINT", "b": "BIGINT"}
    calls = 0

    def rows(self):
        type(self).calls += 1
        for i in range(40):
            if self.config.how == "hangs" and i == 7:
                time.sleep(3600)
            yield {"a": i, "b": type(self).calls if self.config.how == "changes" else 0}

    def open(self, partition, extract, offset, until=None):
        return super().open(partition, extract, None if self.config.how == "forgets" else offset, until)
"""


def liar(place: Place, how: str, manifest: str = "", code: str = LIAR) -> None:
    """Install a plugin by hand, whose source breaks its contract in one way."""
    provides = 'provides: [{kind: source, name: liar, entry: "liar:Liar", features: [full, ordered, replayable]}]\n'
    place.write("site/liar/plugin.yaml", HEAD + (manifest or provides))
    place.write("site/liar/__init__.py", code)
    place.write("site/liar/certify.yaml", f"components: {{source/liar: {{with: {{how: {how}}}}}}}\n")
    place.write("site/liar-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: liar\nVersion: 1.0.0\n")
    place.write("site/liar-1.0.0.dist-info/entry_points.txt", "[dataflare.plugins]\nliar = liar\n")
    place.sites = [place.folder / "site"]


def checks(said: Said, status: str) -> set[str]:
    return {c["check"] for c in said.document["checks"] if c["status"] == status}


@pytest.mark.parametrize(
    ("package", "plugin"),
    [("connector", "ext-ledger"), ("state", "ext-jsonstate"), pytest.param("processor", "ext-stamp", marks=pytest.mark.soak)],
)
def test_a_good_plugin_is_certified(package: str, plugin: str, place: Place) -> None:
    place.install(package)
    said = place("plugin", "certify", plugin, "--json")
    document = said.document
    assert (said.code, document["certified"], document["failed"]) == (0, True, 0), said.out
    assert document["levels"]["inprocess"] == "run"
    assert all(how.startswith("not run") for level, how in document["levels"].items() if level != "inprocess")
    assert document["passed"] == len(checks(said, "passed")) or package == "connector"
    if package == "connector":
        killed = [c for c in document["checks"] if c["check"].startswith("survives-a-kill")]
        assert {c["component"] for c in killed} == {"source/countdown", "destination/ledger"}
        assert sum(c["status"] == "passed" for c in killed) >= 5
        assert "takes-or-refuses-a-column-more" in checks(said, "passed")
    if package == "processor":
        assert "certify.yaml says nothing of processor/map" in {c["reason"] for c in document["checks"] if c["status"] == "not run"}


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("forgets", {"resumes-after-any-offset", "reads-a-window-exactly", "survives-a-kill-at-state.log.after"}),
        ("changes", {"resumes-after-any-offset", "stops-at-until-exactly", "reads-a-window-exactly"}),
    ],
)
def test_a_source_that_does_not_keep_its_word_is_found(how: str, found: set[str], place: Place) -> None:
    liar(place, how)
    said = place("plugin", "certify", "liar", "--json", *(["--no-crashes"] if how == "changes" else []))
    assert (said.code, said.document["certified"], said.document["error"]["code"]) == (1, False, "certify.failed"), said.out
    assert found <= checks(said, "failed")
    assert {"discovers-a-schema", "manifest-says-what-the-code-says"} <= checks(said, "passed")


def test_one_that_hangs_does_not_hold_everything_up(place: Place) -> None:
    liar(place, "hangs")
    said = place("plugin", "certify", "liar", "--json", "--no-crashes", "--limit", "1")
    assert said.code == 1, said.out
    [reason] = {c["reason"] for c in said.document["checks"] if c["status"] == "failed"}
    assert reason == "it did not end within 1 s"
    assert "suite" in checks(said, "not run")


def test_what_cannot_be_checked_is_not_certified(place: Place) -> None:
    liar(place, "keeps")
    place.write("policy.yaml", "")
    untrusted = place("plugin", "certify", "liar", "--json")
    assert (untrusted.code, untrusted.document["certified"], untrusted.document["error"]["code"]) == (4, False, "certify.nothing")
    place.write("policy.yaml", "trust: [liar]\n")
    (place.folder / "site" / "liar" / "certify.yaml").unlink()
    assert place("plugin", "certify", "liar", "--json").document["error"]["code"] == "certify.bad-file"
    given = place.write("mine.yaml", "components: {source/other: {}}\n")
    said = place("plugin", "certify", "liar", "--config", str(given), "--json")
    assert (said.code, checks(said, "not run")) == (4, {"suite"})
    place.write("mine.yaml", "component: {}\n")
    assert place("plugin", "certify", "liar", "--config", str(given), "--json").document["error"]["code"] == "config.unknown-key"
    place.write("mine.yaml", "files: {../out: x}\ncomponents: {source/liar: {with: {how: x}}}\n")
    assert "outside" in place("plugin", "certify", "liar", "--config", str(given), "--json", "--no-crashes").out
    assert not (place.folder.parent / "out").exists()
    assert place("plugin", "certify", "gone", "--json").code == 3


def test_another_level_is_run_when_it_is_asked_for(place: Place, confines: None) -> None:
    """A good source keeps to its contract in a worker too."""
    liar(place, "keeps")
    said = place("plugin", "certify", "liar", "--json", "--no-crashes", "--level", "process")
    assert (said.code, said.document["levels"]) == (0, {"process": "run"}), said.out
    assert "resumes-after-any-offset" in checks(said, "passed")
    assert {c["level"] for c in said.document["checks"]} == {"process"}
    assert {"sandbox-seccomp", "sandbox-landlock", "canary-udp-socket", "canary-read-a-forbidden-file"} <= checks(said, "passed")


FORGETFUL = """
import json
from pathlib import Path
from dataflare_sdk import RowDestination, config, option

@config
class C:
    how: str = option("How it lies.")

class Liar(RowDestination[C]):
    Config = C

    def send(self, rows):
        path = Path(self.ctx.base_dir) / "out.jsonl"
        kept = path.read_text().splitlines() if path.exists() else []
        for row in rows:
            if kept and json.loads(kept[0]).keys() != row.keys():
                kept = []
            kept.append(json.dumps(row))
        path.write_text("".join(line + chr(10) for line in kept))
"""


def test_a_destination_that_forgets_its_rows_for_a_new_column_is_found(place: Place) -> None:
    provides = 'provides: [{kind: destination, name: liar, entry: "liar:Liar", features: [append]}]\n'
    liar(place, "forgets", provides, FORGETFUL)
    read = "{use: jsonl, with: {path: out.jsonl, columns: {id: BIGINT, name: VARCHAR}}}"
    place.write("site/liar/certify.yaml", f"components: {{destination/liar: {{with: {{how: forgets}}, read: {read}}}}}\n")
    said = place("plugin", "certify", "liar", "--json")
    assert said.code == 1, said.out
    [found] = [c for c in said.document["checks"] if c["check"] == "takes-or-refuses-a-column-more"]
    assert (found["status"], found["reason"]) == ("failed", "it took the column and holds 40 rows where there should be 80")


POSTER = """
import json
from urllib.request import Request, urlopen
from dataflare_sdk import RowDestination, config, option

@config
class C:
    port: int = option("Where the server is.")

class Poster(RowDestination[C]):
    Config = C

    def send(self, rows):
        rows = list(rows)
        if rows:
            body = "".join(json.dumps(row) + chr(10) for row in rows).encode()
            urlopen(Request(f"http://127.0.0.1:{self.config.port}/", body)).close()
"""
POSTER_MANIFEST = """\
manifest: 1
name: poster
version: 1.0.0
api: ">=1,<2"
publisher: stranger.example
isolation: process
provides: [{kind: destination, name: poster, entry: "poster:Poster", features: [append]}]
capabilities: {net: [{host: 127.0.0.1, port: "${config.port}", private: true}]}
"""
POSTER_CERTIFICATE = """\
components:
  destination/poster:
    receive: {port: port, into: received.jsonl}
    read: {use: jsonl, with: {path: received.jsonl, columns: {id: BIGINT, name: VARCHAR}}}
"""


def test_a_destination_that_sends_over_http(place: Place, confines: None) -> None:
    """A server stands for its system; what was granted and denied here holds in the workflows that are killed, too."""
    place.write("site/poster/plugin.yaml", POSTER_MANIFEST)
    place.write("site/poster/__init__.py", POSTER)
    place.write("site/poster/certify.yaml", POSTER_CERTIFICATE)
    place.write("site/poster-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: poster\nVersion: 1.0.0\n")
    place.write("site/poster-1.0.0.dist-info/entry_points.txt", "[dataflare.plugins]\nposter = poster\n")
    place.sites = [place.folder / "site"]
    refused = place("plugin", "certify", "poster", "--json")
    assert (refused.code, refused.document["error"]["code"]) == (4, "certify.nothing"), "nobody had granted it"
    assert place("plugin", "grant", "poster", "--private").code == 0
    said = place("plugin", "certify", "poster", "--json")
    assert (said.code, said.document["failed"]) == (0, 0), said.out
    assert {"shows-everything-after-commit", "runs-in-a-workflow", "survives-a-kill-at-task.sink.committed"} <= checks(said, "passed")
    place.write("policy.yaml", "deny: ['poster:net']\n")
    denied = place("plugin", "certify", "poster", "--json")
    assert {"shows-everything-after-commit", "runs-in-a-workflow"} <= checks(denied, "failed"), denied.out
