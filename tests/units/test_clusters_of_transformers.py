"""Curves and clusters of a transformer's heads and neurons, against plain loops over ablations."""

from functools import cache

import pytest
import torch
import transformers
from planted_units import plain_loop

from modfast import (
    accuracy,
    cluster_ablation,
    cluster_dependence,
    cluster_lesions,
    faithfulness_curve,
    next_token_log_likelihood,
    read_network,
    spectral_cluster,
    unit_scores,
)

INSIDE = ["*.attn.*", "*.mlp.c_fc"]


@cache
def gpt2():
    """A random GPT-2 with dropout, in training mode, and texts, of half of which it gets the last token."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * parameter.shape[0] ** -0.5)
    texts = torch.randint(0, 20, (16, 8))
    network = read_network(model, {"input_ids": texts, "use_cache": False})
    with torch.no_grad():
        texts[::2, -1] = model(texts).logits[::2, -2].argmax(-1)
    return model.train(), network, [texts[:10], texts[10:]]


def inside(network):
    units = torch.zeros(network.num_units, dtype=torch.bool)
    for name, space in network.spaces.items():
        units[space] = ".attn." in name or name.endswith("mlp.c_fc")
    return units


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_curves(ablation):
    model, network, batches = gpt2()
    reference = None if ablation == "zero" else batches[0]
    options = {"ablation": ablation, "reference": reference}
    scores = unit_scores(model, batches, next_token_log_likelihood, network, **options)
    assert torch.equal(~scores.isnan(), inside(network))
    curve = faithfulness_curve(
        model, batches, next_token_log_likelihood, network, scores, sizes=[0.25], n_random=1, **options
    )
    assert curve.num_asked == 2 * (4 + 64)
    best = torch.zeros_like(inside(network))
    best[scores.nan_to_num(-torch.inf).argsort(descending=True)[:34]] = True
    for units, found in ((inside(network) & ~best, curve.sufficiency), (best, curve.necessity)):
        values = plain_loop(model, network, batches, next_token_log_likelihood, units, ablation, reference)
        assert float(found[0]) == pytest.approx(float(values.mean()), rel=1e-5)
    assert curve.sufficiency[0] != curve.random_sufficiency[0, 0]


def test_clusters_of_its_graph():
    model, network, batches = gpt2()
    labels = spectral_cluster(network.graph(), 3)
    found = cluster_ablation(model, batches, next_token_log_likelihood, network, labels)
    dependence = cluster_dependence(model, batches, accuracy, network, labels, n_random=2)
    lesions = cluster_lesions(
        model, batches, accuracy, network, labels,
        classes=torch.cat(batches)[:, 0] % 2, by_space=False, n_random=2,
    )  # fmt: skip
    classes = torch.cat(batches)[:, 0] % 2
    none = torch.zeros_like(inside(network))
    right = plain_loop(model, network, batches, accuracy, none)
    assert torch.equal(dependence.right, right == 1)
    assert 8 <= int(right.sum()) < 16
    for cluster in range(3):
        units = inside(network) & (labels == cluster)
        values = plain_loop(model, network, batches, next_token_log_likelihood, units)
        assert float(found[cluster]) == pytest.approx(float(values.mean()), rel=1e-5)
        answers = plain_loop(model, network, batches, accuracy, units)
        assert torch.equal(dependence.needed[:, cluster], answers[right == 1] == 0)
        drops = torch.stack([(right - answers)[classes == each].mean() for each in range(2)])
        part = lesions.clusters.tolist().index(cluster)
        torch.testing.assert_close(lesions.class_drops[part], drops)
    assert dependence.needed.any()


def test_spaces_by_glob():
    model, network, batches = gpt2()
    heads = cluster_ablation(model, batches, next_token_log_likelihood, network, 1, spaces="*.attn.*")
    both = cluster_ablation(model, batches, next_token_log_likelihood, network, 1, spaces=INSIDE)
    assert float(both[0]) == float(cluster_ablation(model, batches, next_token_log_likelihood, network, 1)[0])
    assert both != heads
