"""Every command of the guide is run: by an author, then by somebody else who has the two files and the key alone."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.plugins.isolation_wasm.server import Server, serving
from tests.template.clean import ROOT, Clean

GUIDE = (ROOT / "docs" / "guides" / "ship-a-wasm-plugin.md").read_text(encoding="utf-8")
NAME = "dataflare-shop-feed"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def blocks(language: str, *sections: str) -> list[str]:
    """Return the fenced blocks of sections, in order."""
    parts = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE))
    return [b for s in sections for b in re.findall(rf"```{language}\n(.*?)```", parts[s], re.DOTALL)]


def test_the_plugin_of_the_guide_is_shipped(clean: Clean, tmp_path: Path, server: Server) -> None:
    author, operator = tmp_path / "author", tmp_path / "operator"
    author.mkdir()
    operator.mkdir()
    script = "".join(blocks("sh", "Write it", "Build and sign it"))
    try:
        said = clean.good("sh", "-exc", script, cwd=author)
    finally:
        clean.good(clean.python, "-m", "pip", "uninstall", "--quiet", "--yes", NAME, cwd=tmp_path)
    assert "4 passed" in said
    assert re.search(rf"{NAME} 0\.1\.0: \d+ passed, 0 failed, 0 not run", said)
    files = {p.name for p in (author / "shop-feed").rglob("*")}
    for named in re.findall(r"^\| `([\w./-]+)`", GUIDE, re.MULTILINE):
        assert Path(named).name in files, named
    for path in (author / "shop-feed" / "dist").iterdir():
        shutil.copy(path, operator)

    at_home = {"HOME": str(tmp_path / "home"), "FEED_PORT": str(server.port)}
    [policy, flow] = blocks("yaml", "Run it, somewhere else")
    [look, run] = blocks("sh", "Run it, somewhere else")
    (operator / "dataflare.yaml").write_text(flow)
    unknown = clean("sh", "-exc", look, cwd=operator, **at_home)
    assert (unknown.code != 0, "plugin.not-signed" in unknown.err) == (True, True), "a key that nobody named was believed"
    [key] = set(re.findall(r"ed25519:[A-Za-z0-9+/=]+", said))
    (operator / "policy.yaml").write_text(policy.replace("ed25519:…", key))
    assert "signed by shop.example" in clean.good("sh", "-exc", look, cwd=operator, **at_home)
    refused = clean(clean.bin / "dataflare", "run", cwd=operator, **at_home)
    assert (refused.code, "private addresses too" in refused.err, server.asked) == (6, True, [])
    clean.good("sh", "-exc", run, cwd=operator, **at_home)
    wanted = [{"id": i, "customer": f"c{i}"} for i in range(3)]
    assert [(a.method, a.path) for a in server.asked] == [("POST", "/orders")]
    assert [json.loads(line) for line in server.asked[0].body.splitlines()] == wanted

    # The next version, by the sentences of the last section.
    project = author / "shop-feed"
    for file in ("pyproject.toml", "dataflare_shop_feed/plugin.yaml"):
        text = (project / file).read_text()
        assert text.count("0.1.0") == 1
        (project / file).write_text(text.replace("0.1.0", "0.2.0"))
    build, _, sign = blocks("sh", "Build and sign it")[0].splitlines()
    clean.good("sh", "-exc", f"{build}\n{sign.replace('0.1.0', '0.2.0')}", cwd=project)
    for path in (project / "dist").glob("*0.2.0*"):
        shutil.copy(path, operator)
    clean.good("sh", "-exc", look.replace("0.1.0", "0.2.0"), cwd=operator, **at_home)
    clean.good(clean.bin / "dataflare", "run", cwd=operator, **at_home)
    assert [json.loads(line) for line in server.asked[-1].body.splitlines()] == wanted
    listed = json.loads(clean.good(clean.bin / "dataflare", "plugin", "list", "--json", cwd=operator, **at_home))
    assert [p["version"] for p in listed["plugins"] if p["name"] == NAME] == ["0.2.0"]
    [back] = re.findall(r"`(dataflare plugin rollback [\w-]+)`", GUIDE)
    clean.good("sh", "-exc", back, cwd=operator, **at_home)

    # And a module that was changed.
    [module] = (tmp_path / "home").rglob("0.1.0-*/site/*/shop-feed.wasm")
    module.chmod(0o644)
    module.write_bytes(module.read_bytes() + b"\0\0")
    changed = clean(clean.bin / "dataflare", "run", cwd=operator, **at_home)
    assert (changed.code, "plugin.changed" in changed.err) == (6, True), changed.err
