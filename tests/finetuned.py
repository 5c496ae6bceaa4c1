"""A small GPT-2 to fine-tune, and the loop that the callbacks for other libraries must equal."""

import torch
import transformers
from torch.utils.data import SequentialSampler

from modfast import Partition, reference

WEIGHT = 20.0
LAYERS = "*.mlp.c_fc"
NAMES = ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]
RATE = 0.2
CLIP = 0.5  # less than every gradient's norm here, so that clipping counts


def make_model(dtype=torch.float64):
    """In float64, but transformers rounds the logits to float32."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 16}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0, use_cache=False)
    return transformers.GPT2LMHeadModel(config).to(dtype)


def tokens(count):
    return torch.randint(0, 30, (count, 8), generator=torch.Generator().manual_seed(1))


def batch_of(inputs):
    """Tokens with what they predict; the first is no prediction, and some versions of Trainer count it."""
    labels = inputs.clone()
    labels[..., 0] = -100
    return {"input_ids": inputs, "labels": labels}


def examples(count):
    return [batch_of(each) for each in tokens(count)]


def enmeshment(model, partitions=None):
    """The specification's loss, in plain PyTorch: the mean over the layers, 4 blocks each by default."""
    each = []
    for name in NAMES:
        weight = model.get_submodule(name).weight.T
        partition = Partition.blocks(weight.shape, 4) if partitions is None else partitions[name]
        each.append(reference.enmeshment(weight, partition))
    return torch.stack(each).mean()


def by_hand(model, steps, factor=lambda step: 1.0, clip=CLIP, loss=enmeshment, autocast=None):
    """Train on micro-batches, ``steps[i]`` being those of a step: one gradient of the sum, clipped."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for index, batches in enumerate(steps):
        optimizer.zero_grad()
        total = WEIGHT * factor(index) * loss(model)
        for batch in batches:
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                part = model(**batch_of(batch)).loss
            total = total + part / len(batches)
        total.backward()
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            assert norm > clip
        optimizer.step()
    return model


class Ordered(transformers.Trainer):
    """Takes the examples in their order, as the loop by hand does."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def make_trainer(folder, callbacks, model=None, count=24, **options):
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Ordered(
        make_model() if model is None else model,
        transformers.TrainingArguments(**{**arguments, **options}),
        train_dataset=examples(count),
        eval_dataset=examples(8),
        callbacks=callbacks,
    )


def assert_same_weights(found, expected, rtol=1e-6):
    """Relative to each tensor's largest number."""
    ours, theirs = dict(found.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        largest = theirs[name].detach().abs().max().item()
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=rtol * largest, msg=name)
