"""What ``import modfast`` imports and refuses, and that all its names are there when they are asked for."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import modfast
from modfast.cli.parsers import make_parser
from modfast.requirements import BACKENDS

SOURCE = Path(modfast.__file__)
ROOT = SOURCE.parent.parent
# Of these PyTorch may import some itself; the loss needs none.
OPTIONAL = ("scipy", "sklearn", "matplotlib", "transformers", "torchvision", "jinja2", "rich", "lightning")
COMMANDS = ("train", "reproduce", "circuits", "cluster", "report")


def run_fresh(code, **environment):
    """Run code in an interpreter that has imported nothing, not even PyTorch."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODFAST_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
    )
    return done


def imported_by(code):
    done = run_fresh(f"{code}\nimport sys\nprint('modules:', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules:")[2].split())


def heavy(modules):
    return {name.split(".")[0] for name in modules} & {"torch", "numpy", *OPTIONAL}


def test_importing_the_package_imports_nothing_heavy():
    assert heavy(imported_by("import modfast; modfast.__version__; dir(modfast); modfast.__all__")) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "from modfast.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as ended:\n    assert ended.code == 0"
    )
    assert heavy(imported_by(code)) == set()


def test_every_command_is_tried():
    (commands,) = (action for action in make_parser()._actions if action.dest == "command")
    assert tuple(commands.choices) == COMMANDS


def test_a_mistake_in_a_command_line_is_told_before_anything_heavy_is_imported():
    code = (
        "from modfast.cli import main\n"
        "try:\n    main(['train', '--seed', 'x'])\nexcept SystemExit as ended:\n    assert ended.code == 2"
    )
    assert heavy(imported_by(code)) == set()


def test_the_loss_imports_nothing_that_is_optional():
    code = "import torch, sys\nbefore = set(sys.modules)\nfrom modfast import EnmeshmentLoss\n"
    done = run_fresh(f"{code}print(*(set(sys.modules) - before))")
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert "modfast.energy.loss" in modules
    assert not {name.split(".")[0] for name in modules} & set(OPTIONAL)
    # Nor rooms that the loss has nothing to do with, or parts of PyTorch that take long.
    rooms = ("circuits", "spectral", "network", "train", "data", "experiment", "report", "cli")
    assert not [room for room in rooms if f"modfast.{room}" in modules]
    assert not [name for name in modules if name.startswith(("torch._dynamo", "torch._inductor", "sympy"))]


def names_for_type_checkers():
    """The names that the package imports for type checkers: from which module each one comes."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    blocks = {ast.unparse(node.test): node.body for node in tree.body if isinstance(node, ast.If)}
    return {alias.name: node.module for node in blocks["TYPE_CHECKING"] for alias in node.names}


def test_type_checkers_and_python_are_told_the_same():
    told = names_for_type_checkers()
    modules = {name for name, home in told.items() if home is None}
    assert {name: home for name, home in told.items() if home} == modfast._HOME_OF
    assert set(modfast.__all__) == {*modfast._HOME_OF, *(modules & set(modfast.__all__)), "__version__"}
    assert modules == set(modfast._MODULES) <= set(dir(modfast))
    assert modfast.__all__ == sorted(modfast.__all__)


def test_no_public_name_is_also_a_module():
    # Importing that module would put it where the name is expected.
    modules = {module.name for module in pkgutil.iter_modules([str(SOURCE.parent)])}
    assert modules & set(modfast._HOME_OF) == set()


@pytest.mark.parametrize("name", sorted(modfast.__all__))
def test_every_name_is_there(name):
    value = getattr(modfast, name)
    assert getattr(modfast, name) is value
    home = modfast._HOME_OF.get(name)
    if home is not None:
        assert value is getattr(importlib.import_module(f"modfast.{home}"), name)
    assert name in dir(modfast)


def test_a_star_imports_all_names():
    names = {}
    exec("from modfast import *", names)
    assert set(modfast.__all__) <= set(names)


def test_modules_are_reached_as_attributes():
    code = "import modfast\nprint(modfast.optim.AdamW.__name__, modfast.compat.clusterability.__name__, "
    code += "modfast.reference.enmeshment.__name__, modfast.tasks.__name__, modfast.layers.__name__)"
    done = run_fresh(code)
    assert done.stdout.split() == ["AdamW", "clusterability", "enmeshment", "modfast.tasks", "modfast.layers"]


@pytest.mark.parametrize("name", ["enmeshmant", "_C", "__wrapped__", "enmeshment.x"])
def test_a_name_that_is_not_there(name):
    with pytest.raises(AttributeError, match=f"module 'modfast' has no attribute '{name}'"):
        getattr(modfast, name)
    assert not hasattr(modfast, name)


def test_inspect_sees_all_members():
    assert set(modfast.__all__) <= {name for name, _ in inspect.getmembers(modfast)}


def test_threads_that_first_use_names_at_once():
    # Without turns Python gives some of them modules that are half imported.
    code = (
        "import modfast, random, threading\n"
        "names = [*modfast.__all__, 'layers', 'models', 'compat', 'reference', 'train', 'weights']\n"
        "random.Random(0).shuffle(names)\n"
        "start, got = threading.Barrier(len(names)), []\n"
        "def use(name):\n    start.wait()\n    getattr(modfast, name)\n    got.append(name)\n"
        "threads = [threading.Thread(target=use, args=[name]) for name in names]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "print(sorted(got) == sorted(names))"
    )
    done = run_fresh(code)
    assert done.stdout == "True\n", done.stderr
    assert done.stderr == ""


def test_no_module_asks_the_package_for_a_name():
    # It would wait for the lock of the package while another thread, which has it, waits for the module.
    for path in SOURCE.parent.rglob("*.py"):
        package = ("modfast", *path.parent.relative_to(SOURCE.parent).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and path != SOURCE:
                start = package[: len(package) - node.level + 1] if node.level else ()
                source = ".".join([*start, *([node.module] if node.module else [])])
                assert source != "modfast", f"{path}, line {node.lineno}"


def test_while_another_thread_imports_pytorch(tmp_path):
    # Then it is among the modules, and has no version yet.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("import modfast\n__version__ = '2.11.0'\nprint('well')\n")
    (tmp_path / "torch/version.py").write_text("__version__ = '2.11.0'\n")
    done = run_fresh("import torch", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout == "well\n", done.stderr


NEEDS = "modfast needs PyTorch 2.11 or later, "
REFUSED = {
    "no PyTorch": ("", f"{NEEDS}which is not installed. Run: pip install"),
    "an old one": ("__version__ = '2.10.1+cu130'\n", f"{NEEDS}found 2.10.1+cu130. Run: pip install"),
}


@pytest.mark.parametrize(("version", "told"), REFUSED.values(), ids=REFUSED)
def test_pytorch_that_does_not_serve_is_refused_before_it_is_imported(tmp_path, version, told):
    hide = ""
    if version:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/__init__.py").write_text("raise SystemExit('it was imported')\n")
        (tmp_path / "torch/version.py").write_text(version)
    else:
        hide = "import importlib.util\nimportlib.util.find_spec = lambda *_: None\n"
    done = run_fresh(f"{hide}import modfast", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert f"ImportError: {told}" in done.stderr


@pytest.mark.parametrize("version", ["__version__ = '2.11.0'\n", "__version__ = '3.0.0a0+git1'\n", None])
def test_pytorch_that_may_serve_is_not_imported(tmp_path, version):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('it was imported')\n")
    if version is not None:
        (tmp_path / "torch/version.py").write_text(version)
    done = run_fresh("import modfast\nprint('well')", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout == "well\n", done.stderr


def test_a_backend_that_there_is_not():
    done = run_fresh("import modfast", MODFAST_BACKEND="fast")
    assert done.returncode == 1
    assert f"ImportError: MODFAST_BACKEND must be {BACKENDS[0]!r}" in done.stderr
    assert "got 'fast'" in done.stderr
