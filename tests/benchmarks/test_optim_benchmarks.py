"""The benchmarks of the optimiser measure what they say: the steps are the same. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.optim import peers, table

BEGIN, END = "<!-- optim table: begin -->\n", "<!-- optim table: end -->\n"
SMALL = peers.Case("small", ((30, 20), (16, 30)), 4)


def weights_after(name: str, steps: int = 3) -> list[torch.Tensor]:
    contestant = peers.Steps(name, SMALL)
    for _ in range(steps):
        contestant()
    return [parameter.detach() for parameter in contestant.model.parameters()]


@pytest.mark.parametrize("name", [peers.PLAIN, peers.ACCUMULATE])
def test_steps_without_much_of_a_loss_are_those_of_pytorch(name: str) -> None:
    for ours, theirs in zip(weights_after(name), weights_after(peers.FUSED), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_loss_changes_the_step() -> None:
    moved = zip(weights_after(peers.WITH_LOSS), weights_after(peers.PLAIN), strict=True)
    assert all(float((ours - theirs).abs().max()) > 1e-6 for ours, theirs in moved)


@pytest.mark.parametrize("name", [peers.WITH_KEEP, peers.TOPK])
def test_a_tenth_is_kept(name: str) -> None:
    assert [int(weight.count_nonzero()) for weight in weights_after(name)] == [60, 48]


def test_table_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(table, "CASES", (SMALL,))
    page, out = tmp_path / "page.md", tmp_path / "optim.json"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    table.main(["--repeats", "1", "--json", str(out), "--markdown", str(page), "--threads", "1"])
    (result,) = json.loads(out.read_text())["results"]
    times = result["milliseconds"]
    assert set(times) == set(peers.PEERS)
    assert result["ratios"][peers.WITH_LOSS] == pytest.approx(times[peers.WITH_LOSS] / times[peers.FUSED])
    assert result["topk_over_keep"] == pytest.approx(times[peers.TOPK] / times[peers.WITH_KEEP])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "| small, k 4 |" in text
    assert "small, k 4" in capsys.readouterr().out
