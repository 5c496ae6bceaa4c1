"""The page on networks: its code runs as a reader would run it."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "networks.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the checkout")
def test_the_page_s_code():
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(code) == 1
    names = {}
    torch.manual_seed(0)
    exec(compile(code[0], str(PAGE), "exec"), names)
    network, partitions = names["network"], names["partitions"]
    assert network.spaces["residual"] == slice(100, 164)
    assert next(iter(network.spaces)) == "transformer.wte.inputs"
    assert list(partitions) == network.select("mlp_input", "mlp_output")
    assert abs(names["test"].z_score) < 5
