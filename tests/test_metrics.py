"""Ready metrics for outputs that are no numbers."""

import pytest
import torch
from torch import nn

from modfast import accuracy, find_unit_circuit, read_network


def test_an_example_without_an_answer_is_not_right():
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [0.0, torch.inf]])
    targets = torch.tensor([0, 0, 1])
    found = accuracy(logits, (torch.zeros(3, 2), targets))
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == [1, 1]
    text = torch.tensor([[0, 1, 0], [0, 1, 1]])
    of_text = accuracy(torch.stack([logits[:2], logits[:2], logits[:2]], 1)[:, :3], text)
    assert of_text.isnan().tolist() == [True, False]


def test_a_model_without_answers_has_no_circuit():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network = read_network(model, torch.zeros(1, 2))
    model[2].bias.data[:] = torch.nan
    scores = torch.full((network.num_units,), torch.nan)
    scores[network.spaces["0"]] = 0.0
    batch = torch.rand(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="metric must be finite, got nan"):
        find_unit_circuit(model, [batch], accuracy, network, scores=scores)
