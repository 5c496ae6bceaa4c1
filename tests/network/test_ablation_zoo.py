"""Zero ablation of units equals zeros in the columns that read them, in every model of the zoo."""

import pytest
import small_transformers as small
import torch
from test_dependency_groups import MODELS
from test_zoo import ZOO
from zeroed import outputs, zeroed

from modfast import read_network
from modfast.network.ablation import ablatable, ablate_units


def spread_out(parameter, generator):
    """Small models of transformers have weights so small that nothing has an effect."""
    if parameter.dim() > 1:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)


def assert_ablation_is_zeros(model, inputs, *, least=1):
    torch.manual_seed(0)
    model = model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread_out(parameter, generator)
    network = read_network(model, inputs)
    plain = outputs(model, inputs)
    readable, compared = ablatable(network), 0
    for name, space in network.spaces.items():
        candidates = torch.arange(network.num_units)[space][readable[space]]
        units = torch.zeros(network.num_units, dtype=torch.bool)
        units[candidates[::2]] = True
        expected = zeroed(model, network, units)
        if not len(candidates) or expected is None:
            continue
        expected = outputs(expected, inputs)
        with ablate_units(model, network, units):
            found = outputs(model, inputs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        compared += any(
            not torch.allclose(one, other, atol=1e-4) for one, other in zip(plain, found, strict=True)
        )
    assert compared >= least, "ablation had no effect: nothing was compared"
    for one, other in zip(outputs(model, inputs), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ZOO)
def test_transformers(name):
    make, inputs, _, _ = ZOO[name]
    torch.manual_seed(0)
    assert_ablation_is_zeros(make(), inputs, least=2)


@pytest.mark.parametrize("make", [small.gpt2, small.neox, small.llama, small.gemma, small.bert, small.vit])
def test_small_transformers(make):
    torch.manual_seed(0)
    made = make()
    model, inputs = made if isinstance(made, tuple) else (made, small.TOKENS)
    assert_ablation_is_zeros(model, inputs, least=2)


@pytest.mark.parametrize("name", MODELS)
def test_convolutional_networks(name):
    torch.manual_seed(0)
    assert_ablation_is_zeros(MODELS[name](), torch.rand(2, 3, 32, 32))
