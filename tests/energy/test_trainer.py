"""The loss in the Trainer of transformers, as documented: the same for any number of accumulated steps."""

import pytest
import torch

from modfast import EnmeshmentLoss

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

WEIGHT = 5.0


def make_model():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "n_positions": 16}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


class Enmeshed(transformers.TrainerCallback):
    """Once per optimiser step, after clipping."""

    def __init__(self, loss):
        self.loss = loss

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.loss.accumulate_grad_(WEIGHT)


class InTheLoss(transformers.Trainer):
    """In each micro-batch, with its share of the step."""

    share = 1.0

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss + WEIGHT * self.share * self.enmeshment()


def trained(folder, steps, *, trainer=transformers.Trainer, share=1.0, callback=False):
    """The weights of the MLP after three steps of eight sequences, each in so many micro-batches."""
    model = make_model()
    tokens = torch.randint(0, 30, (24, 8), generator=torch.Generator().manual_seed(1))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / f"{trainer.__name__}{steps}"),
        num_train_epochs=1,
        per_device_train_batch_size=8 // steps,
        gradient_accumulation_steps=steps,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = EnmeshmentLoss(model, 4, layers="*.mlp.c_fc")
    runner = trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": each, "labels": each} for each in tokens],
        callbacks=[Enmeshed(loss)] if callback else [],
    )
    runner.enmeshment, runner.share = loss, share
    runner.train()
    return model.transformer.h[0].mlp.c_fc.weight.detach().clone(), loss.clusterability()[
        "transformer.h.0.mlp.c_fc"
    ]


def test_a_callback_before_the_optimiser_s_step(tmp_path):
    without, before = trained(tmp_path, 1)
    once, after = trained(tmp_path, 1, callback=True)
    assert after > before + 0.01
    for steps in (2, 4):
        torch.testing.assert_close(trained(tmp_path, steps, callback=True)[0], once, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(without, once, atol=1e-3)


def test_the_share_of_a_micro_batch_in_compute_loss(tmp_path):
    once, _ = trained(tmp_path, 1, trainer=InTheLoss)
    shared, _ = trained(tmp_path, 4, trainer=InTheLoss, share=1 / 4)
    torch.testing.assert_close(shared, once, rtol=1e-4, atol=1e-5)
    # Without it every micro-batch counts the whole: what the README warns of.
    counted, _ = trained(tmp_path, 4, trainer=InTheLoss)
    assert not torch.allclose(counted, once, atol=1e-3)
