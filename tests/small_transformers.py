"""Small models of transformers with random weights, each with inputs."""

import torch
import transformers

TOKENS = {"input_ids": torch.arange(8)[None], "use_cache": False}
TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config), TOKENS


def neox():
    config = transformers.GPTNeoXConfig(**TINY, intermediate_size=64, max_position_embeddings=16)
    return transformers.GPTNeoXForCausalLM(config), TOKENS


def llama():
    config = transformers.LlamaConfig(**TINY, num_key_value_heads=2, intermediate_size=48)
    return transformers.LlamaForCausalLM(config), TOKENS


def gemma():
    config = transformers.GemmaConfig(**TINY, num_key_value_heads=1, head_dim=8, intermediate_size=48)
    return transformers.GemmaForCausalLM(config), TOKENS


def bert():
    return transformers.BertModel(transformers.BertConfig(**TINY, intermediate_size=48)), {
        "input_ids": torch.arange(8)[None]
    }


def vit():
    sizes = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.ViTConfig(**sizes, intermediate_size=48, image_size=16, patch_size=4)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.rand(1, 3, 16, 16)}
