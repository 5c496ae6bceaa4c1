"""The sdist holds what a build needs, and the wheel works where nothing else of the project is."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from modfast.binary import SUFFIX

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from the sdist, as an installer does it, in the environment's own packages.

    Without the CUDA library, whose kernels take minutes to compile and are packed as the other library is.
    """
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    run(*command, env={**os.environ, "MODFAST_CUDA": "0"})
    return out


def test_the_sdist_holds_the_sources(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = run("git", "ls-files", cwd=ROOT).split()
    needed = [
        name
        for name in tracked
        if re.match(r"(csrc|modfast|tests|benchmarks|examples)/|LICENSE|README|Makefile", name)
    ]
    assert needed
    assert set(needed) <= names


def test_the_wheel_holds_the_package_and_no_sources(built):
    (wheel,) = built.glob("*.whl")
    # The library knows no Python, so that one wheel serves all of them.
    assert re.fullmatch(r"modfast-.+-py3-none-(?!any)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert f"modfast/_C{SUFFIX}" in names
    assert "modfast/py.typed" in names
    assert "modfast/reference/energy.py" in names
    templates = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("modfast/**/templates/*")}
    assert templates
    assert templates <= set(names)
    assert all(name.startswith(("modfast/", "modfast-")) for name in names)


def install(wheel, folder):
    """Make an environment in which only the wheel is installed; return its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    # -I, since a path of the caller's environment may hold the checkout.
    run(python, "-I", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # PyTorch's gigabytes are lent from here rather than installed again; modfast itself is not on that path,
    # since an editable install is found by a hook of this environment, not by its folder.
    packages = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "lent.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    return python


USE = (
    "import modfast, torch\n"
    "assert modfast.__file__.startswith(__import__('sys').prefix), modfast.__file__\n"
    "model = torch.nn.Linear(64, 64)\n"
    "loss = modfast.EnmeshmentLoss(model, 4)\n"
    "loss().backward()\n"
    "print(modfast.backend()['backend'], float(loss()) > 0)\n"
)


def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    python = install(wheel, tmp_path / "venv")
    assert run(python, "-I", "-c", USE, cwd=tmp_path).split() == ["compiled", "True"]


def wheel_command(out):
    """Build a wheel of the sources in the environment's own packages."""
    return [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        ROOT,
    ]


def without_compilers(folder, **variables):
    """An environment whose PATH has no program at all."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC", "MODFAST_CUDA")}
    return {**kept, "PATH": str(folder), **variables}


USE_MORE = (
    "import warnings\n"
    "with warnings.catch_warnings(record=True) as told:\n"
    "    warnings.simplefilter('always')\n"
    "    from modfast import EnmeshmentLoss, find_circuit, spectral_cocluster\n"
    "    from modfast.optim import AdamW\n"
    "    import torch\n"
    "    torch.manual_seed(0)\n"
    "    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))\n"
    "    loss = EnmeshmentLoss(model, 2)\n"
    "    before = float(loss())\n"
    "    step = AdamW(model.parameters(), lr=0.05, enmeshment=loss, enmeshment_weight=1.0)\n"
    "    inputs = torch.randn(30, 6)\n"
    "    for _ in range(20):\n"
    "        step.zero_grad()\n"
    "        torch.nn.functional.cross_entropy(model(inputs), torch.arange(30) % 3).backward()\n"
    "        step.step()\n"
    "    assert float(loss()) < before - 0.1\n"
    "    partition = spectral_cocluster(model[0].weight, 2)\n"
    "    assert set(partition.row_labels.tolist()) == {0, 1}\n"
    "    circuit = find_circuit(model, inputs[::3], 0)\n"
    "    assert 0 < circuit.size < 1\n"
    "messages = [str(each.message) for each in told if 'no compiled library' in str(each.message)]\n"
    "assert len(messages) == 1, told\n"
)


def test_without_a_compiler_the_wheel_is_pure_and_works(tmp_path):
    run(*wheel_command(tmp_path), env=without_compilers(tmp_path / "path"))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
    python = install(wheel, tmp_path / "venv")
    run(python, "-I", "-c", USE_MORE, cwd=tmp_path)
    done = subprocess.run([python, "-I", "-c", USE], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["reference", "True"]
    assert done.stderr.count("RuntimeWarning") == 1


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"CXX": "no-such-compiler"}, "CXX must name a C++ compiler that is there, got 'no-such-compiler'"),
        ({"MODFAST_CUDA": "1"}, "MODFAST_CUDA is '1', but there is no C++ compiler"),
    ],
)
def test_a_wish_that_cannot_be_met_ends_the_installation(tmp_path, variables, told):
    environment = without_compilers(tmp_path / "path", **variables)
    done = subprocess.run(wheel_command(tmp_path), capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_a_compiler_that_fails_ends_the_installation(tmp_path):
    broken = tmp_path / "c++"
    # It tells its version, which PyTorch asks for first.
    broken.write_text(
        '#!/bin/sh\ncase "$1" in -*version) echo g++ 12.2.0; exit;; esac\n'
        "echo this compiler is broken >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    environment = {**os.environ, "CXX": str(broken), "MODFAST_CUDA": "0"}
    done = subprocess.run(wheel_command(tmp_path), capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "this compiler is broken" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))
