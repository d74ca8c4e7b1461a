"""Every command of the guide to dead letters does what the page shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests import commands

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "dead-letters.md"


def test_the_commands_of_the_guide(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name, content in re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(content)
    ran = 0
    for indent, block in re.findall(r"^( *)```console\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        lines = [line.removeprefix(indent) for line in block.rstrip(" ").splitlines()]
        at = [i for i, line in enumerate(lines) if line.startswith("$ ")]
        for begin, end in zip(at, [*at[1:], len(lines)], strict=True):
            words = shlex.split(lines[begin].removeprefix("$ "))
            assert words[0] == "dataflare"
            done = commands.run(
                [sys.executable, "-m", "dataflare", *words[1:]],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            assert [line.rstrip() for line in done.stdout.splitlines()] == lines[begin + 1 : end], words
            ran += 1
    assert ran >= 10


def test_the_codes_of_the_guide_exist() -> None:
    catalogue = (GUIDE.parents[1] / "reference" / "errors.md").read_text(encoding="utf-8")
    codes = set(re.findall(r"`(dlq\.[a-z-]+)`", GUIDE.read_text(encoding="utf-8"))) - {"dlq.show", "dlq.edit", "dlq.replay", "dlq.purge"}
    assert len(codes) >= 7
    assert codes <= set(re.findall(r"`([a-z]+\.[a-z-]+)`", catalogue))
