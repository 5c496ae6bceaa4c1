"""Units are ablated where weights read them: zero, mean and resample, in every kind of model and context."""

import copy

import pytest
import torch
import torch.nn.functional as F
from computed_models import ALL_MAKERS
from small_transformers import gpt2
from test_ablation_zoo import assert_ablation_is_zeros
from test_unchanged import picture
from torch import nn
from zeroed import outputs, zeroed

from modfast import ablate_units, read_network

X = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        .to(dtype)
        .eval()
    )


def hidden(network, name="0"):
    return torch.arange(network.num_units)[network.spaces[name]]


def some(network, name="0"):
    return hidden(network, name)[::2]


class Functional(nn.Module):
    """Multiplies by parameters in many ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        h, w, bias = self.a(x).relu(), self.b.weight, self.b.bias
        return {
            "linear": lambda: F.linear(h, weight=w, bias=bias),
            "matmul": lambda: torch.matmul(h, w.t()) + bias,
            "at": lambda: h @ w.T + bias,
            "left": lambda: (w @ h.mT).mT + bias,
            "mm": lambda: torch.mm(h, w.transpose(0, 1)) + bias,
            "addmm": lambda: torch.addmm(bias, h, w.t()),
            "einsum": lambda: torch.einsum("ni,oi->no", h, w) + bias,
            "einsum of a list": lambda: torch.einsum("oi,...i->...o", [w, h]) + bias,
            "halves of the columns": lambda: h[:, :3] @ w[:, :3].T + h[:, 3:] @ w[:, 3:].T + bias,
            "halves of the rows": lambda: torch.cat([F.linear(h, w[:2]), F.linear(h, w[2:])], 1) + bias,
            "one row at a time": lambda: torch.cat([F.linear(h, row) for row in w.split(1)], 1) + bias,
            "as a convolution": lambda: F.conv1d(h[:, :, None], w[:, :, None], bias)[..., 0],
            "detached": lambda: F.linear(h, w.detach(), bias),
        }[self.way]()


WAYS = [
    "linear", "matmul", "at", "left", "mm", "addmm", "einsum", "einsum of a list", "halves of the columns",
    "halves of the rows", "one row at a time", "as a convolution", "detached",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_however_a_model_multiplies(way):
    torch.manual_seed(0)
    model = Functional(way).eval()
    reader = Functional("linear").eval()  # read_network need not follow each way
    reader.load_state_dict(model.state_dict())
    network = read_network(reader, X)
    units = torch.zeros(network.num_units, dtype=torch.bool)
    units[some(network, "a")] = True
    with torch.no_grad(), ablate_units(model, network, units):
        found = model(X)
    expected = zeroed(reader, network, units)(X)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, model(X), atol=1e-3)


@pytest.mark.parametrize("spoil", [lambda w: w * 2, lambda w: w.clone(), lambda w: torch.cat([w, w])[:5]])
def test_a_weight_that_is_changed_first_raises(spoil):
    class Spoilt(Functional):
        def forward(self, x):
            return F.linear(self.a(x).relu(), spoil(self.b.weight))

    model, reader = Spoilt("linear").eval(), Functional("linear").eval()
    network = read_network(reader, X)
    with ablate_units(model, network, some(network, "a")), pytest.raises(ValueError, match="layer 'b'"):
        model(X)
    # What is read of others does not matter.
    with ablate_units(model, network, hidden(network, ".input")[:1]):
        model(X)


@pytest.mark.parametrize("kind", ALL_MAKERS)
def test_computed_weights(kind):
    model = ALL_MAKERS[kind]().eval()
    network = read_network(model, X)
    before, units = picture(model), hidden(network, "0")[::2]
    with torch.no_grad():
        whole = model(X)
        with ablate_units(model, network, units):
            found = model(X)
    assert not torch.allclose(whole, found, atol=1e-5), "nothing was ablated"
    # Ablated by hand, where the second layer reads.
    layers = dict(model.named_modules())
    name = next(name for name in ("1", "base_model.model.1", "module.1") if name in layers)
    off = torch.zeros(layers[name](torch.zeros(1, 8)).shape[0], 8, dtype=torch.bool)
    off[:, ::2] = True
    hook = layers[name].register_forward_pre_hook(lambda _, args: (args[0].masked_fill(off, 0),))
    with torch.no_grad():
        torch.testing.assert_close(found, model(X))
    hook.remove()
    after = picture(model)
    assert before.keys() == after.keys()
    assert before["tensors"].keys() == after["tensors"].keys()


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_experts(way):
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, experts_implementation=way,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    inputs = {"input_ids": torch.tensor([[7, 3, 49, 12, 0, 31, 8, 25]]), "use_cache": False}
    assert_ablation_is_zeros(model, inputs, least=3)
    assert config._experts_implementation == way


def test_compiled_models_and_half_precision():
    model = mlp()
    network = read_network(model, X)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(X)  # compiled before units are ablated
        with ablate_units(model, network, some(network)):
            expected = model(X)
        with ablate_units(compiled, network, some(network)):
            torch.testing.assert_close(compiled(X), expected, rtol=0, atol=0)
        torch.testing.assert_close(compiled(X), plain, rtol=0, atol=0)
    for dtype in (torch.float16, torch.bfloat16):
        small = mlp(dtype)
        with torch.no_grad(), ablate_units(small, network, some(network)):
            found = small(X.to(dtype))
        units = torch.zeros(network.num_units, dtype=torch.bool)
        units[some(network)] = True
        with torch.no_grad():
            torch.testing.assert_close(found, zeroed(small, network, units)(X.to(dtype)), rtol=0, atol=0)


def test_wrapped_and_called_with_other_parameters():
    model = mlp()
    network = read_network(model, X)
    other = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
    twice = copy.deepcopy(model)
    twice.load_state_dict(other)
    with torch.no_grad(), ablate_units(model, network, some(network)):
        found = torch.func.functional_call(model, other, X)
        again = model(X)
    with torch.no_grad(), ablate_units(twice, network, some(network)):
        torch.testing.assert_close(found, twice(X))
    with torch.no_grad(), ablate_units(nn.DataParallel(model), network, some(network)):
        torch.testing.assert_close(again, model(X))


def test_gradients_of_weights_under_ablation():
    model = mlp(torch.float64)
    x, network = X.double(), read_network(mlp(), X)
    units = torch.zeros(network.num_units, dtype=torch.bool)
    units[some(network)] = True
    with ablate_units(model, network, units):
        model(x).pow(2).sum().backward()
        transformed = torch.func.grad(
            lambda params: torch.func.functional_call(model, params, x).pow(2).sum()
        )(dict(model.named_parameters()))
    masked = zeroed(model, network, units)
    masked(x).pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        expected = dict(masked.named_parameters())[name].grad
        if name == "2.weight":
            expected = expected.clone()
            expected[:, ::2] = 0  # what is not read has no gradient
        torch.testing.assert_close(parameter.grad, expected)
        torch.testing.assert_close(transformed[name], expected)


def test_nested_and_repeated():
    model = mlp()
    network = read_network(model, X)
    first, second = hidden(network)[:3], hidden(network, "2")[:2]
    with torch.no_grad():
        plain = model(X)
        with ablate_units(model, network, torch.cat([first, second])):
            both = model(X)
        outer = ablate_units(model, network, first)
        with outer:
            one = model(X)
            with ablate_units(model, network, second):
                torch.testing.assert_close(model(X), both, rtol=0, atol=0)
            torch.testing.assert_close(model(X), one, rtol=0, atol=0)
            with outer:
                torch.testing.assert_close(model(X), one, rtol=0, atol=0)
            torch.testing.assert_close(model(X), one, rtol=0, atol=0)
        with outer:
            torch.testing.assert_close(model(X), one, rtol=0, atol=0)
        torch.testing.assert_close(model(X), plain, rtol=0, atol=0)


def test_the_model_is_the_same_after_an_exception():
    model, inputs = gpt2()
    network = read_network(model, inputs)
    before = picture(model)
    space = next(name for name in network.spaces if "mlp" in name)

    def fail():
        with ablate_units(model, network, some(network, space)):
            model(**inputs)
            raise KeyError("from inside")

    with pytest.raises(KeyError):
        fail()
    after = picture(model)
    for kind in before:
        if kind != "tensors":
            assert repr(before[kind]) == repr(after[kind])
    assert all(torch.equal(one[2], other[2]) for one, other in zip(
        before["tensors"].values(), after["tensors"].values(), strict=True))  # fmt: skip
    assert not model._forward_pre_hooks


def test_mean_is_that_of_each_column_over_examples_and_places():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 2),
    ).eval()
    reference, x = torch.randn(7, 2, 5, 5), torch.randn(3, 2, 5, 5)
    network = read_network(model, x)
    units = torch.cat([hidden(network, "0")[:2], hidden(network, "2")[1:2]])
    with torch.no_grad(), ablate_units(model, network, units, "mean", [reference[:4], reference[4:]]):
        found = model(x)
    with torch.no_grad():
        hidden_of = model[:2](reference)
        h = model[:2](x)
        h[:, :2] = hidden_of[:, :2].mean((0, 2, 3))[:, None, None]  # inside; the padding stays zero
        flat, flat_of = model[2:5](h), model[:5](reference)
        flat[:, 9:18] = flat_of[:, 9:18].mean(0)  # a channel's places have columns, and means, of their own
        torch.testing.assert_close(found, model[5](flat))


def test_resampled_units_are_those_of_the_paired_example():
    model = mlp()
    network = read_network(model, X)
    other = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with ablate_units(model, network, some(network), "resample", other):
            found = [model(X), model(X)]
        h = model[:2](X)
        h[:, ::2] = model[:2](other)[:, ::2]
        for each in found:
            torch.testing.assert_close(each, model[2:](h))
        with ablate_units(model, network, some(network), "resample", [other]):
            torch.testing.assert_close(model(X), found[0])
            with pytest.raises(ValueError, match="reference must pair one example"):
                model(X[:3])
            torch.testing.assert_close(model(X), found[0])


def test_tokens_are_ablated_in_embeddings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)).eval()
    ids = torch.tensor([[0, 1, 2], [4, 2, 0]])
    network = read_network(model, ids)
    tokens = hidden(network, "0.inputs")
    with torch.no_grad():
        with ablate_units(model, network, tokens[[0, 2]]):
            found = model(ids)
        written = model[0](ids)
        written[(ids == 0) | (ids == 2)] = 0
        torch.testing.assert_close(found, model[1](written))
        with (
            ablate_units(model, network, hidden(network, "0")[:1]),
            ablate_units(model, network, tokens[[0, 2]]),
        ):
            written[..., 0] = 0
            torch.testing.assert_close(model(ids), model[1](written))
    with pytest.raises(ValueError, match='must be "zero"'):
        ablate_units(model, network, tokens[:1], "mean", ids)


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        ([-1], ValueError, "units must lie in"),
        ([10**6], ValueError, "units must lie in"),
        (torch.zeros(3, dtype=torch.bool), ValueError, "bools"),
        (torch.zeros(2), TypeError, "bools or integers"),
        (torch.zeros(1, 1, dtype=torch.long), ValueError, "1-D"),
        ("all", TypeError, "units"),
        ([24], ValueError, "no weight reads unit"),
    ],
)
def test_bad_units(units, error, message):
    model = mlp()
    network = read_network(model, X)
    units = [network.spaces["4"].start] if units == [24] else units
    with pytest.raises(error, match=message):
        ablate_units(model, network, units)


def call_ablated(model, *arguments):
    with ablate_units(model, *arguments):
        return model(X)


def test_bad_ablations_and_references():
    model = mlp()
    network = read_network(model, X)
    units = some(network)
    for ablation, reference, message in (
        ("noise", None, "ablation must be"),
        ("mean", None, "reference must be given"),
        ("resample", None, "reference must be given"),
        ("zero", X, "reference is for"),
        ("mean", [], "at least one batch"),
        ("mean", X[:0], "empty"),
        ("mean", X * torch.inf, "must be finite"),
        ("resample", [X, X], "one batch"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            ablate_units(model, network, units, ablation, reference),
        ):
            model(X)
    with pytest.raises(TypeError, match="reference"):
        ablate_units(model, network, units, "mean", 3)
    with pytest.raises(ValueError, match="no layer '0'"):
        ablate_units(nn.Sequential(nn.Flatten()), network, units)
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="must read 8 inputs"):
        ablate_units(other, network, units)
    with ablate_units(model, network, []), torch.no_grad():
        torch.testing.assert_close(model(X), mlp()(X))


def test_outputs_are_those_of_the_model_itself():
    model = mlp()
    assert torch.equal(outputs(model, X)[0], model(X))


def test_groups_that_read_the_same_units():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(6, 4, 1, groups=2)

        def forward(self, x):
            h = self.a(x).relu()
            return self.b(torch.cat([h, h], 1))

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(2, 2, 3, 3)
    network = read_network(model, x)
    units = torch.zeros(network.num_units, dtype=torch.bool)
    units[hidden(network, "a")[:1]] = True
    with torch.no_grad(), ablate_units(model, network, units):
        found = model(x)
    with torch.no_grad():
        torch.testing.assert_close(found, zeroed(model, network, units)(x))
        assert not torch.allclose(found, model(x), atol=1e-3)


def test_a_mask_may_hold_units_that_no_weight_reads():
    """As "all units outside this cluster" does, outputs among them."""
    model = mlp()
    network = read_network(model, X)
    everything = torch.ones(network.num_units, dtype=torch.bool)
    read = everything.clone()
    read[network.spaces["4"]] = False
    with torch.no_grad():
        with ablate_units(model, network, everything):
            found = model(X)
        with ablate_units(model, network, read):
            torch.testing.assert_close(model(X), found, rtol=0, atol=0)
        torch.testing.assert_close(found, model[4].bias.expand(6, 3))
    with pytest.raises(ValueError, match="no weight reads unit"):
        ablate_units(model, network, ~read)
