"""The callback for the Trainer of transformers: partitions in checkpoints, clusters found anew, refusals."""

import json
import warnings

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers
from finetuned import (
    LAYERS,
    NAMES,
    WEIGHT,
    assert_same_weights,
    by_hand,
    enmeshment,
    make_model,
    make_trainer,
    tokens,
)

from modfast import (
    Partition,
    load_partitions,
    read_network,
    save_partitions,
    spectral_cluster,
    spectral_cocluster,
)
from modfast.integrations.schedules import CosineSchedule
from modfast.integrations.transformers import EnmeshmentCallback

SHAPE = (64, 16)


def shuffled(seed):
    """Partitions that no default would give."""
    generator = torch.Generator().manual_seed(seed)

    def labels(size):
        return torch.randint(0, 4, (size,), generator=generator)

    return {name: Partition(labels(SHAPE[0]), labels(SHAPE[1]), 4) for name in NAMES}


def found_in(model):
    return {name: spectral_cocluster(model.get_submodule(name).weight.detach().T, 4) for name in NAMES}


def reorder(model):
    """Give the neurons another order, so that the clusters are others."""
    order = torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in NAMES:
            weight = model.get_submodule(name).weight
            weight.copy_(weight[:, order])


class Reordering(transformers.TrainerCallback):
    """Gives the neurons another order after some steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            reorder(model)


def test_partitions_of_any_source(tmp_path):
    given = shuffled(0)
    save_partitions(tmp_path / "mine.npz", given)
    expected = by_hand(make_model(), [[tokens(8)]], loss=lambda model: enmeshment(model, given))
    for partitions in (given, tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        callback = EnmeshmentCallback(partitions, WEIGHT)
        trainer = make_trainer(tmp_path, [callback], count=8)
        trainer.train()
        assert callback.partitions == given
        assert_same_weights(trainer.model, expected)


def test_clusters_found_anew(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, layers=LAYERS, recluster_at=[0, 2])
    trainer = make_trainer(tmp_path, [callback, Reordering(2)], count=32)
    trainer.train()
    present, steps = {}, iter(range(4))

    def loss(model):
        step = next(steps)
        if step == 2:
            reorder(model)
        if step in (0, 2):
            present.update(found_in(model))
        return enmeshment(model, present)

    first = found_in(make_model())
    expected = by_hand(make_model(), [[batch] for batch in tokens(32).split(8)], loss=loss)
    assert callback.partitions == present != first
    assert_same_weights(trainer.model, expected)


def test_clusters_found_anew_over_a_network(tmp_path):
    """What one layer writes and the next one reads stays in one cluster."""
    model, names = make_model(), ["*.mlp.c_fc", "*.mlp.c_proj"]
    with torch.no_grad():
        for block in model.transformer.h:  # planted, in units of random order
            hidden, stream = torch.randperm(64) % 4, torch.arange(16) % 4
            block.mlp.c_fc.weight[stream[:, None] != hidden] *= 0.01
            block.mlp.c_proj.weight[hidden[:, None] != stream] *= 0.01
    network = read_network(model, {"input_ids": tokens(1)})
    callback = EnmeshmentCallback(4, WEIGHT, names, recluster_at=1, network=network)
    trainer = make_trainer(tmp_path, [callback], model, count=8, save_strategy="steps", save_steps=1)
    blocks = {}
    callback_began = callback.on_train_begin

    def began(*args, **kwargs):
        callback_began(*args, **kwargs)
        blocks.update(callback.partitions)

    callback.on_train_begin = began
    trainer.args.num_train_epochs = 2
    trainer.train()
    chosen = list(blocks)
    assert blocks == network.partitions(4, layers=chosen)
    at_one = load_partitions(tmp_path / "checkpoint-1" / "partitions.npz")
    assert at_one == blocks  # found at the beginning of the next step
    found = callback.partitions
    for index in (0, 1):
        rows = found[f"transformer.h.{index}.mlp.c_fc"].row_labels
        assert torch.equal(rows, found[f"transformer.h.{index}.mlp.c_proj"].col_labels)
        assert len(rows.unique()) == 4
    stream = found[NAMES[0]].col_labels
    assert all(torch.equal(found[name].col_labels, stream) for name in NAMES)
    # From the weights after one step.
    restored = type(model).from_pretrained(tmp_path / "checkpoint-1").double()
    again = read_network(restored, {"input_ids": tokens(1)})
    part = again.part(chosen)
    assert found == part.partitions(spectral_cluster(part.graph(), 4))


def callback_of_a_run(partitions=4):
    return EnmeshmentCallback(partitions, WEIGHT, LAYERS, CosineSchedule(4), recluster_at=[1, 4])


@pytest.mark.parametrize("saved_at", [1, 2, 4])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, saved_at):
    saving = {"save_strategy": "steps", "save_steps": 1, "count": 48, "gradient_accumulation_steps": 2}
    saving["per_device_train_batch_size"] = 4
    callback = callback_of_a_run()
    whole = make_trainer(tmp_path / "whole", [callback, Reordering(1, 4)], **saving)
    whole.train()
    files = {step: tmp_path / "whole" / f"checkpoint-{step}" for step in range(1, 7)}
    # Found at the beginning of a step, so that the checkpoint after that many steps has the earlier ones.
    partitions = {step: load_partitions(file / "partitions.npz") for step, file in files.items()}
    assert partitions[1] != partitions[2] == partitions[3] == partitions[4] != partitions[5] == partitions[6]
    assert partitions[6] == callback.partitions

    resumed_callback = callback_of_a_run(shuffled(7))  # other ones: those of the checkpoint count
    resumed = make_trainer(tmp_path / "resumed", [resumed_callback, Reordering(1, 4)], **saving)
    resumed.train(resume_from_checkpoint=str(files[saved_at]))
    assert resumed.state.global_step == 6
    assert_same_weights(resumed.model, whole.model, rtol=0.0)
    assert resumed_callback.partitions == callback.partitions
    for step in range(saved_at + 1, 7):
        file = tmp_path / "resumed" / f"checkpoint-{step}" / "partitions.npz"
        assert load_partitions(file) == partitions[step]


def test_states_of_callbacks_that_trainer_restores(tmp_path):
    """It makes callbacks anew from their states, which ours cannot be: it has functions and partitions."""
    saving = {"save_strategy": "steps", "save_steps": 1, "restore_callback_states_from_checkpoint": True}
    make_trainer(tmp_path, [EnmeshmentCallback(shuffled(0), WEIGHT)], **saving).train()
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS)
    trainer = make_trainer(tmp_path, [callback], **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback in trainer.callback_handler.callbacks
    assert callback.partitions == shuffled(0)


def test_a_checkpoint_without_partitions(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, [], **saving).train()
    late = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=[1, 2])
    with pytest.raises(ValueError, match=r"recluster_at must be at least 2, the step of .* \[1, 2\]"):
        make_trainer(tmp_path, [late], **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    new = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=2)
    make_trainer(tmp_path, [new], **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert new.partitions != {name: Partition.blocks(SHAPE, 4) for name in NAMES}


def test_checkpoints_that_do_not_fit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS)], **saving).train()
    folder = tmp_path / "checkpoint-2"
    other = EnmeshmentCallback(4, WEIGHT, NAMES[0])
    with pytest.raises(ValueError, match=r"layers: the checkpoint has partitions of .*, this callback is"):
        make_trainer(tmp_path, [other], **saving).train(resume_from_checkpoint=str(folder))
    for damaged in ("", "c29tZXRoaW5n", 3, ["eJw="]):
        state = json.loads((folder / "trainer_state.json").read_text())
        state["stateful_callbacks"]["modfast_partitions"] = damaged
        (folder / "trainer_state.json").write_text(json.dumps(state))
        trainer = make_trainer(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS)], **saving)
        with pytest.raises(ValueError, match=r"partitions in the checkpoint are damaged"):
            trainer.train(resume_from_checkpoint=str(folder))


def test_the_best_checkpoint_s_partitions(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=2)
    trainer = make_trainer(
        tmp_path,
        [callback],
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.evaluate = lambda **kwargs: {"eval_loss": float(trainer.state.global_step)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert load_partitions(tmp_path / "checkpoint-3" / "partitions.npz") != callback.partitions
    assert callback.partitions == {name: Partition.blocks(SHAPE, 4) for name in NAMES}


def test_a_best_checkpoint_without_partitions(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    for callbacks, resume in ([], None), ([EnmeshmentCallback(4, WEIGHT, LAYERS)], tmp_path / "checkpoint-2"):
        trainer = make_trainer(tmp_path, callbacks, **options)
        trainer.evaluate = lambda trainer=trainer, **kwargs: {"eval_loss": float(trainer.state.global_step)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    (told,) = [str(each.message) for each in caught if "partitions" in str(each.message)]
    assert told.startswith(f"the best checkpoint has no {tmp_path}")
    assert callbacks[0].partitions == {name: Partition.blocks(SHAPE, 4) for name in NAMES}


def test_a_folder_that_is_elsewhere(tmp_path):
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS)
    trainer = make_trainer(tmp_path, [callback], count=8, save_strategy="steps", save_steps=1)
    trainer._get_output_dir = lambda trial: str(tmp_path / "run-0")  # as in hyperparameter_search
    with pytest.raises(FileNotFoundError, match=r"no .*checkpoint-1 for its partitions; hyper"):
        trainer.train()


def refused(tmp_path, callbacks, model=None, **options):
    trainer = make_trainer(tmp_path, callbacks, model, **options)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    with pytest.raises((ValueError, TypeError)) as raised:
        trainer.train()
    assert all(torch.equal(each, before[name]) for name, each in trainer.model.named_parameters())
    return str(raised.value)


def test_what_is_refused_when_training_begins(tmp_path):
    frozen = make_model()
    for name in NAMES:
        frozen.get_submodule(name).weight.requires_grad_(False)
    message = refused(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS)], frozen)
    assert "no parameter of ['transformer.h.0.mlp.c_fc'" in message

    message = refused(tmp_path, [EnmeshmentCallback({"encoder.fc": Partition.blocks(SHAPE, 4)}, WEIGHT)])
    assert "'encoder.fc' is no layer with a weight matrix" in message

    message = refused(
        tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS), EnmeshmentCallback(4, WEIGHT, LAYERS)]
    )
    assert "callbacks must hold one EnmeshmentCallback, got two" in message

    message = refused(tmp_path, [EnmeshmentCallback(17, WEIGHT, LAYERS)])
    assert "num_clusters must be at most 16" in message

    for name, value, told in (
        ("deepspeed", {"zero_optimization": {}}, "deepspeed must be None"),
        ("optim", "lomo", "optim must be an optimiser that steps after the backward pass, got 'lomo'"),
        ("optim", "galore_adamw_layerwise", "got 'galore_adamw_layerwise'"),
    ):
        callback = EnmeshmentCallback(4, WEIGHT, LAYERS)
        trainer = make_trainer(tmp_path, [callback])
        setattr(trainer.args, name, value)
        with pytest.raises(ValueError, match=told):
            callback.on_train_begin(trainer.args, trainer.state, None, trainer.model, trainer.optimizer)


def test_an_optimiser_that_does_not_hold_the_layers(tmp_path):
    trainer = make_trainer(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS)])
    trainer.optimizer = torch.optim.SGD(trainer.model.transformer.wpe.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"no optimiser holds a parameter of \['transformer\.h\.0"):
        trainer.train()


def test_a_layer_without_clusters(tmp_path):
    model = make_model()
    torch.nn.init.zeros_(model.get_submodule(NAMES[1]).weight)
    callback = EnmeshmentCallback(4, WEIGHT, LAYERS, recluster_at=0)
    message = refused(tmp_path, [callback], model)
    assert message == f"recluster_at: layer {NAMES[1]!r} has no clusters now, since all its weights are zero"


def test_different_numbers_of_clusters_over_a_network(tmp_path):
    model = make_model()
    network = read_network(model, {"input_ids": tokens(1)})
    given = {name: Partition.blocks(SHAPE, 4 + index) for index, name in enumerate(NAMES)}
    # Already when training begins, not at that step, which it may reach hours later.
    message = refused(tmp_path, [EnmeshmentCallback(given, WEIGHT, recluster_at=99, network=network)], model)
    assert message.startswith("partitions must have one number of clusters")
    assert "[4, 5]" in message


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"weight": float("nan")}, ValueError, "weight must be a finite number"),
        ({"weight": "20"}, ValueError, "weight must be a finite number"),
        ({"partitions": 4.0}, TypeError, "partitions must be a number of clusters, a mapping .* got float"),
        ({"partitions": True}, TypeError, "partitions must be .* got bool"),
        ({"partitions": "absent.npz"}, FileNotFoundError, "absent.npz"),
        ({"schedule": "cosine"}, TypeError, "schedule must be None or a function of the step, got str"),
        ({"recluster_at": -1}, ValueError, "recluster_at must be an integer of at least 0, got -1"),
        ({"recluster_at": [1, 2.5]}, ValueError, "recluster_at must be an integer of at least 0, got 2.5"),
        ({"recluster_at": "3"}, ValueError, "recluster_at must be an integer of at least 0, got '3'"),
        ({"network": "gpt2"}, TypeError, "network must be None or a Network, got str"),
        ({"seed": -1}, ValueError, "seed must be an integer in .* got -1"),
        ({"seed": 2**63}, ValueError, "seed must be an integer in"),
    ],
)
def test_arguments(change, error, told):
    with pytest.raises(error, match=told):
        EnmeshmentCallback(**{"partitions": 4, "weight": 1.0, **change})


def test_before_training_there_are_no_partitions():
    with pytest.raises(RuntimeError, match=r"no partitions before training begins"):
        _ = EnmeshmentCallback(4, 1.0).partitions


@pytest.mark.parametrize("factor", [float("inf"), None, "1"])
def test_a_schedule_that_returns_no_number(tmp_path, factor):
    message = refused(tmp_path, [EnmeshmentCallback(4, WEIGHT, LAYERS, lambda step: factor)])
    assert message == f"schedule must return a finite number, got {factor!r} at step 0"


def test_a_weight_that_overflows_with_its_schedule(tmp_path):
    message = refused(tmp_path, [EnmeshmentCallback(4, 1e300, LAYERS, lambda step: 1e300)])
    assert message == "weight times schedule must be finite, got inf at step 0"
