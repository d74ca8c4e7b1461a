"""Runs one attack as a stranger's plugin would: in a workflow, at an isolation level, by the runtime itself.

What the attack is after is made for the occasion, outside of the sandbox: a secret in a file, a victim that runs, servers on
loopback. The run is a process of its own, so that what ends it does not end us.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tests.redteam.attacks import OVER, Attack

from dataflare_sdk.servers import as_user

HERE = Path(__file__).parent
MIB = 1 << 20
MANIFEST = """\
manifest: 1
name: redteam
version: 1.0.0
api: ">=1,<2"
publisher: redteam.example
isolation: process
provides:
  - {kind: processor, name: attacker, entry: "redteam_plugin:Attacker", summary: "Attacks", features: [rowwise]}
hooks: []
capabilities:
  fs: [{path: "${config.granted}", mode: ro, why: "the folder it may read"}, {path: "${config.out}", mode: rw, why: "the one it may write"}]
limits: {memory: 768MiB, deadline: DEADLINE, open_files: 128, threads: 16, file: 64MiB}
"""
DEADLINES = {"never-return": "1s", "sleep-for-ever": "1s"}
"""Deadlines of the attacks that only a deadline stops, and that are tried again before the run is given up; of others it is 4 s."""
CODE = '''
import json
import types

import pyarrow as pa

from dataflare_sdk import Processor, config, option


@config
class Order:
    """What to do."""

    name: str = option("The attack.")
    granted: str = option("A folder that may be read.")
    out: str = option("A folder that may be written.")
    target: str = option("JSON.")


class Attacker(Processor[Order]):
    """Attacks."""

    Config = Order
    features = frozenset({"rowwise"})

    def output_schemas(self, inputs):
        return {"": pa.schema([("said", pa.string())])}

    def process(self, batch, input):
        from redteam_plugin import attacks

        target = types.SimpleNamespace(**json.loads(self.config.target))
        with open(self.config.out + "/begun", "w") as begun:  # an attack that was not made has not been stopped
            begun.write("yes")
        try:
            said = attacks.load()[self.config.name].run(target)
        except Exception as error:
            said = f"stopped: {type(error).__name__}: {error}"
        yield "", batch.with_data(pa.record_batch({"said": pa.array([said[:50_000]] * batch.data.num_rows)}))
'''


class Seen(NamedTuple):
    """What came of an attack on the sandbox.

    Attributes:
        outcome: `denied` (it was stopped and said so), `contained` (its process or the run was ended, with an error that has a
            code), `breached`, or `broken`: something else went wrong.
        detail: a line for people.
    """

    outcome: str
    detail: str


class Outside:
    """What an attack is after."""

    def __init__(self, root: Path) -> None:
        self.secret, self.mark = "secret-" + secrets.token_hex(8), "mark-" + secrets.token_hex(8)
        self.root = root
        self.heard: list[str] = []
        for name in ("granted", "out", "hidden"):
            (root / name).mkdir()
        self.hidden = root / "hidden"
        (self.hidden / "secret").write_text(self.secret)
        for name in ("victim", "code"):
            (self.hidden / name).write_text("as it was")
        env = {"SECRET": self.secret}
        sleeper = [shutil.which("sleep") or "/bin/sleep", "120"]
        self.victim = subprocess.Popen(sleeper, env=env, start_new_session=True, **as_user())
        self.servers = self._serve()
        # Permissions of files are not what is tested: whoever the plugin runs as could read all of it.
        for path in [root, *root.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)

    def _serve(self) -> dict[str, Any]:
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(str(self.hidden / "socket"))
        name = "df-redteam-" + secrets.token_hex(4)
        abstract.bind("\0" + name)
        tcp = socket.create_server(("127.0.0.1", 0))
        tcp.setsockopt(socket.IPPROTO_TCP, 23, 5)
        tcp6 = socket.create_server(("::1", 0), family=socket.AF_INET6) if socket.has_ipv6 else tcp
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self._open = [unix, abstract, tcp, tcp6, udp]
        for server in (unix, abstract, tcp, tcp6):
            server.listen()
            threading.Thread(target=self._answer, args=(server,), daemon=True).start()
        threading.Thread(target=self._hear, args=(udp,), daemon=True).start()
        ports = {n: s.getsockname()[1] for n, s in (("tcp", tcp), ("tcp6", tcp6), ("udp", udp))}
        # The metadata address is the machine's own: port 80, where a cloud's server stands.
        return {**ports, "metadata": 80, "unix": str(self.hidden / "socket"), "abstract": name}

    def _answer(self, server: socket.socket) -> None:
        try:
            while True:
                connection, _ = server.accept()
                with connection:
                    self.heard.append(connection.recv(4096).decode("latin-1"))
                    connection.sendall(self.secret.encode())
        except OSError:
            return

    def _hear(self, udp: socket.socket) -> None:
        try:
            while True:
                self.heard.append(udp.recv(4096).decode("latin-1"))
        except OSError:
            return

    def values(self) -> dict[str, Any]:
        """Return what the attack is told."""
        return {
            "secret": str(self.hidden / "secret"), "granted": str(self.root / "granted"), "out": str(self.root / "out"),
            "written": str(self.hidden / "new"), "victim_file": str(self.hidden / "victim"), "code": str(self.hidden / "code"),
            "victim": self.victim.pid, "mark": self.mark, "memory": 800 * MIB, "disk": 100 * MIB, "many": 64, "files": 200,
            "patience": 30.0, **self.servers,
        }  # fmt: skip

    def noticed(self) -> list[str]:
        """Return what changed outside."""
        found = [f"{n} was changed" for n in ("victim", "code") if _content(self.hidden / n) != "as it was"]
        if (self.hidden / "victim").exists() and (self.hidden / "victim").stat().st_mode & 0o777 == 0o777:
            found.append("its mode was changed")
        found += ["a file was written"] if (self.hidden / "new").exists() else []
        found += ["the granted folder was written"] if (self.root / "granted" / "new").exists() else []
        found += ["a server was reached"] if any(self.mark in h for h in self.heard) else []
        found += ["the victim died"] if self.victim.poll() is not None else []
        return found

    def close(self) -> None:
        """End the victim and the servers."""
        self.victim.kill()
        self.victim.wait()
        for server in self._open:
            server.close()


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def install(site: Path, attack: str) -> None:
    """Install the attacking plugin into a folder that is put on the path."""
    package = site / "redteam_plugin"
    (package / "attacks").mkdir(parents=True)
    for source in (HERE / "attacks").glob("*.py"):
        (package / "attacks" / source.name).write_text(source.read_text())
    (package / "__init__.py").write_text(CODE)
    (package / "plugin.yaml").write_text(MANIFEST.replace("DEADLINE", DEADLINES.get(attack, "4s")))
    info = site / "redteam-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: redteam\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[dataflare.plugins]\nredteam = redteam_plugin\n")


def run(chosen: Attack, folder: Path) -> Seen:
    """Let a plugin attack at the level `process`.

    Args:
        chosen: the attack.
        folder: to work in, empty; nobody but us and the plugin uses it.
    """
    site, work, world = folder / "site", folder / "work", folder / "world"
    for made in (site, work, world):
        made.mkdir()
    install(site, chosen.name)
    outside = Outside(world)
    try:
        given = outside.values()
        order = {"name": chosen.name, "granted": given["granted"], "out": given["out"], "target": json.dumps(given)}
        workflow = {
            "dataflare": 1, "name": "attacked",
            "sources": {"s": {"use": "generate", "with": {"rows": 1, "columns": {"n": "i"}}}},
            "processors": [{"id": "p", "use": "attacker", "with": order}],
            "destinations": {"d": {"use": "jsonl", "with": {"path": "said.jsonl"}}},
        }  # fmt: skip
        (work / "workflow.json").write_text(json.dumps(workflow))
        (work / "policy.yaml").write_text("trust: [redteam]\nmin_level: process\n")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]), "SECRET": outside.secret,
               "XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}  # fmt: skip
        command = [sys.executable, "-m", "dataflare", "run", "workflow.json", "--json"]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=120, check=False)
        return _judge(outside, done, _content(work / "said.jsonl") or "")
    finally:
        outside.close()


def _judge(outside: Outside, done: subprocess.CompletedProcess[str], said: str) -> Seen:
    noticed = outside.noticed()
    everything = said + done.stdout + done.stderr
    if outside.secret in everything or OVER in said or noticed:
        return Seen("breached", "; ".join([*noticed, said[:150]]))
    if _content(outside.root / "out" / "begun") != "yes":
        return Seen("broken", f"the attack did not begin; exit {done.returncode}: {done.stdout or done.stderr}"[:300])
    if done.returncode == 0 and "stopped: " in said:
        return Seen("denied", said.partition("stopped: ")[2][:150])
    try:
        error = json.loads(done.stdout)["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if done.returncode > 0 and error and error.get("code") and error["code"] != "internal.bug":
        return Seen("contained", f"{error['code']}: {error.get('message', '')}"[:150])
    return Seen("broken", f"exit {done.returncode}: {said or done.stdout or done.stderr}"[:300])
