"""Clusters that are known to matter, among others of the same kind: what ablating each of them shows."""

import pytest
import torch
from known_circuits import CLASSES, MAKERS, planted_cnn, planted_mlp

import modfast


def cluster_metrics(known, labels, mode, ablation="zero", metric=None):
    return modfast.cluster_ablation(
        known.model,
        known.batches,
        known.metric if metric is None else metric,
        known.network,
        labels,
        mode,
        ablation=ablation,
        reference=None if ablation == "zero" else known.batches,
    )


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", MAKERS)
def test_the_planted_cluster_is_seen(kind, seed, ablation):
    known = MAKERS[kind](seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 4, (known.network.num_units,), generator=generator)
    labels[known.matters] = 0
    with torch.no_grad():
        whole = torch.cat([known.metric(known.model(batch[0]), batch) for batch in known.batches]).mean()
    off = cluster_metrics(known, labels, "without", ablation)
    assert whole - off[0] > 1
    assert (whole - off[1:]).abs().max() < known.tolerance
    alone = cluster_metrics(known, labels, "only", ablation)
    assert (whole - alone[0]).abs() < known.tolerance
    assert (whole - alone[1:]).min() > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [planted_mlp, planted_cnn])
def test_random_clusters_of_the_same_sizes_see_less(make, seed):
    """Each cluster then has some of what matters: none stands out as the planted one does."""
    known = make(seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.where(known.asked, 1, -1)
    labels[known.matters] = 0
    whole_cluster = cluster_metrics(known, labels, "only")[0]
    asked = known.asked.nonzero().flatten()
    labels[asked] = labels[asked[torch.randperm(len(asked), generator=generator)]]
    assert whole_cluster - cluster_metrics(known, labels, "only")[0] > 0.5


def accuracy_of(label):
    """The share of one class's examples that are right; the examples of other classes count nothing."""

    def metric(output, batch):
        of_class = batch[1] == label
        right = (output.argmax(1) == label) & of_class
        return right.double() / of_class.double().mean()

    return metric


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [planted_mlp, planted_cnn])
def test_each_class_has_a_cluster_of_its_own(make, seed):
    known = make(seed)
    labels = torch.where(known.classes >= 0, known.classes, CLASSES)
    without = torch.stack(
        [cluster_metrics(known, labels, "without", metric=accuracy_of(label)) for label in range(CLASSES)]
    )
    # Rows are classes, columns clusters; the last cluster has all other units.
    own = torch.eye(CLASSES, CLASSES + 1, dtype=torch.bool)
    assert without[own].max() < 0.5
    assert without[~own].min() > 0.9
