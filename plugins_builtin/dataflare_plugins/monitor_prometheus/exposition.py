"""Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable

from dataflare_sdk.run_metrics import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(samples: Iterable[Sample]) -> str:
    """Return samples, which stand family by family, as text."""
    lines: list[str] = []
    before = None
    for family, labels, value in samples:
        if family is not before:
            before = family
            lines += [f"# HELP {family.prometheus} {_escaped(family.doc)}", f"# TYPE {family.prometheus} {family.kind}"]
        pairs = ",".join(f'{name}="{_escaped(shown, quotes=True)}"' for name, shown in zip(family.labels, labels, strict=True))
        lines.append(f"{family.prometheus}{{{pairs}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _escaped(shown: str, *, quotes: bool = False) -> str:
    made = shown.replace("\\", "\\\\").replace("\n", "\\n")
    return made.replace('"', '\\"') if quotes else made
