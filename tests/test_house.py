"""The rules of the house: who includes and imports whom. CONTRIBUTING.md says why.

What Python modules import of each other is kept by import-linter; see pyproject.toml.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAMILIES = ("energy", "spectral", "circuits", "optim")
SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
MODULES = sorted((ROOT / "modfast").rglob("*.py"))
CALLERS = {f"modfast/{family}/operators.py" for family in FAMILIES}
LOADERS = {"modfast/binary.py", "modfast/library.py"}

pytestmark = pytest.mark.skipif(not SOURCES, reason="needs the sources of the kernels")


def included(path):
    """What a C++ file includes: in quotes a file of ours, else one of somebody else."""
    found = re.findall(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', path.read_text(), re.MULTILINE)
    return [ours for ours, _ in found if ours], [others for _, others in found if others]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_families_of_kernels_are_strangers(path):
    family = path.relative_to(ROOT / "csrc").parts[0]
    assert family in (*FAMILIES, "common")
    for name in included(path)[0]:
        assert (ROOT / "csrc" / name).exists(), f"{name}: an include names the folder"
        assert name.split("/")[0] in (family, "common"), f"{path} includes {name} of another family"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_kernels_know_no_pytorch(path):
    if path.name.startswith(("binding", "ops")):
        return
    ours, others = included(path)
    assert not [name for name in others if name.startswith(("torch/", "ATen/", "c10/"))]
    assert not [name for name in ours if Path(name).name.startswith(("binding", "ops"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_no_file_knows_python(path):
    # One library serves every version of Python; what Python asks of it are plain C functions.
    others = included(path)[1]
    assert not [name for name in others if re.match(r"Python\.h|pybind11/|torch/(extension|python)\.h", name)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_no_streams(path):
    # A C++ library that is linked statically has locales of its own, which clash with those of PyTorch's
    # copy: on such a machine the first number that was written to a stream crashed the interpreter.
    streams = {"sstream", "iostream", "fstream", "ostream", "istream", "iomanip", "locale"}
    assert not streams.intersection(included(path)[1])


def uses_of_libraries(path):
    """The places where a module names a compiled library or an operator of ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(
            ("torch.ops.modfast", "torch.ops.load_library")
        ):
            yield node.lineno
        named = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = [node.value]
        if any(name in ("_C", "_cuda", "modfast._C", "modfast._cuda") for name in named):
            yield node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_operators_call_the_compiled_libraries(path):
    name = str(path.relative_to(ROOT))
    if name not in CALLERS | LOADERS:
        assert list(uses_of_libraries(path)) == []


def test_there_is_something_to_forbid():
    assert all(list(uses_of_libraries(ROOT / name)) for name in CALLERS | LOADERS)


def resolves(name):
    """Whether a dotted name leads to a module or to something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_docstrings_exist(path):
    text = path.read_text()
    for name in re.findall(r":\w+:`~?(modfast[\w.]*)`", text):
        assert resolves(name), f"{path} tells of {name}, which does not exist"
    for name in re.findall(r"\b((?:csrc|tests|docs|benchmarks)/[\w./]+\w)", text):
        assert (ROOT / name).exists(), f"{path} tells of {name}, which does not exist"


ROOMS_WITH_TEXTS = ("docs", "benchmarks", "examples", "tests")
TEXTS = sorted(
    [*ROOT.glob("*.md"), *(path for room in ROOMS_WITH_TEXTS for path in ROOT.glob(f"{room}/**/*.md"))]
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages_lead_somewhere(path):
    text = path.read_text()
    assert not re.search(r"^(<<<<<<<|>>>>>>>)", text, re.MULTILINE), "a merge was left half done"
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path} links to {target}, which does not exist"
