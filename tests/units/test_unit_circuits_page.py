"""The page on circuits of units: its code runs as a reader would run it."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "unit-circuits.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the checkout")
def test_the_page_s_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    names = {}
    torch.manual_seed(0)
    for each in code:
        exec(compile(each, str(PAGE), "exec"), names)
    circuit, network, model = names["circuit"], names["network"], names["model"]
    inside = {"transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn"}
    assert set(circuit.sizes) == inside | {"transformer.h.1.mlp.c_fc"}
    assert circuit.metric_after >= circuit.metric_before - 0.01 - 1e-5
    assert Path("circuit.npz").exists()
    with torch.no_grad():
        alone = names["alone"].eval()(**names["batches"][0]).logits
        assert not torch.allclose(alone, model.eval()(**names["batches"][0]).logits, atol=1e-4)
    assert names["logits"].shape == (8, 16, 100)
    assert int(names["scores"].isfinite().sum()) == 2 * (4 + 256)
    assert len(network.spaces) == 7
