"""What one might take for granted: any form of inputs, odd sizes, models in any state; and what raises."""

import copy

import pytest
import torch
from tiny_models import Model, met, weights
from torch import nn
from torch.nn import functional

from modfast.network.following import CannotFollowError
from modfast.network.reading import read_network


def sides(network):
    return {name: (layer.row_units, layer.col_units) for name, layer in network.layers.items()}


def residual(width):
    layers = {"a": nn.Linear(width, 6), "b": nn.Linear(6, width), "c": nn.Linear(width, 3)}
    return Model(lambda m, x: m.c(x + m.b(m.a(x).relu())), **layers)


@pytest.mark.parametrize("width", [1, 2, 5, 6])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_a_stream_that_starts_from_the_input(width, tokens):
    found = sides(read_network(residual(width), torch.rand(2, tokens, width)))
    stream = found["a"][1]
    assert len(stream.unique()) == width
    assert torch.equal(stream, found["b"][0])
    assert torch.equal(stream, found["c"][1])
    assert torch.equal(found["a"][0], found["b"][1])
    assert len(torch.cat([stream, found["a"][0], found["c"][0]]).unique()) == width + 6 + 3


def test_inputs_that_are_added_are_the_same_units():
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(4, 5), "c": nn.Linear(4, 3)}
    model = Model(lambda m, x, y: (m.c(x + y), m.a(x), m.b(y)), **layers)
    found = sides(read_network(model, (torch.rand(2, 4), torch.rand(2, 4))))
    assert torch.equal(found["a"][1], found["c"][1])
    assert torch.equal(found["b"][1], found["c"][1])


def test_a_learned_token_is_of_the_stream():
    model = Model(lambda m, x: m.c(torch.cat([m.t.expand(len(x), 1, 4), m.a(x)], 1) + m.t), **{})
    model.a, model.c, model.t = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.rand(4))
    found = sides(read_network(model, torch.rand(2, 5, 3)))
    assert torch.equal(found["a"][0], found["c"][1])


def test_tokens_that_are_read_are_units_from_the_start():
    layers = {"embed": nn.Linear(5, 12), "one": nn.Linear(9, 9), "other": nn.Linear(9, 9)}

    def compute(m, x):
        x = m.embed(x)
        x = x + m.one(x.mT).mT
        return x + m.other(x.mT).mT

    found = sides(read_network(Model(compute, **layers), torch.rand(2, 9, 5)))
    tokens = found["one"][1]
    assert len(tokens.unique()) == 9
    for side in (found["one"][0], *found["other"]):
        assert torch.equal(side, tokens)


def test_a_parameter_that_multiplies_numbers_is_no_matrix():
    model = Model(lambda m, x: m.b(m.a(x) * m.w), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    model.w = nn.Parameter(torch.rand(5, 8))
    network = read_network(model, torch.rand(2, 5, 3))
    assert list(network.layers) == ["a", "b"]
    assert network.num_units == 3 + 8 + 2


@pytest.mark.parametrize("form", ["tuple", "mapping", "tensor"])
def test_forms_of_inputs_and_outputs(form):
    model = Model(
        lambda m, x: {"logits": m.b(m.a(x)), "both": (m.a(x),)}, a=nn.Linear(4, 5), b=nn.Linear(5, 3)
    )
    x = torch.rand(2, 4)
    model.forward = lambda x: model.compute(model, x)
    inputs = {"tuple": (x,), "mapping": {"x": x}, "tensor": x}[form]
    assert read_network(model, inputs).num_units == 4 + 5 + 3
    assert torch.equal(x, inputs[0] if form == "tuple" else inputs["x"] if form == "mapping" else inputs)


def test_states_of_models():
    def make():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))

    x = torch.rand(2, 4)
    model = make().train().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    assert read_network(model, x).num_units == 12
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for model in (torch.compile(make()), nn.DataParallel(make())):
        assert list(read_network(model, x).layers) == ["0", "3"]
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert read_network(make().to(dtype), x.to(dtype)).num_units == 12


def test_the_fast_path_of_attention_is_back_afterwards():
    assert torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    assert len(read_network(layer, torch.rand(2, 5, 8)).layers) == 4
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_is_no_model_or_no_input_raises():
    model = nn.Linear(4, 3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        read_network(lambda x: x, torch.rand(2, 4))
    with pytest.raises(ValueError, match="example_inputs must hold numbers"):
        read_network(model, torch.rand(2, 4, device="meta"))
    with pytest.raises(ValueError, match="'weight' has no numbers: it is on the meta device"):
        read_network(nn.Linear(4, 3, device="meta"), torch.rand(2, 4))


def test_a_branch_on_numbers_raises_with_a_short_message():
    model = Model(lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), a=nn.Linear(4, 4))
    with pytest.raises(CannotFollowError, match=r"torch\.export fails: Could not guard on") as raised:
        read_network(model, torch.rand(2, 4))
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_recurrent_layers_raise_and_still_work(kind):
    model = kind(4, 3)
    x = torch.rand(5, 4)
    before = model(x)[0]
    with pytest.raises(CannotFollowError, match="recurrent layers cannot be read as units"):
        read_network(model, x)
    assert torch.equal(model(x)[0], before)


W = {"w": (8, 3), "v": (2, 3)}


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: functional.linear(x, m.w * (m.w > 0)),
        lambda m, x: functional.linear(x, 0.5 * m.w),
        lambda m, x: functional.linear(x, torch.cat([m.w, m.v])),
        lambda m, x: functional.linear(x, m.w / m.w.norm()),
        lambda m, x: functional.linear(x, m.w.round().to(torch.int8).float()),
        lambda m, x: functional.linear(x, m.w.to(torch.int8).float()),
        lambda m, x: x @ (m.w * (m.w > 0)).T,
        lambda m, x: (m.w * 0.5) @ x.T,
        lambda m, x: functional.linear(x, m.w) @ (m.w / m.w.norm(dim=-1, keepdim=True)),
        lambda m, x: x @ (m.v.T @ m.v),
        lambda m, x: (m.v.T @ m.v) @ x.T,
        lambda m, x: m.v.softmax(0).T @ functional.linear(x, m.w),
    ],
)
def test_computed_weights_raise(compute):
    with pytest.raises(CannotFollowError, match="a weight that is computed"):
        read_network(*weights(compute, torch.rand(2, 3), **W))


def test_parametrized_weights_are_read():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    network = read_network(nn.Sequential(layer, nn.ReLU(), nn.Linear(5, 3)), torch.rand(2, 4))
    assert torch.equal(network.layers["0"].row_units, network.layers["2"].col_units)


def test_a_weight_that_is_used_twice_transposed_is_one_layer():
    network = read_network(
        *weights(lambda m, x: functional.linear(functional.linear(x, m.w), m.w.t()), torch.rand(2, 3), **W)
    )
    assert list(network.layers) == ["w"]
    assert network.num_units == 8 + 3


def test_several_factors_tie_groups_and_one_factor_scales_all():
    def grouped(m, x):
        gates = m.other(x)[..., :2, None]
        return m.b((m.a(x).unflatten(-1, (2, 3)) * gates).flatten(2))

    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 5), "other": nn.Linear(4, 2)}
    found = sides(read_network(Model(grouped, **layers), torch.rand(2, 7, 4)))
    assert torch.equal(found["a"][0], found["other"][0].repeat_interleave(3))
    network = read_network(*met(lambda a, c: a * c[..., :1]))
    assert not set(network.layers["a"].row_units.tolist()) & set(network.layers["other"].row_units.tolist())


def test_a_mixture_of_units_is_not_added_silently():
    def dense(m, x):
        written = torch.einsum("beh,ehc->bec", torch.einsum("bc,ech->beh", x, m.w).relu(), m.v)
        return x + written.sum(1)

    with pytest.raises(CannotFollowError, match="with what mixes several, number by number"):
        read_network(*weights(dense, torch.rand(7, 4), w=(3, 4, 6), v=(3, 6, 4)))


def test_matrices_of_a_stack_one_by_one():
    def each(m, x):
        parts = [functional.linear(functional.linear(x, m.w[i]).relu(), m.v[i]) for i in range(2)]
        return x + parts[0] + parts[1]

    network = read_network(*weights(each, torch.rand(7, 4), w=(2, 6, 4), v=(2, 4, 6)))
    assert list(network.layers) == ["w[0]", "v[0]", "w[1]", "v[1]"]
    assert network.num_units == 4 + 2 * 6


def test_a_parameter_that_is_a_matrix_and_a_table_raises():
    class Dictionary(nn.Module):
        """A sparse autoencoder whose activations are scaled by the norms of what they write."""

        def __init__(self, scaled):
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 4))
            self.scaled = scaled

        def forward(self, x):
            hidden = self.encode(x).relu()
            return (hidden * self.decode.norm(dim=1) if self.scaled else hidden) @ self.decode

    assert read_network(Dictionary(False), torch.rand(2, 4)).num_units == 4 + 6 + 4
    with pytest.raises(CannotFollowError, match=r"multiplies by the parameter 'decode' as a matrix"):
        read_network(Dictionary(True), torch.rand(2, 4))


def test_several_outputs_of_a_depthwise_channel_are_units_of_their_own():
    model = nn.Sequential(nn.Conv1d(3, 6, 1, groups=3), nn.Conv1d(6, 2, 1))
    network = read_network(model, torch.rand(1, 3, 4))
    assert {name: space.stop - space.start for name, space in network.spaces.items()} == {
        ".input": 3,
        "0": 6,
        "1": 2,
    }
    # Its weights are then edges, from each channel to its outputs.
    assert (network.graph().to_dense()[3:9, :3] != 0).sum(1).tolist() == [1] * 6


def test_a_convolution_of_one_channel_is_not_depthwise():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 1))
    assert read_network(model, torch.rand(2, 1, 4, 4)).num_units == 1 + 3 + 2


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_what_is_put_around_a_channel_is_of_the_channel(mode):
    def flattened(m, x):
        return m.b(functional.pad(m.a(x), (1, 1), mode).flatten(1))

    model = Model(flattened, a=nn.Conv1d(2, 3, 1), b=nn.Linear(3 * 7, 4))
    network = read_network(model, torch.rand(2, 2, 5))
    found = sides(network)
    assert torch.equal(found["b"][1], found["a"][0].repeat_interleave(7))
    assert network.num_units == 2 + 3 + 4


def test_a_summand_of_a_layer_that_another_has_written_is_of_its_units():
    def linear(m, x):
        return m.b(functional.linear(x, m.a.weight, m.other(x[0, 0])))

    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 5), "other": nn.Linear(4, 6)}
    found = sides(read_network(Model(linear, **layers), torch.rand(2, 7, 4)))
    assert torch.equal(found["a"][0], found["other"][0])

    def convolution(m, x):
        return m.b(functional.conv1d(x, m.a.weight, m.other(x[0, :, 0])))

    layers = {"a": nn.Conv1d(4, 6, 2), "b": nn.Conv1d(6, 5, 1), "other": nn.Linear(4, 6)}
    found = sides(read_network(Model(convolution, **layers), torch.rand(2, 4, 7)))
    assert torch.equal(found["a"][0], found["other"][0])


def test_learned_queries_attend():
    def attends(m, x):
        queries, keys, values = (
            each.unflatten(-1, (2, 3)).transpose(-2, -3) for each in (m.q(m.learned), m.k(x), m.v(x))
        )
        return m.b(((queries @ keys.mT).softmax(-1) @ values).transpose(-2, -3).flatten(-2))

    layers = {name: nn.Linear(4, 6) for name in "qkv"}
    model = Model(attends, **layers, b=nn.Linear(6, 5))
    model.learned = nn.Parameter(torch.randn(3, 4))
    found = sides(read_network(model, torch.rand(2, 7, 4)))
    for name in "kv":
        assert torch.equal(found[name][0], found["q"][0])
    assert torch.equal(found["b"][1], found["q"][0])
    assert len(found["q"][0].unique()) == 2


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_numbers_of_neighbours_are_of_the_same_units(shape):
    model = Model(lambda m, x: m.c((m.a(m.graph @ x) + m.b(x)).relu()), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    model.c = nn.Linear(6, 2)
    model.register_buffer("graph", torch.rand(5, 5))
    network = read_network(model, torch.rand(shape))
    found = sides(network)
    for side in (0, 1):
        assert torch.equal(found["a"][side], found["b"][side])
    assert network.num_units == 4 + 6 + 2


def test_units_along_three_dimensions_of_an_input_raise():
    layers = {"a": nn.Linear(5, 2), "b": nn.Linear(4, 2), "c": nn.Linear(3, 2)}
    model = Model(lambda m, x: (m.a(x), m.b(x.mT), m.c(x.transpose(1, 3))), **layers)
    with pytest.raises(CannotFollowError, match="along 3 dimensions: units along at most 2 can be followed"):
        read_network(model, torch.rand(2, 3, 4, 5))


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: (x[..., None] * m.w.T).sum(-2),
        lambda m, x: (x[..., None] * m.w.T).relu().permute(0, 2, 1).sum(-1),
        lambda m, x: (functional.linear(x, m.v)[:, None] * m.v.T).sum(-1),
        lambda m, x: ((x[:, None] - m.w) ** 2).sum(-1),
        lambda m, x: torch.linalg.vector_norm(x[:, None] - m.w, dim=-1),
    ],
)
def test_a_matrix_product_in_disguise_raises(compute):
    with pytest.raises(CannotFollowError, match=r"adds up what the parameter '[wv]' meets number by number"):
        read_network(*weights(compute, torch.rand(2, 3), **W))


def test_vectors_that_multiply_the_numbers_of_heads_may_be_added_up():
    def scored(m, x):
        heads = m.a(x).unflatten(-1, (2, 3))
        return m.b((heads * (heads * m.w).sum(-1, keepdim=True).softmax(0)).flatten(1))

    model = Model(scored, a=nn.Linear(4, 6), b=nn.Linear(6, 5))
    model.w = nn.Parameter(torch.randn(1, 2, 3))
    found = sides(read_network(model, torch.rand(5, 4)))
    assert torch.equal(found["a"][0], found["b"][1])
