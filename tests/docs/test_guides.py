"""The code of guides that no room's tests run: it does what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "guides"

pytestmark = pytest.mark.skipif(not GUIDES.is_dir(), reason="needs the pages of the checkout")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_choose_k():
    (code,) = blocks(GUIDES / "choose-k.md")
    names = {}
    exec(compile(code, "choose-k.md", "exec"), names)
    assert names["found"].num_clusters == 3
    assert names["found"].supported
    wanted = names["planted"].row_labels
    rows = names["partition"].row_labels
    assert all(len(rows[wanted == cluster].unique()) == 1 for cluster in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["DDP", "FSDP2"])
def test_scaling(tmp_path, number):
    script = tmp_path / "train.py"
    script.write_text(blocks(GUIDES / "scaling.md")[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"\{'0': ([\d.]+)\}", done.stdout)
    assert float(found) > 0.9


def test_options_that_pages_name():
    known = set()
    for command in ("train", "reproduce", "circuits", "cluster", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "modfast", command, "--help"], capture_output=True, text=True, check=True
        )
        known |= set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    page = (GUIDES / "command-line.md").read_text(encoding="utf-8")
    others = {"--strip-components", "--nproc-per-node"}  # of tar and torchrun
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page)) <= known | others


def test_tables_end_once():
    for page in GUIDES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text.count(" table: begin -->") == text.count(" table: end -->"), page.name
