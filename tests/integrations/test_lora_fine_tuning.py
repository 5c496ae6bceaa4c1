"""Fine-tuning adapters of peft: the loss is that of W + BA, and its gradient goes into A and B."""

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
from finetuned import (
    CLIP,
    LAYERS,
    NAMES,
    RATE,
    WEIGHT,
    assert_same_weights,
    batch_of,
    make_model,
    make_trainer,
    tokens,
)

from modfast import EnmeshmentLoss, Partition, load_partitions, reference
from modfast.integrations.transformers import EnmeshmentCallback

TARGETS = {"target_modules": ["c_fc"], "fan_in_fan_out": True, "lora_dropout": 0.0}


def adapted(seed=1, **options):
    """GPT-2 with adapters that are not zero, as they are at first."""
    settings = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": ["c_fc"],
        "fan_in_fan_out": True,
        "lora_dropout": 0.0,
    }
    model = peft.get_peft_model(make_model(), peft.LoraConfig(**{**settings, **options})).double()
    fill(model, "default", seed)
    return model


def fill(model, adapter, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1
                )


def merged(model, adapters=("default",)):
    """W + scaling * BA of each layer, written out."""
    found = {}
    for name in NAMES:
        layer = model.get_submodule(f"base_model.model.{name}")
        weight = layer.base_layer.weight.detach().T
        for each in adapters:
            product = layer.lora_B[each].weight @ layer.lora_A[each].weight
            weight = weight + layer.scaling[each] * product
        found[name] = weight
    return found


def specified(weights):
    """The specification's loss of these weights."""
    each = [reference.enmeshment(weight, Partition.blocks(weight.shape, 4)) for weight in weights.values()]
    return torch.stack(each).mean()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"r": 2, "lora_alpha": 1}], ids=str)
def test_the_loss_is_that_of_the_merged_weight(options):
    model = adapted(**options)
    loss = EnmeshmentLoss(model, 4, layers=LAYERS)
    assert list(loss.partitions) == NAMES
    value = loss()
    torch.testing.assert_close(value, specified(merged(model)), rtol=1e-12, atol=0)
    assert (
        abs(float(value.detach()) - float(EnmeshmentLoss(make_model(), 4, layers=LAYERS)().detach())) > 1e-3
    )

    # The gradient, by both ways, beside autograd through the formula.
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 4
    expected = torch.autograd.grad(0.7 * specified(merged(model)), list(trained.values()))
    (0.7 * value).backward()
    by_autograd = [each.grad.clone() for each in trained.values()]
    model.zero_grad()
    loss.accumulate_grad_(0.7)
    for (name, each), one, other in zip(trained.items(), by_autograd, expected, strict=True):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(each.grad, other, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    assert all(each.grad is None for name, each in model.named_parameters() if name not in trained)

    after = float(loss().detach())
    whole = model.merge_and_unload()
    assert float(EnmeshmentLoss(whole, 4, layers=LAYERS)().detach()) == pytest.approx(after, rel=1e-9)


def test_several_adapters():
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=5, **TARGETS))
    model.double()
    fill(model, "other", 2)
    loss = EnmeshmentLoss(model, 4, layers=LAYERS)
    values = set()
    for active in (["default"], ["other"], ["default", "other"]):
        model.base_model.set_adapter(active)
        model.zero_grad()
        value = float(loss.accumulate_grad_(0.7))
        assert value == pytest.approx(float(specified(merged(model, active)).detach()), rel=1e-9)
        values.add(round(value, 6))
        with_gradient = {name for name, each in model.named_parameters() if each.grad is not None}
        expected = {n for n, _ in model.named_parameters() if any(f".{each}." in n for each in active)}
        assert with_gradient == expected
    assert len(values) == 3

    model.base_model.set_adapter("default")
    with model.disable_adapter():
        plain = float(loss().detach())
    assert plain == pytest.approx(float(specified(merged(model, ())).detach()), rel=1e-9)


def by_hand(model, steps):
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=RATE)
    for batch in steps:
        optimizer.zero_grad()
        (model(**batch_of(batch)).loss + WEIGHT * specified(merged(model))).backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP
        optimizer.step()
    return model


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trainer_fine_tunes_adapters(tmp_path, accumulated):
    model = adapted()
    frozen = {
        name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad
    }
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS)
    trainer = make_trainer(
        tmp_path,
        [callback],
        model,
        per_device_train_batch_size=8 // accumulated,
        gradient_accumulation_steps=accumulated,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    assert_same_weights(model, by_hand(adapted(), tokens(24).split(8)))
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], each) for name, each in frozen.items())
    # A folder of adapters has the partitions too, under the names that the plain model has.
    folder = tmp_path / "checkpoint-2"
    assert (folder / "adapter_model.safetensors").exists()
    partitions = load_partitions(folder / "partitions.npz")
    assert partitions == callback.partitions
    assert list(EnmeshmentLoss(make_model(), partitions).partitions) == NAMES


def test_clusters_of_adapted_weights_and_resuming(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=[0, 2])
    whole = make_trainer(tmp_path, [callback], adapted(), **saving)
    whole.train()
    again = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=[0, 2])
    resumed = make_trainer(tmp_path, [again], adapted(seed=3), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.partitions == callback.partitions != {n: Partition.blocks((64, 16), 4) for n in NAMES}
    assert_same_weights(resumed.model, whole.model, rtol=1e-12)


def test_layers_without_an_adapter_are_frozen(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, "*.attn.c_attn")
    trainer = make_trainer(tmp_path, [callback], adapted())
    with pytest.raises(ValueError, match=r"no parameter of \['transformer\.h\.0\.attn.*requires a grad"):
        trainer.train()
