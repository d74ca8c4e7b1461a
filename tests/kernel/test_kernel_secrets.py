"""A secret is resolved where it is used, and seen nowhere else: a canary is searched for in all that comes out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataflare.contracts import Surroundings
from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime

CANARY = 'c4nary"4711/ä secret'

PLUGIN = """
import click
from dataflare_sdk.commands import verb

def plain(config, ctx):
    return config

@click.command("leak")
@verb
def leak(call):
    with call.runtime() as runtime:
        token = runtime.host.build("lookup", "plain", {"t": "${secret:file/token}"})["t"]
        runtime.logs.bind(node=token).error("logged {}", token)
        call.say("said " + token)
        call.emit({"token": token, token: [token]})
        raise ValueError("raised " + token)
"""
LINES = """
provides:
  - {kind: lookup, name: plain, entry: 'leaky:plain'}
  - {kind: command, name: leak, entry: 'leaky:leak', summary: Try to leak}
"""


@pytest.fixture
def host(install: Callable[..., Path], tmp_path: Path) -> Any:
    install("leaky", PLUGIN, LINES)
    (tmp_path / ".dataflare" / "secrets").mkdir(parents=True)
    (tmp_path / ".dataflare" / "secrets" / "token").write_text(CANARY + "\n")
    return Runtime(tmp_path).host


def built(host: Any, value: Any) -> Any:
    return host.build("lookup", "plain", {"v": value}, Surroundings(path=("sources", "a", "with")))["v"]


def test_where_secrets_come_from(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from-env")
    assert built(host, "${secret:TOKEN}") == "from-env"
    assert built(host, "${secret:env/TOKEN}") == "from-env"
    assert built(host, ["pg://u:${secret:file/token}@h"]) == [f"pg://u:{CANARY}@h"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "token").write_text("other\r\n")
    monkeypatch.setenv("DATAFLARE_SECRETS_DIR", str(tmp_path / "elsewhere"))
    assert built(host, "${secret:file/token}") == "other"


def test_a_secret_is_not_looked_into_again(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTED", "${secret:file/token}")
    assert built(host, "${secret:NESTED}") == "${secret:file/token}"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("NOT_SET_ANYWHERE", "secret.missing"),
        ("file/none", "secret.missing"),
        ("vault/token", "secret.missing"),
        ("file/../secrets/token", "secret.bad-name"),
        ("file/..", "secret.bad-name"),
        ("file/.hidden", "secret.bad-name"),
    ],
)
def test_what_is_not_to_be_had(host: Any, reference: str, code: str) -> None:
    with pytest.raises(DataflareError) as caught:
        built(host, f"x${{secret:{reference}}}")
    assert caught.value.code == code
    assert caught.value.exit_code in (3, 4)


def test_without_providers_there_are_no_secrets(host: Any, tmp_path: Path) -> None:
    with pytest.raises(DataflareError, match=r"secret\.missing"):
        built(Runtime(tmp_path, {"secrets.providers": []}).host, "${secret:HOME}")


def test_the_place_is_named(host: Any) -> None:
    with pytest.raises(DataflareError) as caught:
        built(host, ["${secret:NOT_SET_ANYWHERE}"])
    assert (caught.value.exit_code, caught.value.problems[0].path) == (3, "sources.a.with.v[0]")


def test_an_unreadable_file_does_not_quote_itself(host: Any, tmp_path: Path) -> None:
    (tmp_path / ".dataflare" / "secrets" / "token").write_bytes(b"c4nary\xff4711")
    with pytest.raises(DataflareError) as caught:
        built(host, "${secret:file/token}")
    assert caught.value.code == "secret.unreadable"
    assert "c4nary" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_nobody_else_answers_for_the_built_in_providers(install: Callable[..., Path], host: Any, tmp_path: Path) -> None:
    install(
        "hijack",
        "from dataflare_sdk import hookimpl\n"
        "@hookimpl(tryfirst=True)\n"
        "def dataflare_resolve_secret(provider, name): return f'hijacked {provider}'\n",
        "hooks: [resolve_secret]\n",
    )
    assert built(Runtime(tmp_path).host, "${secret:file/token}") == CANARY
    named = Runtime(tmp_path, {"secrets.providers": ["env", "vault"]}).host
    assert built(named, "${secret:vault/x}") == "hijacked vault"


@pytest.mark.parametrize("flags", [[], ["-v"], ["--json"], ["--json", "-v"]])
def test_a_canary_appears_in_no_output(host: Any, tmp_path: Path, flags: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "from dataflare.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "leak", *flags], capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "c4nary" not in output
    assert "4711" not in output
    assert "logged ***" in done.stderr
    assert ("Traceback" in done.stderr) == ("-v" in flags)
    if "--json" in flags:
        assert json.loads(done.stdout) == {"token": "***", "***": ["***"]}
