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


def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    # -I, since a path of the caller's environment may hold the checkout.
    run(python, "-I", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # PyTorch's gigabytes are lent from here rather than installed again; modfast itself is not on that path,
    # since an editable install is found by a hook of this environment, not by its folder.
    packages = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "lent.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    program = (
        "import modfast, torch\n"
        "assert modfast.__file__.startswith(__import__('sys').prefix), modfast.__file__\n"
        "model = torch.nn.Linear(64, 64)\n"
        "loss = modfast.EnmeshmentLoss(model, 4)\n"
        "loss().backward()\n"
        "print(modfast.backend()['backend'], float(loss()) > 0)\n"
    )
    assert run(python, "-I", "-c", program, cwd=tmp_path).split() == ["compiled", "True"]
