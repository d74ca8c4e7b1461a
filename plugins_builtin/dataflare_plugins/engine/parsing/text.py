"""A workflow's text in canonical form: for `fmt` and `migrate`. Comments stay where they were."""

from __future__ import annotations

import re

from dataflare_plugins.engine.parsing.yaml_loader import load_yaml

ORDER = (
    "dataflare", "name", "description", "params", "schedule", "sources", "processors", "destinations", "delivery",
    "timezone", "errors", "state", "runtime", "observe", "plugins", "profiles",
)  # fmt: skip
_TOP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*:")


def format_text(text: str) -> str:
    """Return the text with its top-level blocks in canonical order, one blank line between the large ones.

    Formatting twice gives the same. When the result would not say the same, only spaces at line ends change.

    Raises:
        DataflareError: `workflow.syntax`: the text is no YAML.
    """
    before = load_yaml(text).value
    plain = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"
    made = _ordered(plain)
    return made if load_yaml(made).value == before else plain


def migrate_text(text: str) -> tuple[str, list[str]]:
    """Return the text in the newest format, and a line per change.

    Raises:
        DataflareError: `workflow.syntax`.
    """
    document = load_yaml(text).value
    if not isinstance(document, dict) or "dataflare" in document:
        return text, []
    head, blocks = _blocks(text)
    changed = "\n".join([*head, "dataflare: 1", *(line for _, lines in blocks for line in lines)]).rstrip("\n") + "\n"
    return changed, ["added `dataflare: 1`, the version of the format"]


def _ordered(text: str) -> str:
    head, blocks = _blocks(text)
    rank = {name: i for i, name in enumerate(ORDER)}
    blocks.sort(key=lambda b: rank.get(b[0], len(rank)))
    parts: list[str] = []
    for name, lines in blocks:
        lines = _trimmed(lines)
        large = len(lines) > 1
        if parts and (large or parts_were_large(parts)) and name != "name":
            parts.append("")
        parts += lines
    return "\n".join([*_trimmed(head), *parts]) + "\n"


def parts_were_large(parts: list[str]) -> bool:
    """Return True when the last block took more than one line."""
    return parts[-1].startswith((" ", "-"))


def _blocks(text: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split into what stands before the first key, and each top-level key with the comments right above it."""
    head: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    waiting: list[str] = []
    for line in text.splitlines():
        key = _TOP.match(line)
        if key:
            # Comments before the first key belong to the file, not to the key.
            if blocks:
                blocks.append((key[1], [*waiting, line]))
            else:
                head, blocks = waiting, [(key[1], [line])]
            waiting = []
        elif not line.strip() or line.startswith("#"):
            waiting.append(line)
        elif blocks:
            blocks[-1][1].extend([*waiting, line])
            waiting = []
        else:
            head += [*waiting, line]
            waiting = []
    if blocks:
        blocks[-1][1].extend(waiting)
    else:
        head += waiting
    return head, blocks


def _trimmed(lines: list[str]) -> list[str]:
    made = list(lines)
    while made and not made[0].strip():
        made.pop(0)
    while made and not made[-1].strip():
        made.pop()
    return made
