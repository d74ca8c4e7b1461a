"""Results as JUnit's XML, which CI servers read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from dataflare_plugins.workflow_tests.running import Result


def write_junit(file: Path, results: Sequence[Result]) -> None:
    """Write a `testsuite` for each test file."""
    root = ElementTree.Element("testsuites")
    for suite in dict.fromkeys(str(r.suite.file) for r in results):
        own = [r for r in results if str(r.suite.file) == suite]
        failed, broken = (str(sum(r.status == s for r in own)) for s in ("failed", "broken"))
        time = f"{sum(r.seconds for r in own):.3f}"
        node = ElementTree.SubElement(root, "testsuite", name=suite, tests=str(len(own)), failures=failed, errors=broken, time=time)
        for result in own:
            case = ElementTree.SubElement(node, "testcase", classname=suite, name=_legal(result.name), time=f"{result.seconds:.3f}")
            if result.status != "passed":
                first, kind = _legal(result.diff).splitlines()[0], "failure" if result.status == "failed" else "error"
                ElementTree.SubElement(case, kind, message=first).text = _legal(result.diff)
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _legal(text: str) -> str:
    """Return a text without the characters XML cannot hold."""
    return "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff") else "?" for c in text)
