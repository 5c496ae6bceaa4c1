"""The callback for the Trainer of Lightning: one gradient of the sum, as in a loop written by hand."""

import copy
import logging
import os
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

from modfast import (
    EnmeshmentLoss,
    Partition,
    read_network,
    reference,
    save_partitions,
    spectral_cluster,
    spectral_cocluster,
)
from modfast.integrations.lightning import EnmeshmentCallback
from modfast.integrations.reclustering import found_partitions
from modfast.integrations.schedules import LinearSchedule
from modfast.partition import unpack_partitions

WEIGHT = 20.0
NAMES = ["model.0", "model.2"]
CLIP = 0.5  # less than every gradient's norm here, so that clipping counts
RATE = 0.2

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def make_model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)


def batches(count, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count * size, 12, generator=generator, dtype=torch.float64).to(dtype).split(size))


class Task(LightningModule):
    def __init__(self, model=None):
        super().__init__()
        self.model = make_model() if model is None else model

    def training_step(self, batch, index):
        return task(self.model, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def task(model, batch):
    return (model(batch).float() - 1).square().mean()


def enmeshment(model, partitions=None):
    each = []
    for name in NAMES:
        weight = model.get_submodule(name.removeprefix("model.")).weight
        partition = Partition.blocks(weight.shape, 4) if partitions is None else partitions[name]
        each.append(reference.enmeshment(weight, partition))
    return torch.stack(each).mean()


def by_hand(model, steps, factor=lambda step: 1.0, clip=CLIP, loss=enmeshment, autocast=None):
    """Train on micro-batches, ``steps[i]`` being those of a step: one gradient of the sum, clipped."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for index, parts in enumerate(steps):
        optimizer.zero_grad()
        total = WEIGHT * factor(index) * loss(model)
        for part in parts:
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                value = task(model, part)
            total = total + value / len(parts)
        total.backward()
        if clip:
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), clip) > clip
        optimizer.step()
    return model


def fit(folder, callbacks, data, module=None, ckpt_path=None, **options):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": CLIP,
        "default_root_dir": str(folder),
    }
    trainer = Trainer(**{**settings, **options}, callbacks=callbacks)
    module = Task() if module is None else module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few workers
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer, module


def assert_same_weights(found, expected, rtol=1e-6):
    theirs = dict(expected.named_parameters())
    for name, parameter in found.named_parameters():
        largest = theirs[name].detach().abs().max().item()
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=rtol * largest, msg=name)


@pytest.mark.parametrize("accumulated", [1, 2, 4])
@pytest.mark.parametrize("clip", [CLIP, None], ids=["clipped", "unclipped"])
def test_the_gradient_is_that_of_the_sum(tmp_path, accumulated, clip):
    data = batches(3 * accumulated, 8 // accumulated)
    _, module = fit(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT)],
        data,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=clip,
    )
    expected = by_hand(make_model(), [[step] for step in batches(3)], clip=clip)
    assert_same_weights(module.model, expected)
    without = by_hand(make_model(), [[step] for step in batches(3)], clip=clip, loss=lambda model: 0.0)
    with pytest.raises(AssertionError):
        assert_same_weights(module.model, without, rtol=1e-2)


def test_an_epoch_s_last_step_has_fewer_batches(tmp_path):
    data = batches(6, 2)
    fitted = fit(tmp_path, [EnmeshmentCallback(4, WEIGHT)], data, accumulate_grad_batches=4, max_epochs=2)
    # Lightning divides by 4 here as well.
    expected, optimizer = make_model(), None
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE)
    for step in (data[:4], data[4:]) * 2:
        optimizer.zero_grad()
        (sum(task(expected, part) / 4 for part in step) + WEIGHT * enmeshment(expected)).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), CLIP)
        optimizer.step()
    assert_same_weights(fitted[1].model, expected)


def test_autocast(tmp_path):
    data = batches(6, 4, torch.float32)
    _, module = fit(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT)],
        data,
        Task(make_model(torch.float32)),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
    )
    steps = [data[:2], data[2:4], data[4:]]
    assert_same_weights(module.model, by_hand(make_model(torch.float32), steps, autocast=torch.bfloat16))
    with pytest.raises(AssertionError):
        assert_same_weights(module.model, by_hand(make_model(torch.float32), steps))


class Fused(Task):
    """Its optimiser unscales gradients itself, in its step."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, fused=True)


@pytest.mark.parametrize("kind", [Task, Fused])
def test_gradients_that_a_scaler_scales(tmp_path, kind):
    data = batches(6, 4, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    _, module = fit(
        tmp_path,
        [EnmeshmentCallback(4, WEIGHT)],
        data,
        kind(make_model(torch.float32)),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        accumulate_grad_batches=2,
        gradient_clip_val=None if kind is Fused else CLIP,
    )
    assert scaler.get_scale() == 2.0**13  # it has changed after each of three steps
    steps = [data[:2], data[2:4], data[4:]]
    clip = 0 if kind is Fused else CLIP
    expected = by_hand(make_model(torch.float32), steps, clip=clip, autocast=torch.float16)
    # Scaled, the gradients of float16 activations round otherwise.
    assert_same_weights(module.model, expected, rtol=1e-3)
    without = by_hand(make_model(torch.float32), steps, clip=clip, loss=lambda model: 0.0)
    with pytest.raises(AssertionError):
        assert_same_weights(module.model, without, rtol=1e-2)


class Checkpointed(nn.Sequential):
    def forward(self, inputs):
        return torch.utils.checkpoint.checkpoint(super().forward, inputs, use_reentrant=False)


@pytest.mark.parametrize("how", ["checkpointing", "torch.compile of a part", "torch.compile of all"])
def test_wrapped_models(tmp_path, how):
    module = Task()
    if how == "checkpointing":
        module.model = Checkpointed(*module.model)
    elif how == "torch.compile of a part":
        module.model = torch.compile(module.model, backend="aot_eager")
    fitted = torch.compile(module, backend="aot_eager") if how == "torch.compile of all" else module
    callback = EnmeshmentCallback(4, WEIGHT)
    fit(tmp_path, [callback], batches(6, 4), fitted, accumulate_grad_batches=2)
    assert list(callback.partitions) == NAMES
    data = batches(6, 4)
    expected = by_hand(make_model(), [data[:2], data[2:4], data[4:]])
    assert_same_weights(getattr(module.model, "_orig_mod", module.model), expected)


class TwoOptimisers(Task):
    """By hand, as for two rivals: one optimiser for the layers, two steps of another one in each batch."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(12, 1).double()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer, loss in (
            (1, lambda: self.other(batch).mean()),
            (0, lambda: task(self.model, batch)),
            (1, lambda: self.other(batch).square().mean()),
        ):
            chosen = self.optimizers()[optimizer]
            chosen.zero_grad()
            self.manual_backward(loss())
            chosen.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=RATE) for part in (self.model, self.other)]


def test_one_of_several_optimisers(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, NAMES, LinearSchedule(2))
    _, module = fit(tmp_path, [callback], batches(4), TwoOptimisers(), gradient_clip_val=None)
    factor = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.0}.__getitem__
    assert_same_weights(module.model, by_hand(make_model(), [[b] for b in batches(4)], factor, clip=0))
    with pytest.raises(ValueError, match=r"layers must belong to one optimiser, got parameters of 2 of them"):
        fit(tmp_path, [EnmeshmentCallback(1, WEIGHT)], batches(1), TwoOptimisers(), gradient_clip_val=None)


class Searching(Task):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


def test_an_optimiser_that_computes_gradients_several_times_in_a_step(tmp_path, monkeypatch):
    found = []

    def find(*arguments):
        found.append(found_partitions(*arguments))
        return found[-1]

    monkeypatch.setattr("modfast.integrations.steps.found_partitions", find)
    callback = EnmeshmentCallback(4, WEIGHT, recluster_at=[1])
    _, module = fit(tmp_path, [callback], batches(2), Searching(), gradient_clip_val=None)
    expected, present = make_model(), None
    optimizer = torch.optim.LBFGS(expected.parameters(), lr=0.1, max_iter=4)
    for index, batch in enumerate(batches(2)):
        if index == 1:
            present = {n: spectral_cocluster(expected[int(n[-1])].weight.detach(), 4) for n in NAMES}

        def closure(batch=batch, present=present):
            optimizer.zero_grad()
            loss = task(expected, batch) + WEIGHT * enmeshment(expected, present)
            loss.backward()
            return task(expected, batch)  # what Lightning returns: the line search is off

        optimizer.step(closure)
    assert found == [present]  # once, with the weights that the step began with
    assert callback.partitions == present
    assert_same_weights(module.model, expected, rtol=1e-4)


def test_what_is_logged(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT)
    calls = []
    logs = callback._steps.logs
    callback._steps.logs = lambda: (calls.append(callback._done), logs())[1]
    logger = CSVLogger(tmp_path)
    trainer, _ = fit(tmp_path, [callback], batches(6), logger=logger, log_every_n_steps=2)
    assert calls == [1, 3, 5]  # steps done, at every second step
    rows = logger.experiment.metrics_keys
    assert {"enmeshment", "clusterability", "clusterability/model.0", "clusterability/model.2"} <= set(rows)
    expected = EnmeshmentLoss(by_hand(make_model(), [[batch] for batch in batches(5)]), 4)
    value = float(expected().detach())
    assert float(trainer.logged_metrics["enmeshment"]) == pytest.approx(value, abs=1e-6)
    assert float(trainer.logged_metrics["clusterability"]) == pytest.approx(1 - value, abs=1e-6)
    each = float(trainer.logged_metrics["clusterability/model.2"])
    assert each == pytest.approx(expected.clusterability()["2"], abs=1e-6)


def reorder(model):
    with torch.no_grad():
        for index in (0, 2):
            weight = model[index].weight
            weight.copy_(
                weight[:, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(2))]
            )


class Reordering(Callback):
    """Gives the neurons another order after some batches, so that their clusters are others."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step in (1, 4):
            reorder(pl_module.model)


class ByStep(Task):
    """Takes the step's own batch: Lightning begins a resumed epoch with the first one."""

    def training_step(self, batch, index):
        return task(self.model, batches(6)[self.trainer.global_step])


def run(folder, partitions=4, ckpt_path=None):
    schedule = LinearSchedule(4, start=1)
    callback = EnmeshmentCallback(partitions, WEIGHT, NAMES, schedule, recluster_at=[1, 4])
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "max_epochs": 9, "max_steps": 6, "ckpt_path": ckpt_path}
    _, module = fit(folder, [every, callback, Reordering()], batches(3), ByStep(), **options)
    return callback, module


def partitions_in(path):
    state = torch.load(path, weights_only=True)["callbacks"]["EnmeshmentCallback"]
    return unpack_partitions(state["partitions"])


@pytest.mark.parametrize("saved_at", [1, 2, 3, 4])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, saved_at):
    callback, module = run(tmp_path / "whole")
    partitions = {step: partitions_in(tmp_path / "whole" / f"step={step}.ckpt") for step in range(1, 7)}
    assert partitions[1] != partitions[2] == partitions[3] == partitions[4] != partitions[5] == partitions[6]
    assert partitions[6] == callback.partitions

    generator = torch.Generator().manual_seed(5)
    other = {
        name: Partition(*(torch.randint(0, 4, (size,), generator=generator) for size in shape), 4)
        for name, shape in zip(NAMES, [(16, 12), (8, 16)], strict=True)
    }
    checkpoint = tmp_path / "whole" / f"step={saved_at}.ckpt"
    again, resumed = run(tmp_path / "resumed", other, ckpt_path=str(checkpoint))
    assert_same_weights(resumed.model, module.model, rtol=0.0)
    assert again.partitions == callback.partitions
    for step in range(saved_at + 1, 7):
        assert partitions_in(tmp_path / "resumed" / f"step={step}.ckpt") == partitions[step]
    # The next training of the same callback is a new one.
    fit(tmp_path, [again], batches(1))
    assert again.partitions == other


def test_a_checkpoint_without_partitions(tmp_path):
    trainer, _ = fit(tmp_path, [], batches(2))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    options = {"ckpt_path": str(tmp_path / "plain.ckpt"), "max_epochs": 2}
    with pytest.raises(ValueError, match=r"recluster_at must be at least 2, the step of a checkpoint"):
        fit(tmp_path, [EnmeshmentCallback(4, WEIGHT, recluster_at=1)], batches(2), **options)
    new = EnmeshmentCallback(4, WEIGHT, recluster_at=2)
    fit(tmp_path, [new], batches(2), **options)
    assert new.partitions["model.2"] != Partition.blocks((8, 16), 4)


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, NAMES, recluster_at=[1, 3])
    factors = []
    callback._steps._schedule = lambda step: factors.append(step) or 1.0
    trainer, module = fit(tmp_path, [callback], batches(2))
    assert callback.partitions["model.0"] != Partition.blocks((16, 12), 4)
    loader = torch.utils.data.DataLoader(batches(2), batch_size=None)
    trainer.fit_loop.max_epochs = 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few workers
        trainer.fit(module, loader)
    assert factors == [0, 1, 2, 3]
    whole, expected = fit(
        tmp_path, [EnmeshmentCallback(4, WEIGHT, NAMES, recluster_at=[1, 3])], batches(2), max_epochs=2
    )
    assert whole.global_step == trainer.global_step == 4
    assert copy.deepcopy(callback).partitions == callback.partitions
    assert_same_weights(module.model, expected.model, rtol=0.0)
    # Another module is a new training, for which an early step is one that has passed.
    trainer.fit_loop.max_epochs = 3
    with pytest.raises(ValueError, match="an earlier fit that knew no partitions of this module"):
        trainer.fit(Task(), loader)


def test_a_part_of_the_module_and_its_network(tmp_path):
    model = make_model()
    network = read_network(model, torch.zeros(1, 12, dtype=torch.float64))
    callback = EnmeshmentCallback(4, WEIGHT, recluster_at=1, network=network, module="model")
    fit(tmp_path, [callback], batches(2))
    # Of the weights after one step, in the model that is trained, not in the one that was read.
    trained = by_hand(make_model(), [[batches(2)[0]]], loss=shared_blocks(network))
    own = copy.copy(network)
    own.model = trained
    labels = spectral_cluster(own.graph(), 4)
    assert callback.partitions == network.partitions(labels)
    found = callback.partitions
    assert torch.equal(found["0"].row_labels, found["2"].col_labels)
    with pytest.raises(ValueError, match=r"module: 'modle' is no part of Task"):
        fit(tmp_path, [EnmeshmentCallback(4, WEIGHT, module="modle")], batches(1))


def shared_blocks(network):
    blocks = {f"model.{name}": partition for name, partition in network.partitions(4).items()}
    return lambda model: enmeshment(model, blocks)


def test_partitions_from_a_file(tmp_path):
    given = {"model.0": Partition(torch.arange(16) % 3, torch.arange(12) % 3, 3)}
    save_partitions(tmp_path / "mine.npz", given)
    callback = EnmeshmentCallback(tmp_path / "mine.npz", WEIGHT)
    fit(tmp_path, [callback], batches(1))
    assert callback.partitions == given


def test_what_is_refused(tmp_path):
    frozen = Task()
    frozen.model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter of \['model\.0'\] requires a gradient"):
        fit(tmp_path, [EnmeshmentCallback(4, WEIGHT, "model.0")], batches(1), frozen)
    with pytest.raises(TypeError, match=r"module must be a name, got Task"):
        EnmeshmentCallback(4, WEIGHT, module=frozen)
    with pytest.raises(ValueError, match=r"weight must be a finite number"):
        EnmeshmentCallback(4, float("inf"))
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # the package deepspeed need not be there
    stand_in = type("Trainer", (), {"strategy": strategy})
    with pytest.raises(ValueError, match=r"strategy must not be DeepSpeed's"):
        EnmeshmentCallback(4, WEIGHT).on_train_start(stand_in, frozen)


class Shared(Task):
    """Each process takes its own part of a batch."""

    def training_step(self, batch, index):
        return task(self.model, batch.chunk(2)[self.global_rank])


def trained(folder):
    rank = torch.distributed.get_rank()
    told = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        callback = EnmeshmentCallback(4, WEIGHT, recluster_at=1)
        strategy = DDPStrategy(process_group_backend="gloo")
        options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}
        options["accumulate_grad_batches"] = 2
        trainer, module = fit(folder, [callback], batches(6), Shared(), **options)
        return trainer.world_size, module.model, callback.partitions
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # Lightning takes some away itself
            else:
                os.environ[name] = value


def test_two_processes_train_as_one(processes, tmp_path):
    data, present, steps = batches(6), {}, iter(range(3))

    def loss(model):
        if next(steps) == 1:
            present.update({n: spectral_cocluster(model[int(n[-1])].weight.detach(), 4) for n in NAMES})
        return enmeshment(model, present or None)

    expected = by_hand(make_model(), [data[:2], data[2:4], data[4:]], loss=loss)
    for size, model, partitions in processes(2).run(trained, str(tmp_path)):
        assert size == 2
        assert partitions == present
        assert_same_weights(model, expected)
