"""The guide's workflow, test and commands are what they say."""

import json
import re
import sys
from pathlib import Path

from tests.ext.strangers import run

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "test-a-workflow.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_commands_of_the_guide(tmp_path: Path) -> None:
    for text in blocks("yaml"):
        name = re.match(r"# (\S+)\n", text)
        if name and name[1].endswith(".yaml"):
            (tmp_path / name[1]).write_text(text)
    assert {p.name for p in tmp_path.iterdir()} == {"orders.yaml", "orders.test.yaml"}
    [command] = blocks("sh")
    said = run([sys.executable, "-m", *command.split()], tmp_path, {})
    assert said.code == 0, said.out + said.err
    assert "1 passed, 0 failed" in said.out
    wrong = (tmp_path / "orders.test.yaml").read_text().replace("revenue: 12.50", "revenue: 12.00")
    (tmp_path / "orders.test.yaml").write_text(wrong)
    said = run([sys.executable, "-m", *command.split()], tmp_path, {})
    assert said.code == 1
    assert "12.00 → 12.50" in said.out
    assert (
        run([sys.executable, "-m", "dataflare", "test", "-k", "unpaid", "--update", "--yes", "--junit", "results.xml"], tmp_path, {}).code
        == 1
    )
    assert run([sys.executable, "-m", "dataflare", "test"], tmp_path, {}).code == 0
    assert "<testsuite" in (tmp_path / "results.xml").read_text()


def test_the_excerpts_stand_where_they_are_from(tmp_path: Path) -> None:
    [excerpt, schedule] = [b for b in blocks("yaml") if b.startswith("# excerpt")]
    assert excerpt.partition("\n")[2] in (ROOT / "examples" / "windows" / "readings.test.yaml").read_text()
    (tmp_path / "in.csv").write_text("id\n1\n")
    flow = "sources: {a: {use: csv, with: {path: in.csv}}}\ndestinations: {b: {use: csv, with: {path: out.csv}}}\n"
    (tmp_path / "w.yaml").write_text(schedule + flow)
    said = run([sys.executable, "-m", "dataflare", "validate", "w.yaml", "--json"], tmp_path, {})
    assert (said.code, len(json.loads(said.out)["schedule"]["next"])) == (0, 3), said.out
