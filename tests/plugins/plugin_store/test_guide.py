"""What the guide names exists: verbs, options, codes, keys of the policy."""

from __future__ import annotations

import re
from pathlib import Path

import click
import yaml

from dataflare.cli import root
from dataflare.policy import Policy

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "guides" / "run-a-plugin-you-do-not-trust.md").read_text(encoding="utf-8")


def test_every_command_has_the_options_it_is_shown_with() -> None:
    context = click.Context(root)
    group = root.get_command(context, "plugin")
    assert isinstance(group, click.Group)
    shown = re.findall(r"dataflare plugin ([a-z]+)([^\n`#]*)", GUIDE)
    assert len(shown) > 15
    for name, rest in shown:
        command = group.get_command(context, name)
        assert command is not None, name
        known = {option for p in command.params for option in p.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, name


def test_every_code_is_in_the_catalogue() -> None:
    catalogue = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    codes = set(re.findall(r"`(plugin\.[a-z-]+)`", GUIDE))
    assert len(codes) > 6
    for code in codes:
        assert f"| `{code}` |" in catalogue


def test_the_policy_is_one(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(trust:.*?)```", GUIDE, re.DOTALL)
    assert text is not None
    (tmp_path / "policy.yaml").write_text(text[1], encoding="utf-8")
    made = Policy.load(tmp_path, tmp_path / "none")
    assert set(yaml.safe_load(text[1])) == {"trust", "deny", "min_level", "isolation", "without", "keys"}
    assert (made.min_level, made.deny[1]) == ("process", "acme:secrets")
