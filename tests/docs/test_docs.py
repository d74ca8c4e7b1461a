"""What the docs say is true: generated pages are fresh, workflows run, hooks are named, links lead somewhere."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dataflare
from dataflare import hookspecs
from dataflare.lifecycle import Runtime

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEMPLATES = ROOT / "plugins_builtin" / "dataflare_plugins" / "commands" / "templates"
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```yaml\n(# runs.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("block", EXAMPLES)
def test_a_workflow_in_the_docs_runs(block: str, tmp_path: Path) -> None:
    template = block.splitlines()[0].removeprefix("# runs").strip() or "orders"
    shutil.copytree(TEMPLATES / template, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dataflare.yaml").write_text(block)
    run = dataflare.run(tmp_path / "dataflare.yaml", check=True)
    assert run.rows["written"] > 0


CHECKED = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```yaml\n(# checks.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", CHECKED)
def test_a_workflow_in_the_docs_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "dataflare.yaml").write_text(block)
    with Runtime(tmp_path) as runtime:
        found = runtime.validate(runtime.parse(tmp_path / "dataflare.yaml"))
    assert not [p for p in found.problems if p.severity == "error"], found.problems


def test_there_are_such_workflows() -> None:
    assert len(CHECKED) >= 4
    assert len(EXAMPLES) >= 4


def test_every_hook_is_in_the_docs_with_its_arguments() -> None:
    text = (ROOT / "docs" / "reference" / "hooks.md").read_text()
    for name, hook in vars(hookspecs).items():
        if name.startswith("dataflare_"):
            assert f"`{name}({', '.join(inspect.signature(hook).parameters)})`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_machine_is_named() -> None:
    for page in PAGES:
        assert not re.search(r"/(home|root|work)/", page.read_text(encoding="utf-8")), page


def test_codes_in_the_guides_exist() -> None:
    text = (ROOT / "docs" / "guides" / "faults.md").read_text()
    catalogue = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert set(re.findall(r"`([a-z]+\.[a-z-]+)`", text)) <= set(re.findall(r"`([a-z]+\.[a-z-]+)`", catalogue))


def test_the_component_in_the_spec_works(tmp_path: Path) -> None:
    import pyarrow as pa

    from dataflare_sdk.testing import ProcessorSuite

    source = re.search(r"```python\n# example\n(.*?)```", (ROOT / "docs" / "component-spec.md").read_text(), re.DOTALL)
    assert source is not None
    (tmp_path / "double_example.py").write_text(source[1])
    sys.path.insert(0, str(tmp_path))
    try:
        import double_example  # pyright: ignore[reportMissingImports]

        made = lambda ctx: double_example.Double(double_example.DoubleConfig(column="n"), ctx)  # noqa: E731
        table = pa.table({"n": [1, None, 3], "s": ["a", "b", None]})
        ProcessorSuite(made, inputs={"in": table}, folder=tmp_path).assert_conforms()
    finally:
        sys.path.remove(str(tmp_path))
