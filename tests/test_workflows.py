"""The workflow that builds the wheels, as far as it can be checked without running it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs the workflows of the checkout")


def read(path):
    yaml = pytest.importorskip("ruamel.yaml")
    return yaml.YAML(typ="safe").load(path.read_text())


def steps_of(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflow_has_the_form_that_github_reads(path):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_its_targets_are_in_the_makefile(path):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        name for step in steps_of(path) for name in re.findall(r"\bmake ([a-z0-9-]+)", step.get("run", ""))
    }
    assert called
    assert called <= targets


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_waits_only_for_jobs_that_are_there(path):
    jobs = read(path)["jobs"]
    for job in jobs.values():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(jobs)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_its_commands_are_clean_for_shellcheck(path, tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck. Install it: apt-get install shellcheck")
    script = tmp_path / "step.sh"
    for step in steps_of(path):
        if "run" not in step:
            continue
        # GitHub replaces an expression before a shell sees it.
        script.write_text("#!/bin/bash\n" + re.sub(r"\$\{\{.*?\}\}", "value", step["run"]) + "\n")
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("platform", "builds"),
    [("linux", "manylinux_x86_64"), ("macos", "macosx_arm64"), ("windows", "win_amd64")],
)
def test_cibuildwheel_reads_its_settings(platform, builds):
    pytest.importorskip("cibuildwheel")
    command = [sys.executable, "-m", "cibuildwheel", "--platform", platform, "--print-build-identifiers", "."]
    done = subprocess.run(
        [*command, *(["--archs", "x86_64"] if platform == "linux" else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The first builds the wheel for all, the others test it.
    assert done.stdout.split() == [f"cp{version}-{builds}" for version in ("310", "314", "314t")]
