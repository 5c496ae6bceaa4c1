"""Tiny models for the rules of operators, and what to expect of each: written down by hand."""

import torch
import transformers
from torch import nn

ATEN = torch.ops.aten


class Model(nn.Module):
    """What a function makes of the inputs and of layers."""

    def __init__(self, compute, **layers):
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.compute(self, *inputs)


def between(change, width=6, inputs=None, **layers):
    """A model that changes what one layer has written before another one reads it, and its inputs."""

    def compute(self, x):
        return self.b(change(self, self.a(x)))

    inputs = torch.rand(2, 7, 4) if inputs is None else inputs
    return Model(compute, a=nn.Linear(4, 6), b=nn.Linear(width, 5), **layers), inputs


def images(change, channels=6, **layers):
    """The same for images, which convolutions write and read."""

    def compute(self, x):
        return self.b(change(self, self.a(x)))

    layers = {"a": nn.Conv2d(4, 6, 1), "b": nn.Conv2d(channels, 5, 1), **layers}
    return Model(compute, **layers), torch.rand(2, 4, 8, 8)


def chain(*functions):
    def change(_, h):
        for function in functions:
            h = function(h)
        return h

    return change


def same(network):
    """What the first layer writes is what the second one reads."""
    return order(*range(6))(network)


def order(*places, glu=False):
    """The second layer reads the rows of the first one that are at these places."""

    def check(network):
        rows = network.layers["a"].row_units
        assert len(rows.unique()) == (3 if glu else 6)
        assert not glu or torch.equal(rows[:3], rows[3:])
        assert torch.equal(network.layers["b"].col_units, rows[list(places)])

    return check


def all_same(*sides):
    """The rows (``a``) or columns (``b.``) of these layers are the same units."""

    def check(network):
        found = [
            network.layers[side[:-1]].col_units if side.endswith(".") else network.layers[side].row_units
            for side in sides
        ]
        assert len(found[0].unique()) == len(found[0])
        for other in found[1:]:
            assert torch.equal(found[0], other)

    return check


def raises(message):
    return message


def unary(names):
    return chain(*[getattr(ATEN, name) for name in names.split()])


CURVED = (
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu sigmoid silu softplus "
    "tanh log_sigmoid"
)
SMOOTH = (
    "abs ceil cos erf exp exp2 expm1 floor log log1p log2 nan_to_num neg reciprocal round rsqrt sign sin "
    "sqrt square clone detach alias logit"
)


def met(operator):
    """What two layers write meets in an operator."""

    def compute(self, x):
        return self.b(operator(self.a(x), self.other(x)))

    return Model(compute, a=nn.Linear(4, 6), b=nn.Linear(6, 5), other=nn.Linear(4, 6)), torch.rand(2, 7, 4)


def attention(operator, heads=2):
    """Three layers whose outputs meet in an attention."""

    def compute(self, x):
        parts = [layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        return self.b(operator(*parts).transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(4, 6) for name in "qkv"}
    return Model(compute, **layers, b=nn.Linear(6, 5)), torch.rand(2, 7, 4)


def heads(*places):
    """Queries, keys, values and what is read of them are of the heads that these numbers name."""

    def check(network):
        found = [network.layers[name].row_units for name in "qkv"] + [network.layers["b"].col_units]
        for side in found:
            assert torch.equal(side, found[0])
        assert (found[0] - found[0].min()).tolist() == list(places)

    return check


def weights(compute, inputs, **parameters):
    """A model that multiplies by parameters of its own."""
    model = Model(compute)
    for name, shape in parameters.items():
        setattr(model, name, nn.Parameter(torch.randn(shape)))
    return model, inputs


def norm(_, h):
    h = ATEN.layer_norm(h, [6], None, None)
    h = ATEN.rms_norm(h, [6])
    return ATEN.group_norm(h.transpose(1, 2), 3).transpose(1, 2)


MEET = {
    names: [getattr(torch, name) for name in names.split()]
    for names in (
        "add sub rsub maximum minimum fmin fmax",
        "mul div fmod remainder floor_divide atan2 pow copysign",
    )
}


def met_in_all(operators):
    return met(lambda a, c: sum(operator(a, c) for operator in operators))


COMPARED = "eq ne lt le gt ge isnan isinf logical_and logical_or logical_not __and__ __or__ bitwise_not"


def compared(a, c):
    truth = (a == c) | (a != c) | ((a < c) & (a <= c)) | (~(a > c))
    truth = torch.logical_or(truth, torch.logical_and(a >= c, torch.logical_not(a.isnan())))
    return truth.float() + a.isinf().float()


def sides(network):
    return {name: (layer.row_units, layer.col_units) for name, layer in network.layers.items()}


def shuffled(network):
    """Channels that become places of one channel are one unit; here each is there twice."""
    found = sides(network)
    assert torch.equal(found["a"][0], found["b"][1][torch.tensor([0, 0, 0, 0, 1, 1])])
    assert torch.equal(found["b"][1][0], found["b"][1][2])


def mixed_halves(network):
    found = sides(network)
    assert torch.equal(found["b"][1], torch.cat([found["a"][0][:3], found["other"][0][:3]]))


def pairs(network):
    found = sides(network)
    assert torch.equal(found["a"][0], found["b"][1])
    assert torch.equal(found["a"][0][::2], found["a"][0][1::2])
    assert len(found["a"][0].unique()) == 3


def sliced(network):
    found = sides(network)
    assert torch.equal(found["w"][0][:4], found["v"][1][2:])
    assert len(torch.cat([found["w"][0], found["v"][1]]).unique()) == 8


def stored_as_in_out(network):
    # As all parameters of no known layer these count as (out, in), as they are stored.
    found = sides(network)
    assert torch.equal(found["w"][1], found["v"][0])
    assert len(found["w"][1].unique()) == 6


def written_from_the_left(network):
    found = sides(network)
    assert torch.equal(found["w"][0], found["v"][1])
    assert len(found["w"][0].unique()) == 6


def a_matrix_for_each(network):
    found = sides(network)
    for place in range(2):
        assert torch.equal(found[f"w[{place}]"][1], found[f"v[{place}]"][0])
        assert len(found[f"w[{place}]"][1].unique()) == 6
    assert not set(found["w[0]"][1].tolist()) & set(found["w[1]"][1].tolist())


def all_sizes(network, number):
    assert len(network.layers) == number


def embedded(network):
    found = sides(network)
    assert torch.equal(found["a"][1], found["b"][1])
    assert len(found["a"][0].unique()) == 9


def in_a_row(network):
    found = sides(network)
    assert torch.equal(found["0"][0], found["1"][1])
    assert len(found["0"][0].unique()) == 6
    assert network.num_units == 3 + 6 + 4


def chained_pools(_, h):
    pool = torch.nn.functional
    h = pool.avg_pool2d(pool.max_pool2d(h, 2), 2)
    for mode in ("nearest", "bilinear", "bicubic"):
        h = pool.interpolate(h, scale_factor=2, mode=mode)
    return pool.adaptive_avg_pool2d(h, 3)


def smooth_pools(_, h):
    pool = torch.nn.functional
    for mode in ("bilinear", "bicubic"):
        h = pool.interpolate(h, scale_factor=0.5, mode=mode, antialias=True)
    return pool.adaptive_max_pool2d(pool.interpolate(h, scale_factor=4, mode="nearest-exact"), 3)


def pools3d(h):
    pool = torch.nn.functional
    h = pool.avg_pool3d(pool.max_pool3d(h, 2), 2)
    h = pool.interpolate(pool.interpolate(h, scale_factor=2), scale_factor=2, mode="trilinear")
    return pool.adaptive_avg_pool3d(h, 3)


def mixture():
    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    config = transformers.MixtralConfig(**sizes, **heads)
    return transformers.MixtralForCausalLM(config), {"input_ids": torch.arange(4)[None]}


def pools1d(h):
    pool = torch.nn.functional
    h = pool.interpolate(pool.interpolate(h, scale_factor=4), scale_factor=2, mode="linear")
    return pool.adaptive_avg_pool1d(pool.avg_pool1d(pool.max_pool1d(h, 2), 2), 3)


def bmm_attention(q, k, v):
    shape = q.shape
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(shape)


def pairwise():
    """Each of some vectors with each of others, as images with texts: their units are the same."""
    layers = {"a": nn.Linear(4, 6), "other": nn.Linear(3, 6)}
    model = Model(lambda m, x, y: torch.mm(m.a(x), m.other(y).t()), **layers)
    return model, (torch.rand(5, 4), torch.rand(2, 3))


QKV = torch.nn.functional.scaled_dot_product_attention
GRAM = "multiplies each unit by every other one"


def bounded(a, c):
    """Numbers are replaced by bounds that another layer has written."""
    return torch.clamp(a, min=c) + torch.clamp_min(a, c) + torch.clamp_max(a, c)


def normed(name, a, c):
    """Norms whose factors and summands another layer has written."""
    factor, summand = c[0, 0], c[0, 1]
    if name == "layer_norm":
        return ATEN.layer_norm(a, [6], factor, None) + ATEN.layer_norm(a, [6], None, summand)
    if name == "rms_norm":
        return ATEN.rms_norm(a, [6], factor)
    if name == "group_norm":
        return ATEN.group_norm(a.mT, 3, factor, summand).mT
    return torch.nn.functional.instance_norm(a.mT, weight=factor, bias=summand).mT


def looked_up(network):
    """The rows of a parameter are looked up, as those of an embedding."""
    found = sides(network)
    assert torch.equal(found["w"][1], found["b"][1])
    assert network.layers["w"].role == "embedding"
    assert network.num_units == 9 + 6 + 5


def columns_looked_up(network):
    found = sides(network)
    assert torch.equal(found["w"][0], found["b"][1])
    assert network.layers["w"].role == "embedding"
    assert network.num_units == 9 + 6 + 5


def tables(compute, *shape):
    """A model that looks up rows or columns of a parameter, and then reads them."""
    model = Model(compute, b=nn.Linear(6, 5))
    model.w = nn.Parameter(torch.randn(shape))
    return model, torch.tensor([[1, 2, 8]])


NOISE = all_same("a", "b.")
