"""The callback for the Trainer of transformers with several processes: each has its share of a step.

Each function that is given to ``processes(n).run`` runs in n real processes.
"""

import copy
import os

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from modfast import Partition, load_partitions, reference, spectral_cocluster
from modfast.integrations.transformers import EnmeshmentCallback


def found_in(model):
    return {name: spectral_cocluster(model.get_submodule(name).weight.detach().T, 4) for name in NAMES}


class Launched:
    """What a launcher tells a process, for as long as the context lasts."""

    def __enter__(self):
        rank, size = str(dist.get_rank()), str(dist.get_world_size())
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
        self.before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)

    def __exit__(self, *error):
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        # Accelerate keeps what it was told for all later jobs of this process.
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


class Parting(TrainerCallback):
    """Lets the processes see different partitions, if each finds its own clusters."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            with torch.no_grad():
                for name in NAMES:
                    weight = model.get_submodule(name).weight
                    weight.copy_(weight[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))])


def trained(folder, accumulated):
    with Launched():
        callback = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=[0, 2])
        trainer = make_trainer(
            folder,
            [callback, Parting()],
            count=32,
            per_device_train_batch_size=4 // accumulated,
            gradient_accumulation_steps=accumulated,
            save_strategy="steps",
            save_steps=1,
            logging_strategy="steps",
            logging_steps=1,
            ddp_backend="gloo",
        )
        wrapped = trainer.accelerator.num_processes
        trainer.train()
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        logged = [entry["enmeshment"] for entry in trainer.state.log_history if "loss" in entry]
        return wrapped, trainer.model, callback.partitions, logged


@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_train_as_one(processes, tmp_path, accumulated):
    answers = processes(2).run(trained, str(tmp_path), accumulated)
    steps, present = iter(range(4)), {}

    def loss(model):
        step = next(steps)
        if step == 2:
            Parting().on_step_end(None, type("State", (), {"global_step": 2}), None, model)
        if step in (0, 2):
            present.update(found_in(model))
        return enmeshment(model, present)

    expected = by_hand(make_model(), [[batch] for batch in tokens(32).split(8)], loss=loss)
    for wrapped, model, partitions, logged in answers:
        assert wrapped == 2
        assert_same_weights(model, expected)
        assert partitions == present
        assert logged == answers[0][3]
        assert len(logged) == 4
    assert load_partitions(tmp_path / "checkpoint-4" / "partitions.npz") == present
    first = load_partitions(tmp_path / "checkpoint-2" / "partitions.npz")
    assert first == found_in(make_model()) != present


def own_loop(how):
    """Gradients that are there before the first batch, in all ways to hold them, without a Trainer."""
    model = make_model()
    if how == "sharded":
        for block in model.transformer.h:
            fully_shard(block)
        # The root stays gathered after an evaluation; its layers are ``lm_head`` and the embeddings.
        wrapped = fully_shard(model)
    else:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=how == "views")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    callback = EnmeshmentCallback(4, WEIGHT, [LAYERS, "*.wpe"], recluster_at=1)
    args = type("Args", (), {"report_to": [], "deepspeed": None, "optim": "sgd"})
    state = type("State", (), {"global_step": 0})()
    state.stateful_callbacks = {}

    def evaluate():
        with torch.no_grad():
            wrapped(**batch_of(tokens(2)))

    evaluate()
    if how == "sharded":
        # Gathered, the only layer is one that no optimiser holds.
        of_the_root = EnmeshmentCallback(4, WEIGHT, "*.wpe")
        of_the_root.on_train_begin(args, copy.copy(state), None, model=model, optimizer=optimizer)
        state.stateful_callbacks.clear()
        evaluate()
    callback.on_train_begin(args, state, None, model=model, optimizer=optimizer)
    for step in tokens(24).split(8):
        evaluate()
        callback.on_step_begin(args, state, None, model=model, optimizer=optimizer)
        mine = step.chunk(2)[dist.get_rank()].split(2)
        if how == "sharded":
            wrapped.set_requires_gradient_sync(False)
            (wrapped(**batch_of(mine[0])).loss / 2).backward()
            wrapped.set_requires_gradient_sync(True)
        else:
            with wrapped.no_sync():
                (wrapped(**batch_of(mine[0])).loss / 2).backward()
        (wrapped(**batch_of(mine[1])).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        callback.on_step_end(args, state, None)
        state.global_step += 1
    whole = make_model()
    with torch.no_grad():
        for mine, trained in zip(whole.parameters(), model.parameters(), strict=True):
            mine.copy_(trained.full_tensor() if how == "sharded" else trained)
    return whole, callback.partitions


@pytest.mark.parametrize("how", ["copies", "views", "sharded"])
def test_gradients_that_are_there_before_the_first_batch(processes, how):
    def weights(model):
        return {name: model.get_submodule(name).weight.T for name in NAMES} | {
            "transformer.wpe": model.transformer.wpe.weight
        }

    present, steps = {}, iter(range(3))

    def loss(model):
        if next(steps) == 1:
            present.update({name: spectral_cocluster(w.detach(), 4) for name, w in weights(model).items()})
        each = [
            reference.enmeshment(w, present.get(name, Partition.blocks(w.shape, 4)))
            for name, w in weights(model).items()
        ]
        return torch.stack(each).mean()

    expected = by_hand(make_model(), [[step] for step in tokens(24).split(8)], clip=0, loss=loss)
    for model, partitions in processes(2).run(own_loop, how):
        assert partitions == present
        assert_same_weights(model, expected)
