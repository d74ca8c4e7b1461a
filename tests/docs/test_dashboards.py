"""The guide to dashboards: its commands run, its dashboard and alerts ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dataflare_sdk.run_metrics import FAMILIES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "monitoring"
GUIDE = (ROOT / "docs" / "guides" / "dashboards.md").read_text(encoding="utf-8")
LABELS = {family.prometheus: set(family.labels) for family in FAMILIES}


def test_the_commands_of_the_guide(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    [block] = re.findall(r"```yaml\n(observe:.*?)```", GUIDE, re.DOTALL)
    assert block in (EXAMPLE / "orders.yaml").read_text(), "the guide shows something else than the example"
    [commands] = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    said = []
    for command in commands.splitlines():
        words = command.replace("dataflare ", f"{sys.executable} -m dataflare ", 1) if command.startswith("dataflare ") else command
        done = subprocess.run(["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        said.append(done.stdout)
    assert len(said) == 5
    assert 'dataflare_rows_total{workflow="orders",node="table",kind="destination",direction="out"} 100000' in said[1].splitlines()
    assert said[2] == "1\n"
    assert json.loads(said[3])["message"] == "run.done"
    assert "orders: done" in said[4]


def test_the_callback_of_the_guide(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    [code] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "done 200000 0\n"


def asked(expression: str) -> None:
    """Hold an expression to the metrics and labels that there are."""
    names = re.findall(r"\bdataflare_\w+", expression)
    assert names, expression
    labels = set.intersection(*(LABELS[name] for name in names))
    for part in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert {word.strip() for word in part.split(",")} <= labels, expression
    for name, inside in re.findall(r"\b(dataflare_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*=~?", inside)) <= LABELS[name], expression


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    dashboard = json.loads((EXAMPLE / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load((EXAMPLE / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    for expression in [*expressions, *(rule["expr"] for rule in rules)]:
        asked(expression)
    shown = set(re.findall(r"dataflare_\w+", " ".join(expressions)))
    assert len(shown) >= 15
    boxes = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_metrics_of_the_guide_exist() -> None:
    assert set(re.findall(r"`(dataflare_\w+?)`", GUIDE)) <= set(LABELS)
