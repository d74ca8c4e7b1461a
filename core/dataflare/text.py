"""Text from plugins on its way to a terminal: nothing in it may move the cursor, change colours or turn the direction."""

from __future__ import annotations

import re

__all__ = ["one_line", "shown"]

# C0 without tab and line feed, DEL, C1; then what turns the direction of text around.
_DOING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """Return text with every control character replaced by a question mark; tabs and line feeds stay."""
    return _DOING.sub("?", text)


def one_line(text: str) -> str:
    """Return text as one line of a table or a list: a second one could look like one of ours."""
    return shown(text.replace("\n", "\\n").replace("\t", "\\t"))
