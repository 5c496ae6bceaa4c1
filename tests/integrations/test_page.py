"""The page on fine-tuning: its code runs from top to bottom, as a reader would run it."""

import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("peft")

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "finetuning.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the checkout")


def blocks():
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_s_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = blocks()
    assert len(found) == 6
    names = {}
    for code in found:
        exec(compile(code, str(PAGE), "exec"), names)
    assert (tmp_path / "out" / "partitions.npz").exists()
    assert 0 < float(names["value"]) < 1


def test_the_first_block_is_fifteen_lines():
    lines = [line for line in blocks()[0].splitlines() if line.strip()]
    assert len(lines) <= 15
