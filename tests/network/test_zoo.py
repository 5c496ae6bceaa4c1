"""Known architectures, small and with random weights: which spaces each has, written down by hand."""

import pytest
import timm
import torch
import torchvision
import transformers
from symmetry import assert_units_may_be_reordered
from torch import nn

from modfast.network.reading import read_network

LLM = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
WIDE = {**LLM, "intermediate_size": 48}
GROUPED = {**WIDE, "num_key_value_heads": 2}
TEXT = {**WIDE, "max_position_embeddings": 20}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE |= {"image_size": 16, "patch_size": 4}
SPEECH = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "d_model": 32}
SPEECH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 50}

IDS = {"input_ids": torch.tensor([[7, 3, 49, 12, 0, 31, 8, 25]])}
BOTH = {**IDS, "decoder_input_ids": torch.tensor([[4, 9, 2, 40, 11]])}
PIXELS = {"pixel_values": torch.rand(1, 3, 16, 16)}


def hugging_face(name, **settings):
    def make():
        kind = getattr(transformers, name)
        return kind(kind.config_class(**settings))

    return make


# For each: the model, its inputs, its spaces by name, and those that are in an order (tokens at their places,
# heads with slopes of their own).
ZOO = {
    "qwen2": (
        hugging_face("Qwen2ForCausalLM", **GROUPED),
        IDS,
        {
            "residual": 32,
            "model.embed_tokens.inputs": 50,
            "model.layers.0.self_attn.q_proj": 2,
            "model.layers.0.mlp.gate_proj": 48,
            "lm_head": 50,
        },
        (),
    ),
    "qwen3, which scales queries and keys": (
        hugging_face("Qwen3ForCausalLM", **GROUPED, head_dim=8),
        IDS,
        {
            "residual": 32,
            "model.embed_tokens.inputs": 50,
            "model.layers.0.self_attn.q_proj": 2,
            "model.layers.0.mlp.gate_proj": 48,
            "lm_head": 50,
        },
        (),
    ),
    "phi3, whose weights are fused": (
        hugging_face("Phi3ForCausalLM", **GROUPED, pad_token_id=0),
        IDS,
        {
            "residual": 32,
            "model.embed_tokens.inputs": 50,
            "model.layers.0.self_attn.qkv_proj": 2,
            "model.layers.0.mlp.gate_up_proj": 48,
            "lm_head": 50,
        },
        (),
    ),
    "gptj, side by side": (
        hugging_face(
            "GPTJForCausalLM", vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=4, rotary_dim=4
        ),
        IDS,
        {
            "residual": 32,
            "transformer.wte.inputs": 50,
            "transformer.h.0.attn.q_proj": 4,
            "transformer.h.0.mlp.fc_in": 128,
            "lm_head": 50,
        },
        (),
    ),
    "falcon, fused by groups of heads": (
        hugging_face("FalconForCausalLM", **LLM, new_decoder_architecture=True, num_kv_heads=2),
        IDS,
        {
            "residual": 32,
            "transformer.word_embeddings.inputs": 50,
            "transformer.h.0.self_attention.query_key_value": 2,
            "transformer.h.0.mlp.dense_h_to_4h": 128,
        },
        (),
    ),
    "bloom, whose heads have slopes": (
        hugging_face("BloomForCausalLM", vocab_size=50, hidden_size=32, n_layer=1, n_head=4),
        IDS,
        {
            "residual": 32,
            "transformer.word_embeddings.inputs": 50,
            "transformer.h.0.self_attention.query_key_value": 4,
            "transformer.h.0.mlp.dense_h_to_4h": 128,
        },
        ("transformer.h.0.self_attention.query_key_value",),
    ),
    "opt, whose positions start at 2": (
        hugging_face("OPTForCausalLM", **LLM, ffn_dim=48, max_position_embeddings=16, word_embed_proj_dim=32),
        IDS,
        {
            "residual": 32,
            "model.decoder.embed_tokens.inputs": 50,
            "model.decoder.embed_positions.inputs": 18,
            "model.decoder.layers.0.self_attn.q_proj": 4,
            "model.decoder.layers.0.fc1": 48,
        },
        (),
    ),
    "t5, whose bias belongs to heads": (
        hugging_face(
            "T5ForConditionalGeneration",
            vocab_size=50,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
        ),
        BOTH,
        {
            "residual": 32,
            "shared.inputs": 50,
            "encoder.block.0.layer.0.SelfAttention.q": 4,
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.inputs": 32,
            "encoder.block.0.layer.1.DenseReluDense.wi": 48,
            "decoder.block.0.layer.0.SelfAttention.q": 4,
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.inputs": 32,
            "decoder.block.0.layer.1.EncDecAttention.q": 4,
            "decoder.block.0.layer.2.DenseReluDense.wi": 48,
        },
        (),
    ),
    "whisper": (
        hugging_face(
            "WhisperForConditionalGeneration",
            **SPEECH,
            max_source_positions=10,
            max_target_positions=12,
            num_mel_bins=6,
            pad_token_id=0,
            decoder_start_token_id=1,
        ),
        {"input_features": torch.rand(1, 6, 20), "decoder_input_ids": BOTH["decoder_input_ids"]},
        {
            "model.encoder.conv1": 32,
            ".input": 6,
            "model.encoder.conv2": 32,
            "model.encoder.embed_positions.inputs": 10,
            "model.encoder.layers.0.self_attn.q_proj": 4,
            "model.encoder.layers.0.fc1": 48,
            "model.decoder.embed_tokens": 32,
            "model.decoder.embed_tokens.inputs": 50,
            "model.decoder.layers.0.self_attn.q_proj": 4,
            "model.decoder.layers.0.encoder_attn.q_proj": 4,
            "model.decoder.layers.0.fc1": 40,
        },
        (),
    ),
    "roberta": (
        hugging_face("RobertaForMaskedLM", **TEXT),
        {**IDS, "attention_mask": torch.ones(1, 8, dtype=torch.long)},
        {
            "residual": 32,
            "roberta.embeddings.word_embeddings.inputs": 50,
            "roberta.embeddings.token_type_embeddings.inputs": 2,
            "roberta.embeddings.position_embeddings.inputs": 20,
            "roberta.encoder.layer.0.attention.self.query": 4,
            "roberta.encoder.layer.0.intermediate.dense": 48,
        },
        (),
    ),
    "distilbert": (
        hugging_face(
            "DistilBertForSequenceClassification",
            vocab_size=50,
            dim=32,
            n_layers=1,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=20,
        ),
        IDS,
        {
            "residual": 32,
            "distilbert.embeddings.word_embeddings.inputs": 50,
            "distilbert.embeddings.position_embeddings.inputs": 20,
            "distilbert.transformer.layer.0.attention.q_lin": 4,
            "distilbert.transformer.layer.0.ffn.lin1": 48,
            "pre_classifier": 32,
            "classifier": 2,
        },
        (),
    ),
    "deit, with two tokens of its own": (
        hugging_face("DeiTForImageClassificationWithTeacher", **IMAGE),
        PIXELS,
        {
            "residual": 32,
            ".input": 3,
            "deit.layers.0.attention.q_proj": 4,
            "deit.layers.0.mlp.fc1": 48,
            "cls_classifier": 2,
        },
        (),
    ),
    "clip's text": (
        hugging_face("CLIPTextModel", **TEXT, eos_token_id=49),
        IDS,
        {
            "residual": 32,
            "embeddings.token_embedding.inputs": 50,
            "embeddings.position_embedding.inputs": 20,
            "encoder.layers.0.self_attn.q_proj": 4,
            "encoder.layers.0.mlp.fc1": 48,
        },
        (),
    ),
    "perceiver, whose stream starts from a table": (
        hugging_face(
            "PerceiverModel",
            num_latents=6,
            d_latents=16,
            d_model=12,
            num_blocks=1,
            num_self_attends_per_block=1,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
        ),
        {"inputs": torch.rand(1, 9, 12)},
        {
            "residual": 16,
            ".input": 12,
            "encoder.cross_attention.attention.self.query": 4,
            "encoder.cross_attention.mlp.dense1": 16,
            "encoder.self_attends.0.attention.self.query": 4,
            "encoder.self_attends.0.mlp.dense1": 16,
        },
        (),
    ),
    "torchvision's ViT": (
        lambda: torchvision.models.VisionTransformer(16, 4, 1, 4, 32, 48, num_classes=10),
        torch.rand(2, 3, 16, 16),
        {
            "residual": 32,
            ".input": 3,
            "encoder.layers.encoder_layer_0.self_attention.in_proj_weight": 4,
            "encoder.layers.encoder_layer_0.mlp.0": 48,
            "heads.head": 10,
        },
        (),
    ),
    "mixer, whose tokens are units": (
        lambda: timm.models.mlp_mixer.MlpMixer(
            num_classes=10, img_size=12, patch_size=4, num_blocks=1, embed_dim=16
        ),
        torch.rand(2, 3, 12, 12),
        {
            "stem.proj": 16,
            ".input": 3,
            "blocks.0.mlp_tokens.fc1": 8,
            "blocks.0.mlp_tokens.fc2": 9,
            "blocks.0.mlp_channels.fc1": 64,
            "head": 10,
        },
        ("blocks.0.mlp_tokens.fc2",),
    ),
    "an encoder whose stream is the input, as many tokens as channels": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 1),
        torch.rand(8, 8, 8),
        {"residual": 8, "layers.0.self_attn.in_proj_weight": 2, "layers.0.linear1": 12},
        ("residual",),
    ),
}


def spaces(network):
    return {name: space.stop - space.start for name, space in network.spaces.items()}


@pytest.mark.parametrize("name", ZOO)
def test_spaces(name):
    make, inputs, expected, fixed = ZOO[name]
    torch.manual_seed(0)
    model = make()
    network = read_network(model, inputs)
    assert spaces(network) == expected
    if isinstance(inputs, dict) and hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    assert_units_may_be_reordered(model, inputs, network, fixed)


@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm", "eager"])
def test_experts(way):
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=3, experts_implementation=way)
    model = transformers.MixtralForCausalLM(config)
    before = dict(vars(model.config))
    network = read_network(model, IDS)
    assert vars(model.config) == before
    experts = "model.layers.0.mlp.experts"
    assert spaces(network) == {
        "residual": 32,
        "model.embed_tokens.inputs": 50,
        "model.layers.0.self_attn.q_proj": 2,
        "model.layers.0.mlp.gate": 3,
        **{f"{experts}.gate_up_proj[{i}]": 48 for i in range(3)},
        "lm_head": 50,
    }
    stream = network.layers["lm_head"].col_units
    for place in range(3):
        both = network.layers[f"{experts}.gate_up_proj[{place}]"]
        down = network.layers[f"{experts}.down_proj[{place}]"]
        # A gate and what it multiplies, one below the other.
        assert torch.equal(both.row_units, down.col_units.repeat(2))
        assert torch.equal(both.col_units, stream)
        assert torch.equal(down.row_units, stream)
    assert network.select("router") == ["model.layers.0.mlp.gate"]
    assert network.select("expert_input") == [f"{experts}.gate_up_proj[{i}]" for i in range(3)]
    assert network.select("expert_output") == [f"{experts}.down_proj[{i}]" for i in range(3)]
    model.config._experts_implementation = "batched_mm"  # the only one that computes in float64
    model.config.use_cache = False
    assert_units_may_be_reordered(model, IDS, network)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("shufflenet_v2_x0_5", 32),
        ("squeezenet1_1", 64),
        ("mnasnet0_5", 32),
        ("regnet_y_400mf", 32),
        ("mobilenet_v3_small", 32),
    ],
)
def test_units_of_convolutional_networks_may_be_reordered(name, size):
    model = getattr(torchvision.models, name)()
    inputs = torch.rand(1, 3, size, size)
    network = read_network(model, inputs)
    assert len(network.layers) == len([p for p in model.parameters() if p.dim() > 1])
    assert_units_may_be_reordered(model, inputs, network)


def test_experts_with_biases_and_attention_with_latents():
    for kind, settings in (
        ("GptOss", {"head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2}),
        (
            "DeepseekV3",
            {
                "moe_intermediate_size": 12,
                "n_routed_experts": 4,
                "n_group": 2,
                "topk_group": 1,
                "num_experts_per_tok": 2,
                "q_lora_rank": 12,
                "kv_lora_rank": 10,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "first_k_dense_replace": 0,
                "num_key_value_heads": 4,
            },
        ),
    ):
        config = getattr(transformers, f"{kind}Config")(
            **{**GROUPED, **settings}, experts_implementation="batched_mm", use_cache=False
        )
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        network = read_network(model, IDS)
        assert len(network.select("router")) == 1
        assert len(network.select("expert_input")) == len(network.select("expert_output"))
        assert len(network.select("expert_input")) == (3 if kind == "GptOss" else 4)
        assert_units_may_be_reordered(model, IDS, network)
