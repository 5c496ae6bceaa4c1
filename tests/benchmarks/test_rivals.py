"""Rivals: what they change in training does what its name says, and the page says what the records do."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.common.campaign import check_records, rounded
from benchmarks.findings.arms import Arm
from benchmarks.findings.measure import measure_run, train_arm
from benchmarks.rivals import analysis, page, pictures
from benchmarks.rivals.arms import ARMS, LAST, LAYERS, SEEDS, shared
from benchmarks.rivals.changes import distance_cost, eigenvalue_loss, masked, penalised
from benchmarks.rivals.cost import measure as measure_costs
from benchmarks.rivals.run import _expected
from benchmarks.rivals.units import unit_measures
from modfast import Partition, laplacian_eigenvalues
from modfast.data.dataset import Dataset
from modfast.models import CNN
from modfast.train import TrainConfig


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 8, 8)

    def some(count):
        labels = torch.arange(count) % 10
        noise = torch.randint(0, 60, (count, *shape), generator=generator)
        return (noise + 19 * labels[:, None, None, None]).to(torch.uint8), labels

    (train, train_labels), (test, test_labels) = some(200), some(100)
    return Dataset(
        name="made",
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
        classes=tuple("abcdefghij"),
    )


def quick(name):
    arm = ARMS[name]
    config = replace(arm.config, epochs=4 if arm.config.warmup_epochs else 1)
    return replace(arm, config=config, circuits_from=None)


def test_a_penalty_is_added_to_the_gradient():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    with penalised(model, lambda inside: 3.0 * inside.weight.sum()):
        model.weight.grad = torch.tensor([[1.0, 0.0]])
        optimizer.step()
    assert torch.equal(model.weight.detach(), before - torch.tensor([[4.0, 3.0]]))
    model.weight.grad = torch.zeros(1, 2)
    optimizer.step()  # outside nothing is added
    assert torch.equal(model.weight.detach(), before - torch.tensor([[4.0, 3.0]]))


def test_the_distance_cost_is_bimts():
    model = nn.Sequential(nn.Linear(2, 4, bias=False))
    weight = torch.arange(8.0).reshape(4, 2) - 3
    model[0].weight.data = weight
    rows, columns = [1 / 8, 3 / 8, 5 / 8, 7 / 8], [1 / 4, 3 / 4]
    expected = sum(
        abs(float(weight[i, j])) * (2 * abs(rows[i] - columns[j]) + 0.5) for i in range(4) for j in range(2)
    )
    assert distance_cost(0.1, ["0"])(model).item() == pytest.approx(0.1 * expected / 8, rel=1e-6)


def test_the_eigenvalue_loss_falls_with_the_cut():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    blocks = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    model[0].weight.data = blocks + 1e-3
    loss = eigenvalue_loss(2.0, 2, ["0"])
    assert loss(model).item() == pytest.approx(
        2 * laplacian_eigenvalues(blocks + 1e-3, 2).sum().item(), abs=1e-3
    )
    model[0].weight.data = torch.ones(8, 8)
    assert loss(model).item() == pytest.approx(2.0, abs=1e-2)  # 0 and 1: it cannot be cut


def test_hard_blocks_are_zero_outside_and_plain_weights_afterwards():
    model = CNN((3, 8, 8))
    partitions = {"fc2": Partition.blocks((64, 64), 4)}
    inside = partitions["fc2"].row_labels[:, None] == partitions["fc2"].col_labels
    with masked(model, partitions):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.rand(5, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert "fc2.weight" in dict(model.named_parameters())
    assert torch.count_nonzero(model.fc2.weight[~inside]) == 0
    assert torch.count_nonzero(model.fc2.weight[inside]) == inside.sum()


def test_shared_and_hard_blocks_are_the_same(images):
    partitions = shared(LAYERS, 4, CNN(images.image_shape), images)
    for name, partition in partitions.items():
        blocks = Partition.blocks((len(partition.row_labels), len(partition.col_labels)), 4)
        assert torch.equal(partition.row_labels, blocks.row_labels), name
        assert torch.equal(partition.col_labels, blocks.col_labels), name
    assert set(shared(LAST, 5, CNN(images.image_shape), images)) == set(LAST)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("last-two", lambda record: record["config"]["layers"] == ("fc2", "fc3")),
        ("hard-last-two", lambda record: record["measures"]["model"]["clusterability:fc3"] == 1.0),
        ("keep-3", lambda record: record["measures"]["loss"]["size"] <= 0.0301),
        ("spectral", lambda record: "found" in record["history"][3]),
    ],
)
def test_a_rival_is_trained_and_measured(images, tmp_path, name, holds):
    run, snapshots = train_arm(quick(name), 42, images, "cpu", 1)
    record = measure_run(ARMS[name], run, images, None, snapshots)
    record["units"] = unit_measures(run.model, run.partitions, images)
    json.dumps(record, allow_nan=False)
    assert holds(record)
    path = tmp_path / name / "42.json"
    path.parent.mkdir()
    path.write_text(json.dumps(rounded(record | {"config": record["config"] | {"epochs": 10}})))
    check_records(tmp_path, [name], [42], partial(_expected, images.fingerprint()))
    with pytest.raises(SystemExit, match="data_fingerprint"):
        check_records(tmp_path, [name], [42], partial(_expected, "other"))
    units = record["units"]
    assert 0 < units["circuits"]["balanced"]["size"] <= 1
    assert sum(units["dependence"]) == pytest.approx(1)
    assert len(units["dependence"]) == 5
    assert 1 <= units["found"]["fc2_clusters"] <= 4
    assert 0 <= units["found"]["cut"] <= 4


def test_costs_are_ratios_to_plain_training(images):
    found = measure_costs(images, 1, {name: ARMS[name] for name in ("plain", "spectral")})
    assert found["ratios"]["plain"] == 1.0
    assert found["ratios"]["spectral"] > 0


# --- What the records say.


def made(seed, size, overlap, accuracy, loss=1.0):
    circuits = {"size": size, "overlap": overlap}
    return {
        "seed": seed,
        "measures": {
            "model": {"accuracy": accuracy},
            "loss": circuits,
            "balanced": {"size": 2 * size, "overlap": overlap},
            "fixed": circuits,
        },
        "history": [{"test_cross_entropy": 2.0}, {"test_cross_entropy": loss}],
        "epochs": [{"epoch": 1, "size": 0.4, "overlap": 0.3}, {"epoch": 2, "size": size, "overlap": overlap}],
    }


@pytest.fixture
def made_results(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    analysis.records.cache_clear()
    arms = {
        "plain": [made(seed, 0.10 + seed / 1000, 0.2, 0.60) for seed in (1, 2, 3)],
        "good": [made(seed, 0.04, 0.08, 0.597, loss=1.9) for seed in (1, 2)],
        "uneven": [made(1, 0.01, 0.02, 0.61), made(2, 0.08, 0.16, 0.60)],
        "single": [made(1, 0.04, 0.08, 0.60)],
        "worse": [made(seed, 0.04, 0.08, 0.59) for seed in (1, 2, 3)],
    }
    for name, records in arms.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    yield
    analysis.records.cache_clear()


def test_arms_are_compared_over_the_seeds_that_both_have(made_results):
    size = analysis.compare("good", analysis.of("loss", "size"))
    assert size.seeds == 2
    assert size.own == pytest.approx(0.04)
    assert size.other == pytest.approx(0.1015)
    assert analysis.relative(size) == pytest.approx(0.04 / 0.1015)


def test_the_goal_takes_size_overlap_and_accuracy(made_results):
    assert analysis.meets_goal("good")
    assert not analysis.meets_goal("worse")
    assert not analysis.meets_goal("plain")
    assert analysis.meets_goal("good", "fixed")
    assert analysis.surely_meets_goal("good")
    assert analysis.meets_goal("uneven")  # in the mean, but one seed is far from it
    assert not analysis.surely_meets_goal("uneven")


def test_equal_loss_takes_an_earlier_epoch_of_plain_training(made_results):
    assert analysis.at_equal_loss("good", "size").other == pytest.approx(0.4)
    assert analysis.loss_gap("good").difference == pytest.approx(-0.1)
    assert analysis.nearest_epochs("good") == 1
    assert analysis.while_plain_trains("size") == [(1, pytest.approx(0.4)), (2, pytest.approx(0.102))]
    assert analysis.while_plain_trains("test_loss") == [(1, 2.0), (2, 1.0)]
    compared, count = analysis.with_allowed_loss("worse", "overlap")
    assert (count, compared.difference) == (3, pytest.approx(-0.12))


def test_one_seed_is_no_comparison(made_results):
    assert analysis.compare("single", analysis.of("loss", "size")) is None
    assert analysis.at_equal_loss("single", "size") is None
    assert analysis.loss_gap("single") is None
    assert analysis.with_allowed_loss("single", "size") == (None, 1)
    assert not analysis.meets_goal("single")


def test_units_are_compared_with_random_circuits():
    circuits = {"overlap": 0.5, "random_overlap": 0.4, "largest_share": None, "random_largest_share": 0.3}
    record = {"units": {"circuits": {"loss": circuits}}}
    assert analysis.beyond_random("loss", "overlap")(record) == pytest.approx(0.1)
    assert analysis.beyond_random("loss", "largest_share")(record) is None


def test_every_arm_has_a_colour_of_its_family():
    assert {pictures._family(name) for name in ("last-two-five", "shared-5")} == {("#0072B2", "o")}
    assert pictures._family("hard-last-two") == pictures._family("hard")
    assert all(pictures._family(name) for name in ARMS)


def test_the_page_has_no_row_for_an_arm_of_one_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "COSTS", tmp_path / "none.json")
    analysis.records.cache_clear()
    for name, seeds in (("plain", (1, 2)), ("last-two", (1, 2)), ("l1", (1,))):
        size = 0.1 if name == "plain" else 0.04
        (tmp_path / f"{name}.json").write_text(
            json.dumps([full(made(seed, size, 2 * size, 0.6)) for seed in seeds])
        )
    text = page.page()
    analysis.records.cache_clear()
    assert "L1 penalty of 1e-4" not in text
    assert "published criterion, 1 of 1 ways of training reaches it in the mean over seeds:" in text
    assert "With the whole of each 95 % interval: `fc2`, `fc3`: weight 20, shared blocks." in text
    assert "It meets the goal, in the mean over seeds." in text
    assert "its have 40 % of the size and 40 % of the overlap" in text
    analysis.records.cache_clear()


@pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")
def test_the_committed_page_is_what_the_results_give():
    analysis.records.cache_clear()
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
    assert page.PAGE.with_name(page.PICTURE).read_bytes().startswith(b"\x89PNG")


def full(record):
    """A record with all that the page shows."""
    names = ("clusterability", "specialisation_only", "specialisation_without", "label_semanticity")
    record["measures"]["model"] |= {"test_loss": 1.0} | {f"{name}:fc2": 0.5 for name in names}
    circuits = dict.fromkeys(
        ("size", "overlap", "random_overlap", "largest_share", "random_largest_share"), 0.5
    )
    live = ("rows", "columns", "effective_rows", "effective_columns", "clusters")
    return record | {
        "live": {"fc2": dict.fromkeys(live, 1.0)},
        "units": {
            "circuits": {"loss": circuits, "balanced": circuits},
            "dependence": [0.5, 0.5],
            "random_dependence": [[0.5, 0.5]],
            "found": {"fc2": 0.5, "cut": 2.0},
        },
        "seconds": {"training": 1.0, "measuring": 1.0},
    }


def test_clusters_needed_are_those_beyond_random_ones():
    record = {
        "units": {"dependence": [0.5, 0.5, 0.0], "random_dependence": [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]}
    }
    assert analysis.needed(record) == pytest.approx(0.5 - 1.0)


def test_names_and_seeds_are_those_of_the_page():
    assert len(SEEDS) == 10
    assert all(name == arm.name for name, arm in ARMS.items())
    assert all(isinstance(arm, Arm) and isinstance(arm.config, TrainConfig) for arm in ARMS.values())
    assert {arm.against for arm in ARMS.values()} == {None, "plain"}
    assert {arm.config.epochs for arm in ARMS.values()} == {10}
