"""The benchmarks of circuits measure what they say: loops decide as the walk does. No time is judged."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.circuits import answers, cases, peers, table
from modfast import Circuit, find_circuit
from modfast.cli import main
from modfast.data import load_dataset
from modfast.models import build_model
from modfast.train import CHECKPOINT, read_checkpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BEGIN, END = "<!-- circuits table: begin -->\n", "<!-- circuits table: end -->\n"


@pytest.mark.parametrize("peer", ["published", "tail only"])
def test_loops_find_the_same_circuit(peer: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False)
    ).double()
    inputs = torch.randn(30, 3, 4, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    loop = peers.PEERS[peer](model, inputs, 1)
    circuit = find_circuit(model, inputs, 1)
    for _ in range(12 * 8 + 8 * 5):
        loop()
    with pytest.raises(StopIteration):
        loop()
    for weight, mask in zip(loop.weights, circuit.masks.values(), strict=True):
        assert torch.equal(weight != 0, mask)
    assert 0 < circuit.size < 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_neurons_that_matter() -> None:
    count = table.neurons_that_matter
    last = torch.tensor([[True, False, False], [False, False, True]])
    middle = torch.tensor([[True, True, False], [True, True, True], [False, True, False]])
    first = torch.ones(3, 4, dtype=torch.bool)
    assert count([first, middle, last]) == 2
    assert count([last]) == 2


def test_cases() -> None:
    digits, patterns = cases.digits(), cases.noisy_patterns(per_class=20)
    assert sum(p.numel() for p in digits.model.parameters()) == 64 * 64 * 2 + 64 * 10
    assert [len(patterns.of_class(label)) for label in range(10)] == [20] * 10
    for case in (digits, patterns):
        with torch.no_grad():
            accuracy = (case.model.eval()(case.inputs).argmax(1) == case.labels).double().mean()
        # Trained, and not perfect: else there would be nothing to weigh.
        assert 0.3 < accuracy < 1.0


def test_table_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(table, "noisy_patterns", table.digits)
    page, out = tmp_path / "page.md", tmp_path / "circuits.json"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    table.main(["--repeats", "1", "--json", str(out), "--markdown", str(page), "--threads", "1"])
    (first, second) = json.loads(out.read_text())["cases"]
    assert first["case"] == second["case"] == "digits, MLP"
    assert first["weights"] == 64 * 64 * 2 + 64 * 10
    assert first["ratios"]["published"] == pytest.approx(
        first["weights"] * first["seconds"]["published"] / first["seconds"]["modfast"]
    )
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "| digits, MLP | 8,832 |" in text
    assert "digits, MLP" in capsys.readouterr().out


def test_answers_are_those_of_the_masked_model(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    few = ["--device", "cpu", "--threads", "1"]
    assert main(["train", "--data", "digits", "--epochs", "2", "--out", str(run), *few]) == 0
    asked = ["--criterion", "loss", "--labels", "3", "--images", "5"]
    assert main(["circuits", str(run), *asked, *few]) == 0
    out = tmp_path / "answers.json"
    answers.main([str(run), "--json", str(out)])
    (found,) = json.loads(out.read_text())

    dataset = load_dataset("digits")
    model = build_model("mlp", dataset.image_shape, dataset.num_classes)
    model.load_state_dict(read_checkpoint(run / CHECKPOINT)["model"])
    circuit = Circuit.load(run / "circuits/loss/label-3.npz")
    own = dataset.test_labels == 3
    for place, network in enumerate((model, circuit.apply(model))):
        with torch.no_grad():
            logits = network(dataset.normalize(dataset.test_images))
        answered, margin = logits.argmax(1) == 3, logits.softmax(1)[:, 3]
        pairs = margin[own][:, None] - margin[~own][None, :]
        expected = [answered[own], answered[~own], (pairs > 0).double() + 0.5 * (pairs == 0)]
        for (share, *_), values in zip((each[place:] for each in found["shares"]), expected, strict=True):
            assert share == pytest.approx(values.double().mean().item(), abs=1e-4)
    assert "AUC" in capsys.readouterr().out


def test_page_without_a_place_is_refused(tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(SystemExit):
        table.main(["--markdown", str(page)])
    assert "needs a line <!-- circuits table: begin -->" in capsys.readouterr().err
