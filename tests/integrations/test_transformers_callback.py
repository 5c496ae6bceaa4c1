"""The callback for the Trainer of transformers: one gradient of the sum, as in a loop written by hand."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import accelerate
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from finetuned import (
    LAYERS,
    NAMES,
    WEIGHT,
    assert_same_weights,
    batch_of,
    by_hand,
    enmeshment,
    make_model,
    make_trainer,
    tokens,
)

from modfast import EnmeshmentLoss
from modfast.integrations.schedules import LinearSchedule
from modfast.integrations.transformers import EnmeshmentCallback


def steps_of(number, size, accumulated):
    """The micro-batches of each step."""
    return [list(step.split(size)) for step in tokens(number).split(size * accumulated)]


@pytest.mark.parametrize("accumulated", [1, 2, 4])
@pytest.mark.parametrize("clip", [0.5, 0.0], ids=["clipped", "unclipped"])
def test_the_gradient_is_that_of_the_sum(tmp_path, accumulated, clip):
    trainer = make_trainer(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT, layers=LAYERS)],
        per_device_train_batch_size=8 // accumulated,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=clip,
    )
    trainer.train()
    assert_same_weights(trainer.model, by_hand(make_model(), steps_of(24, 8, 1), clip=clip))
    without = by_hand(make_model(), steps_of(24, 8, 1), clip=clip, loss=lambda model: 0.0)
    with pytest.raises(AssertionError):
        assert_same_weights(trainer.model, without, rtol=1e-2)


def test_an_epoch_s_last_step_has_fewer_batches(tmp_path):
    trainer = make_trainer(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT, layers=LAYERS)],
        count=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=2,
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert_same_weights(trainer.model, by_hand(make_model(), steps_of(12, 2, 4) * 2))


def test_autocast(tmp_path):
    trainer = make_trainer(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT, layers=LAYERS)],
        make_model(torch.float32),
        bf16=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    expected = by_hand(make_model(torch.float32), steps_of(24, 4, 2), autocast=torch.bfloat16)
    assert_same_weights(trainer.model, expected)
    with pytest.raises(AssertionError):
        assert_same_weights(trainer.model, by_hand(make_model(torch.float32), steps_of(24, 4, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
    ids=["checkpointing", "reentrant checkpointing", "torch.compile"],
)
def test_wrapped_models(tmp_path, options):
    callback = EnmeshmentCallback(4, WEIGHT, layers=LAYERS)
    trainer = make_trainer(
        tmp_path, [callback], per_device_train_batch_size=4, gradient_accumulation_steps=2, **options
    )
    trainer.train()
    assert list(callback.partitions) == NAMES
    assert_same_weights(trainer.model, by_hand(make_model(), steps_of(24, 4, 2)))


class Control:
    """What a callback sees of a training that has no Trainer."""

    report_to = ()
    deepspeed = None
    optim = "adamw_torch"
    global_step = 0

    def __init__(self):
        self.stateful_callbacks = {}


def test_gradients_that_a_scaler_scales():
    # Accelerate lends no scaler to a CPU, so that the steps of a Trainer are made by hand.
    accelerate.Accelerator(cpu=True)
    model, state = make_model(torch.float32), Control()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), device_placement=False, scaler=scaler
    )
    callback = EnmeshmentCallback(4, WEIGHT, layers=LAYERS)
    callback.on_train_begin(state, state, None, model=model, optimizer=optimizer)
    expected = copy.deepcopy(model)
    for batch in tokens(16).split(8):
        callback.on_step_begin(state, state, None, model=model, optimizer=optimizer)
        for part in batch.split(4):
            scaler.scale(model(**batch_of(part)).loss / 2).backward()
        scaler.unscale_(optimizer.optimizer)
        expected.zero_grad()
        total = sum(expected(**batch_of(part)).loss / 2 for part in batch.split(4))
        (total + WEIGHT * enmeshment(expected)).backward()
        for name, parameter in model.named_parameters():
            other = dict(expected.named_parameters())[name]
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=2e-6 * scale)
        scaler.step(optimizer.optimizer)
        scaler.update(2.0**7)  # the scale changes between steps
        with torch.no_grad():
            for mine, other in zip(expected.parameters(), model.parameters(), strict=True):
                mine.copy_(other)
        optimizer.optimizer.zero_grad()
        callback.on_step_end(state, state, None)


class StopsWithinAStep(transformers.TrainerCallback):
    """Ends the first epoch after one batch of a step, whose gradients Trainer keeps."""

    stopped = False

    def on_substep_end(self, args, state, control, **kwargs):
        control.should_epoch_stop, self.stopped = not self.stopped, True


def test_a_step_that_is_given_up_counts_once(tmp_path):
    trainer = make_trainer(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT, layers=LAYERS), StopsWithinAStep()],
        count=16,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    left_over = [tokens(4)]

    def loss(model):
        batches = [left_over.pop()] if left_over else []
        return enmeshment(model) + sum(model(**batch_of(batch)).loss / 2 for batch in batches) / WEIGHT

    assert_same_weights(trainer.model, by_hand(make_model(), steps_of(16, 4, 2), loss=loss))


def test_a_schedule(tmp_path):
    schedule = LinearSchedule(2, start=1)
    trainer = make_trainer(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS, schedule)], count=32)
    trainer.train()
    factor = {0: 0.0, 1: 0.0, 2: 0.5, 3: 1.0}.__getitem__
    assert_same_weights(trainer.model, by_hand(make_model(), steps_of(32, 8, 1), factor))


def test_a_weight_of_zero_changes_no_bit(tmp_path):
    plain, watched = make_trainer(tmp_path, []), make_trainer(tmp_path, [EnmeshmentCallback(4, 0.0)])
    plain.train()
    watched.train()
    assert_same_weights(watched.model, plain.model, rtol=0.0)


def test_what_is_logged(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, layers=LAYERS)
    trainer = make_trainer(
        tmp_path,
        [callback],
        count=48,
        logging_strategy="steps",
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    calls = []
    logs = callback._steps.logs
    callback._steps.logs = lambda: (calls.append(trainer.state.global_step), logs())[1]
    trainer.train()
    assert calls == [2, 4, 6]  # not at other steps: to read numbers waits for the device
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == calls
    # Of the weights that the step began with: after one step of two, after three of four.
    for entry in entries:
        model = by_hand(make_model(), steps_of(48, 8, 1)[: entry["step"] - 1])
        expected = EnmeshmentLoss(model, 4, layers=LAYERS)
        assert entry["enmeshment"] == pytest.approx(float(expected().detach()), abs=1e-6)
        assert entry["clusterability"] == pytest.approx(1 - float(expected().detach()), abs=1e-6)
        for name, value in expected.clusterability().items():
            assert entry[f"clusterability/{name}"] == pytest.approx(value, abs=1e-6)
    others = [entry for entry in trainer.state.log_history if "loss" not in entry]
    assert any("eval_loss" in entry for entry in others)
    assert not any("enmeshment" in entry for entry in others)


class Reporter(transformers.TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_reporters_see_what_is_logged(tmp_path):
    for late in (False, True):
        callback, reporter = EnmeshmentCallback(4, WEIGHT, layers=LAYERS), Reporter()
        trainer = make_trainer(
            tmp_path, [reporter, callback] if late else [reporter], logging_strategy="steps", logging_steps=1
        )
        trainer.args.report_to = ["wandb"]  # of which the test has none; the reporter stands for it
        if late:
            with pytest.warns(UserWarning, match=r"not be reported to wandb.*callback\.add_to\(trainer\)"):
                trainer.train()
        else:
            callback.add_to(trainer)
            callback.add_to(trainer)
            assert trainer.callback_handler.callbacks.count(callback) == 1
            trainer.train()
        assert ["enmeshment" in logs for logs in reporter.seen] == [not late] * 3 + [False]
