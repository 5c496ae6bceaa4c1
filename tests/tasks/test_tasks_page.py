"""The page on tasks: its code runs from top to bottom, as a reader would run it."""

import re
from pathlib import Path

import pytest

import modfast
from modfast.tasks import modular_addition

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the checkout")


def test_the_page_s_code(tmp_path, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 3
    names = {}
    exec(compile(found[0], str(PAGE), "exec"), names)
    assert (tmp_path / "out" / "addition.pt").exists()
    assert names["history"][-1]["test_accuracy"] > 0.98
    assert names["frequencies"].shape == (128, 15)
    assert 0 < int(names["circuit"].kept[names["neurons"]].sum()) < 128
    names = {}
    exec(compile(found[1], str(PAGE), "exec"), names)
    assert names["history"][-1]["test_loss"] < 2.5
    assert not names["scores"].isnan().all()
    assert names["circuit"].size < 1
    names = {"modfast": modfast, "modular_addition": modular_addition}
    exec(compile(found[2], str(PAGE), "exec"), names)
    assert names["history"][-1]["enmeshment"] < 0.7
    assert len(names["loss"].partitions) == 6
