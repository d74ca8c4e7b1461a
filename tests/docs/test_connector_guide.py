"""The guide's connector is what it says: three files, 35 lines, installed as they stand, and its workflow moves rows."""

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.ext.strangers import run

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-a-connector.md"
ORDERS = [{"id": i, "customer": f"c{i}" if i % 2 else None, "total": i * 10.5} for i in range(30)]


@pytest.fixture
def shop() -> Iterator[int]:
    class Shop(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/orders" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(ORDERS).encode())

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_connector_of_the_guide(tmp_path: Path, shop: int, confines: None) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    files = dict(re.findall(r"`([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    assert sorted(files) == ["dataflare_shop/__init__.py", "dataflare_shop/plugin.yaml", "pyproject.toml"]
    assert sum(len(f.splitlines()) for f in files.values()) <= 35
    for name, content in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    flags = [
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        str(tmp_path / "site"),
    ]
    installed = run([sys.executable, "-m", "pip", "install", *flags, str(tmp_path / "project")], tmp_path, {})
    assert installed.code == 0, installed.err
    [flow] = re.findall(r"```yaml\n(sources:.*?)```", text, re.DOTALL)
    (tmp_path / "dataflare.yaml").write_text(flow)
    env = {"PYTHONPATH": str(tmp_path / "site"), "SHOP_PORT": str(shop), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    refused = run([sys.executable, "-m", "dataflare", "run", "--json"], tmp_path, env)
    assert refused.code == 6, refused.out + refused.err
    [grant] = re.findall(r"`dataflare (plugin grant [^`]*)`", text)
    granted = run([sys.executable, "-m", "dataflare", *grant.split()], tmp_path, env)
    assert granted.code == 0, granted.out + granted.err
    said = run([sys.executable, "-m", "dataflare", "run", "--json"], tmp_path, env)
    assert said.code == 0, said.out + said.err
    assert pq.read_table(tmp_path / "large.parquet").to_pylist() == [o for o in ORDERS if o["total"] >= 100]
    checked = run([sys.executable, "-m", "dataflare", "plugin", "manifest", str(tmp_path / "project"), "--json"], tmp_path, env)
    assert checked.code == 0, checked.err
    [test] = re.findall(r"```python\n(from dataflare_sdk\.testing.*?)```", text, re.DOTALL)
    (tmp_path / "test_shop.py").write_text(test.replace("8080", str(shop)))
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"], tmp_path, env)
    assert done.code == 0, done.out
