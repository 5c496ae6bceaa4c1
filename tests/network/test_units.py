"""Whole models read as units: what is shared with what, written down by hand for each kind of model."""

import pytest
import torch
import torchvision
from small_transformers import bert, gemma, gpt2, llama, neox, vit
from torch import nn

from modfast import CannotFollowError, read_network
from modfast.models import CNN


def read(make):
    model, inputs = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    network = read_network(model, inputs)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    return network


def same(*sides):
    return all(torch.equal(side, sides[0]) for side in sides[1:])


def sides(network, pattern):
    """The rows and columns of the layer with this name."""
    layer = network.layers[pattern]
    return layer.row_units, layer.col_units


def assert_all_units_are_used(network):
    used = torch.cat(
        [side.flatten() for each in network.layers.values() for side in (each.row_units, each.col_units)]
    )
    assert torch.equal(used.unique(), torch.arange(network.num_units))
    covered = torch.cat([torch.arange(space.start, space.stop) for space in network.spaces.values()])
    assert torch.equal(covered.sort().values, torch.arange(network.num_units))


def test_gpt2():
    network = read(gpt2)
    assert_all_units_are_used(network)
    stream = torch.arange(32) + network.spaces["residual"].start
    tokens, columns = sides(network, "transformer.wte")
    assert same(columns, sides(network, "transformer.wpe")[1], stream)
    assert network.layers["lm_head"].tied_to == "transformer.wte"
    assert same(sides(network, "lm_head")[0], tokens)
    assert len(tokens.unique()) == 50
    heads = []
    for block in range(2):
        prefix = f"transformer.h.{block}"
        qkv, read_by_qkv = sides(network, f"{prefix}.attn.c_attn")
        written, read_by_output = sides(network, f"{prefix}.attn.c_proj")
        hidden, read_by_mlp = sides(network, f"{prefix}.mlp.c_fc")
        written_by_mlp, read_hidden = sides(network, f"{prefix}.mlp.c_proj")
        assert same(stream, read_by_qkv, written, read_by_mlp, written_by_mlp)
        # 32 rows each of query, key and value; a head has 8 of each.
        query, key, value = qkv.chunk(3)
        assert same(query, key, value, read_by_output)
        assert same(query, query.unique().repeat_interleave(8))
        assert same(hidden, read_hidden)
        assert len(hidden.unique()) == 128
        heads.append(query.unique())
    assert network.num_units == 32 + 50 + 16 + 2 * (4 + 128)
    assert not set(heads[0].tolist()) & set(heads[1].tolist())
    assert network.select("embedding") == ["transformer.wte", "lm_head"]
    assert network.select("position_embedding") == ["transformer.wpe"]
    assert network.select("attention_qkv") == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert network.select("attention_output") == [f"transformer.h.{i}.attn.c_proj" for i in range(2)]
    assert network.select("mlp_input") == [f"transformer.h.{i}.mlp.c_fc" for i in range(2)]
    assert network.select("mlp_output") == [f"transformer.h.{i}.mlp.c_proj" for i in range(2)]


def test_neox_whose_rows_of_query_key_and_value_alternate_by_head():
    network = read(neox)
    assert_all_units_are_used(network)
    for block in range(2):
        qkv, stream = sides(network, f"gpt_neox.layers.{block}.attention.query_key_value")
        heads = qkv.unique()
        assert same(qkv, heads.repeat_interleave(24))
        written, attended = sides(network, f"gpt_neox.layers.{block}.attention.dense")
        assert same(attended, heads.repeat_interleave(8))
        assert same(stream, written, sides(network, "gpt_neox.embed_in")[1])
    assert len(network.select("head")) == 1  # its name depends on the version
    assert len(network.select("attention_qkv")) == len(network.select("mlp_input")) == 2


@pytest.mark.parametrize(("make", "heads"), [(llama, 2), (gemma, 1)])
def test_query_heads_that_share_a_key_and_value_are_one_unit(make, heads):
    network = read(make)
    assert_all_units_are_used(network)
    for block in range(2):
        prefix = f"model.layers.{block}"
        query, stream = sides(network, f"{prefix}.self_attn.q_proj")
        key, value = (sides(network, f"{prefix}.self_attn.{each}_proj")[0] for each in "kv")
        written, attended = sides(network, f"{prefix}.self_attn.o_proj")
        units = query.unique()
        assert len(units) == heads
        assert same(key, value, units.repeat_interleave(8))
        assert same(query, attended, units.repeat_interleave(32 // heads))
        gate, up = (sides(network, f"{prefix}.mlp.{each}_proj")[0] for each in ("gate", "up"))
        written_by_mlp, hidden = sides(network, f"{prefix}.mlp.down_proj")
        assert same(gate, up, hidden)
        assert same(stream, written, written_by_mlp, sides(network, "model.embed_tokens")[1])
    for role, name in (("mlp_gate", "gate"), ("mlp_input", "up"), ("mlp_output", "down")):
        assert network.select(role) == [f"model.layers.{i}.mlp.{name}_proj" for i in range(2)]
    for role, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        assert network.select(f"attention_{role}") == [
            f"model.layers.{i}.self_attn.{name}_proj" for i in range(2)
        ]


def test_bert_and_vit():
    network = read(bert)
    assert_all_units_are_used(network)
    assert network.select("position_embedding") == ["embeddings.position_embeddings"]
    assert network.select("embedding") == ["embeddings.word_embeddings", "embeddings.token_type_embeddings"]
    assert network.select("head") == ["pooler.dense"]
    stream = sides(network, "embeddings.word_embeddings")[1]
    assert same(stream, sides(network, "pooler.dense")[1])
    network = read(vit)
    assert_all_units_are_used(network)
    assert len(network.select("convolution")) == len(network.select("head")) == 1
    (patches,) = network.select("convolution")
    (head,) = network.select("head")
    assert same(sides(network, patches)[0], sides(network, head)[1])
    assert len(network.select("mlp_input")) == len(network.select("attention_query")) == 2


def test_resnet():
    network = read(lambda: (torchvision.models.resnet18(), torch.rand(1, 3, 32, 32)))
    assert_all_units_are_used(network)
    stem = sides(network, "conv1")[0]
    for block in range(2):
        hidden, read_by_first = sides(network, f"layer1.{block}.conv1")
        written, read_by_second = sides(network, f"layer1.{block}.conv2")
        assert same(hidden, read_by_second)
        assert same(stem, read_by_first, written)
    # A stage with a stride has a stream of its own, which the shortcut writes as well.
    shortcut, read_by_shortcut = sides(network, "layer2.0.downsample.0")
    assert same(read_by_shortcut, stem)
    assert same(shortcut, sides(network, "layer2.0.conv2")[0], sides(network, "layer2.1.conv2")[0])
    assert same(sides(network, "fc")[1], sides(network, "layer4.1.conv2")[0])


def test_depthwise_convolutions_keep_channels():
    network = read(lambda: (torchvision.models.mobilenet_v2(), torch.rand(1, 3, 32, 32)))
    assert_all_units_are_used(network)
    expanded = sides(network, "features.2.conv.0.0")[0]
    rows, cols = sides(network, "features.2.conv.1.0")
    assert same(rows, expanded)
    assert cols.shape == (96, 1)
    assert same(cols[:, 0], expanded, sides(network, "features.2.conv.2")[1])


def test_squeeze_and_excite_gates_the_channels_that_it_reads():
    network = read(lambda: (torchvision.models.efficientnet_b0(), torch.rand(1, 3, 32, 32)))
    squeezed, read_by_first = sides(network, "features.2.0.block.2.fc1")
    gates, read_by_second = sides(network, "features.2.0.block.2.fc2")
    assert same(squeezed, read_by_second)
    assert same(gates, read_by_first, sides(network, "features.2.0.block.3.0")[1])


def test_dense_blocks_read_all_that_was_put_side_by_side():
    network = read(lambda: (torchvision.models.densenet121(), torch.rand(1, 3, 32, 32)))
    block = "features.denseblock1.denselayer"
    first, second = (sides(network, f"{block}{i}.conv2")[0] for i in (1, 2))
    stem = sides(network, "features.conv0")[0]
    assert same(sides(network, f"{block}3.conv1")[1], torch.cat([stem, first, second]))
    assert same(
        sides(network, "features.transition1.conv")[1][: 64 + 2 * 32], torch.cat([stem, first, second])
    )


def test_convnext_and_swin():
    network = read(lambda: (torchvision.models.convnext_tiny(), torch.rand(1, 3, 32, 32)))
    assert len(network.select("mlp_input")) == len(network.select("mlp_output")) == 18
    network = read(lambda: (torchvision.models.swin_t(), torch.rand(1, 3, 64, 64)))
    assert len(network.select("attention_qkv")) == len(network.select("attention_output")) == 12
    # Four neighbouring patches are put side by side: each column is one of the stream's units.
    merged = sides(network, "features.2.reduction")[1]
    assert same(merged, sides(network, "features.1.1.mlp.3")[0].repeat(4))


def test_the_cnn_of_the_paper_repeats_a_channel_for_each_place():
    network = read_network(CNN((3, 8, 8), hidden=7), torch.rand(2, 3, 8, 8))
    assert_all_units_are_used(network)
    channels, inputs = sides(network, "conv1")[0], sides(network, "fc1")[1]
    assert same(inputs, channels.repeat_interleave(len(inputs) // len(channels)))
    assert same(sides(network, "fc1")[0], sides(network, "fc2")[1])
    assert network.select("convolution") == ["conv1"]


class TokenMixer(nn.Module):
    """An MLP over places, then one over channels, as MLP-Mixer has them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.over_places = nn.Sequential(nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 9))
        self.over_channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.over_places(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.over_channels(x)
        return self.head(x.mean(1))


def test_places_and_channels_are_units_of_their_own():
    network = read_network(TokenMixer(), torch.rand(2, 9, 5))
    channels = sides(network, "embed")[0]
    assert same(channels, sides(network, "over_channels.0")[1], sides(network, "over_channels.2")[0])
    assert same(channels, sides(network, "head")[1])
    assert same(sides(network, "over_places.0")[0], sides(network, "over_places.2")[1])
    assert len(sides(network, "over_places.2")[0].unique()) == 9
    assert not set(sides(network, "over_places.2")[0].tolist()) & set(channels.tolist())


def test_what_cannot_be_followed_raises():
    class Sorts(nn.Sequential):
        def forward(self, x):
            return self[1](torch.linalg.qr(self[0](x)).Q)

    with pytest.raises(
        CannotFollowError, match=r"the model \(Sorts\): .*no rule for the operator aten.linalg_qr"
    ):
        read_network(Sorts(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(4, 4))

    class Mixes(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).mean(-1, keepdim=True))

    with pytest.raises(CannotFollowError, match="reads what mixes several units"):
        read_network(Mixes(nn.Linear(4, 4), nn.Linear(1, 2)), torch.rand(4, 4))

    class AddsUp(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).cumsum(-1))

    with pytest.raises(CannotFollowError, match=r"aten\.cumsum.*: adds up along a dimension"):
        read_network(AddsUp(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(4, 4))

    class PoolsPlaces(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            x = x + self[1](x.transpose(1, 2)).transpose(1, 2)
            return self[2](torch.max_pool1d(x.transpose(1, 2), 2).transpose(1, 2))

    with pytest.raises(CannotFollowError, match="channels whose places are units as well"):
        read_network(PoolsPlaces(nn.Linear(4, 4), nn.Linear(6, 6), nn.Linear(4, 2)), torch.rand(2, 6, 4))

    class ReadsBothWays(nn.Sequential):
        def forward(self, x):
            return self[0](x) + self[1](x.transpose(1, 2)).transpose(1, 2)

    with pytest.raises(CannotFollowError, match="joins units that lie along different dimensions"):
        read_network(ReadsBothWays(nn.Linear(4, 4), nn.Linear(6, 6)), torch.rand(2, 6, 4))
    with pytest.raises(CannotFollowError, match=r"no rule for the operator aten\.lstm"):
        read_network(nn.LSTM(4, 3), torch.rand(5, 2, 4))
