"""The page on curves and clusters of units: its code runs as a reader would run it."""

import re
from pathlib import Path

import pytest
import torch

from modfast import faithfulness_curve, unit_scores
from modfast.batches import inputs_of

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "cluster-ablation.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the checkout")
def test_the_page_s_code(capsys):
    text = PAGE.read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(code) == 1
    names = {}
    exec(compile(code[0], str(PAGE), "exec"), names)
    model, batch = names["task"]
    right = model(inputs_of(batch)).argmax(1) == batch[1]
    curve, dependence, lesions = (names[each] for each in ("curve", "dependence", "lesions"))
    assert curve.num_asked == 128
    # What the page claims, whatever the machine's rounding makes of the training.
    assert bool((curve.random_cpr < curve.cpr).all())
    assert bool((curve.random_cmd > curve.cmd).all())
    of_zeros = faithfulness_curve(
        *names["task"], names["likelihood"], names["network"],
        unit_scores(*names["task"], names["likelihood"], names["network"]),
    )  # fmt: skip
    assert bool((of_zeros.random_cpr > of_zeros.cpr).all())
    assert torch.equal(dependence.right, right)
    accuracy = float(right.double().mean())
    assert bool((names["without"] < accuracy).all())
    assert bool((names["alone"] < names["without"]).all())
    assert lesions.spaces == ("fc1", "fc2") * 4
    assert lesions.num_passes == 1 + 8 * 20
    # The page shows what is printed, but for the digits.
    shown = re.search(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL).group(1)

    def plain(lines):
        return re.sub(r"-?\d+\.\d+", "0", lines)

    assert plain(capsys.readouterr().out).startswith(plain(shown))
