"""The experiment on a ResNet: its network, its schedule, and what its records hold."""

import json
import math

import pytest
import torch

from benchmarks.common.campaign import record_of
from benchmarks.findings.arms import Arm
from benchmarks.findings.measure import train_arm
from benchmarks.resnet import circuits
from benchmarks.resnet.arms import ARMS, CLUSTERS, CONVOLUTIONS, HEAD, SEEDS, channels, shared_blocks
from benchmarks.resnet.measure import measure, with_norm
from benchmarks.resnet.model import STEM, ResNet8
from benchmarks.resnet.run import gather_common
from benchmarks.resnet.schedule import one_cycle, rate_at
from modfast import EnmeshmentLoss
from modfast.data import load_dataset
from modfast.data.dataset import Dataset
from modfast.train import TrainConfig


@pytest.fixture(scope="module")
def few():
    """Ten classes of noise, told apart by their mean colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(20)
    noise = torch.randint(0, 100, (200, 3, 32, 32), generator=generator)
    images = (noise + 15 * labels.reshape(-1, 1, 1, 1)).to(torch.uint8)
    return Dataset("noise", images, labels, images.flip(3), labels, tuple("abcdefghij"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = ResNet8(width=8)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(-2, 2)
            module.running_var.uniform_(0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def network(model, few):
    return channels(model, few)


def test_the_residual_connections_make_the_channels_of_a_stage_one_space(network):
    writers = [network.layers[name].row_units for name in ("stage2.conv2", "stage2.shortcut.0")]
    readers = [network.layers[name].col_units for name in ("stage3.conv1", "stage3.shortcut.0")]
    for units in (*writers, *readers):
        assert torch.equal(units, writers[0])
    # The first stage has no shortcut with a weight: the stem writes the channels that the block writes.
    assert torch.equal(network.layers[STEM].row_units, network.layers["stage1.conv2"].row_units)
    assert set(network.layers) == {STEM, *CONVOLUTIONS, HEAD}


def test_what_one_layer_writes_and_another_reads_is_in_one_cluster(model, few):
    partitions = shared_blocks((*CONVOLUTIONS, HEAD))(model, few)
    assert set(partitions) == {*CONVOLUTIONS, HEAD}
    for first, second in (
        ("stage1.conv1", "stage1.conv2"),
        ("stage2.shortcut.0", "stage3.conv1"),
        ("stage3.conv2", HEAD),
    ):
        assert torch.equal(partitions[first].row_labels, partitions[second].col_labels)
    assert torch.bincount(partitions[HEAD].col_labels).tolist() == [8] * CLUSTERS


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [rate_at(step, 100, 0.01) for step in range(1, 101)]
    assert rates.index(max(rates)) == 19
    assert max(rates) == pytest.approx(0.01)
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def _adam(state=None):
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight], lr=7.0)
    if state is not None:
        optimizer.load_state_dict(state)
    return optimizer


def _rates(optimizer, steps):
    rates = []
    for _ in range(steps):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_each_step_has_the_rate_of_the_schedule():
    expected = [rate_at(step, 5, 0.1) for step in range(1, 6)]
    optimizer = _adam()
    with one_cycle(torch.nn.Identity(), 5, 0.1):
        assert _rates(optimizer, 5) == expected
    optimizer.param_groups[0]["lr"] = 7.0
    assert _rates(optimizer, 1) == [7.0]


def test_a_training_that_was_stopped_goes_on_with_the_rate_where_it_was():
    expected = [rate_at(step, 5, 0.1) for step in range(1, 6)]
    first = _adam()

    def stopped():
        with one_cycle(torch.nn.Identity(), 5, 0.1):
            assert _rates(first, 2) == expected[:2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with one_cycle(torch.nn.Identity(), 5, 0.1):
        assert _rates(_adam(first.state_dict()), 3) == expected[2:]


def test_a_training_of_another_length_is_refused():
    optimizer, too_few = _adam(), one_cycle(torch.nn.Identity(), 2, 0.1)
    with pytest.raises(RuntimeError, match="steps that are taken, 1, got 2"), too_few:
        optimizer.step()


def test_a_finished_training_is_not_repeated(tmp_path):
    digits = load_dataset("digits")
    arm = Arm("", "", TrainConfig(epochs=2, batch_size=256, layers=("fc2",)), model="mlp")
    trained, _ = train_arm(arm, 42, digits, "cpu", 1, tmp_path / "run")
    again, _ = train_arm(arm, 42, digits, "cpu", 1, tmp_path / "run")
    # The seconds of an epoch would differ if it had been repeated.
    assert again.history == trained.history
    for own, other in zip(again.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_weight_with_its_norm_computes_what_both_do(model, network):
    inputs = torch.randn(2, 8, 6, 6)
    norm, layer = model.stage1.norm1, model.stage1.conv1
    shift = norm(layer(torch.zeros_like(inputs)))
    both = (norm(layer(inputs)) - shift) * norm.weight.sign()[:, None, None]
    folded = torch.nn.functional.conv2d(inputs, with_norm(network, "stage1.conv1"), padding=1)
    assert torch.allclose(both, folded, atol=1e-5)
    assert torch.equal(with_norm(network, HEAD), model.head.weight)


def test_circuits_are_tested_on_images_that_they_were_not_chosen_by(few):
    found = circuits.images_of(few, 3, 10)
    again = circuits.images_of(few, 3, 10)
    for part, same in ((found.chosen_by, again.chosen_by), (found.tested_on, again.tested_on)):
        assert torch.equal(part[0], same[0])
        assert (part[1] == 3).sum() == (part[1] != 3).sum() == 10
    both = torch.cat([found.chosen_by[0], found.tested_on[0]]).flatten(1)
    assert len(both.unique(dim=0)) == 40
    with pytest.raises(ValueError, match="each must be at most 10, got 11"):
        circuits.images_of(few, 3, 11)


def test_a_network_that_knows_nothing_is_as_good_as_a_coin():
    batch = torch.zeros(4, 1), torch.tensor([2, 2, 0, 9])
    metric = circuits.this_class(2)
    assert metric(torch.zeros(4, 10), batch).tolist() == pytest.approx([-math.log(2)] * 4)
    logits = torch.zeros(4, 10)
    logits[:, 2] = 5.0
    likely = metric(logits, batch).exp()
    assert likely[0] > 0.99
    assert (likely[0] + likely[3]).item() == pytest.approx(1.0)
    assert circuits.is_right(2)(logits, batch).tolist() == [1, 1, 0, 0]


def test_the_answer_by_its_own_logit_reads_no_other():
    torch.manual_seed(0)
    targets = torch.arange(400) % 10
    logits = torch.randn(400, 10)
    logits[:, 2] = 3 * (targets == 2) + torch.randn(400) - 5
    likelihood, right = circuits.by_own_logit(logits, targets, 2)
    batch = torch.zeros(400, 1), targets
    others = logits.clone()
    others[:, 3:] += 100
    assert torch.equal(likelihood(logits, batch), likelihood(others, batch))
    # It fits: another scale or threshold would do worse.
    best = likelihood(logits, batch).mean()
    assert best > -0.25
    assert right(logits, batch).mean() > 0.9
    for changed in (logits + 0.3, logits - 0.3, 1.2 * logits, 0.8 * logits):
        assert likelihood(changed, batch).mean() < best


def test_a_network_is_measured(model, few, monkeypatch):
    monkeypatch.setattr(circuits, "REFERENCE", 10)
    monkeypatch.setattr(circuits, "_DRAWS", 2)
    history = [
        {
            "cross_entropy": 1.0,
            "train_accuracy": 0.5,
            "test_cross_entropy": 1.0,
            "test_accuracy": 0.5,
            "enmeshment": 0.7,
        }
    ]
    record = measure(ARMS["modular"], 42, model, history, few, each=3, ablated=1)
    json.dumps(record, allow_nan=False)
    loss = EnmeshmentLoss(model, shared_blocks((*CONVOLUTIONS, HEAD))(model, few))
    assert {name: each["clusterability"]["own"] for name, each in record["layers"].items()} == pytest.approx(
        loss.clusterability()
    )
    assert record["layers"]["stage2.conv1"]["with_norm"] != record["layers"]["stage2.conv1"]["clusterability"]
    assert record["layers"]["stage3.conv1"]["chance"] == pytest.approx(0.25)
    # Colours are in no cluster; all other units are.
    assert sum(record["found_sizes"]) == sum(record["spaces"].values()) - 3
    for circuit in record["circuits"]["own"]["by_class"]:
        assert circuit["loss_after"] <= circuit["loss_before"] + circuits.TOLERANCE + 1e-6
    for circuit, most in zip(record["circuits"]["same"]["by_class"], circuits.ALLOWED, strict=True):
        assert circuit is None or circuit["loss_after"] <= most + 1e-6
    described = record["circuits"]["own"]["measures"]["clusters"]["own"]
    for circuit, shares in zip(record["circuits"]["own"]["by_class"], described["shares"], strict=True):
        assert sum(shares) == pytest.approx(float(circuit["size"] > 0))
    own = record["clusters"]["own"]
    assert [len(row) for row in own["only"]] == [10] * CLUSTERS
    assert len(own["accuracy_without"]) == CLUSTERS
    assert sum(own["dependence"]["shares"]) == pytest.approx(1.0)


def test_seeds_of_pairs_are_gathered(tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"
    for arm, seeds in (("plain", SEEDS[:3]), ("modular", SEEDS[1:4]), ("light", SEEDS[2:])):
        for seed in seeds:
            path = record_of(out, arm, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"seed": seed}))
    assert gather_common(out, results) == list(SEEDS[1:3])
    for arm, seeds in (("plain", SEEDS[1:3]), ("modular", SEEDS[1:3]), ("light", SEEDS[2:3])):
        assert [record["seed"] for record in json.loads((results / f"{arm}.json").read_text())] == list(seeds)
    assert not (results / "convolutions.json").exists()
