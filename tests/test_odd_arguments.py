"""Arguments in unusual forms: NumPy's integers, integers beyond all floats, what cannot be called."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

import modfast
from modfast import EnmeshmentLoss, class_accuracy, spectral_cocluster
from modfast.arguments import Number
from modfast.layers.layer import Layer, choose_layers, find_layers


@pytest.mark.parametrize("kind", [np.int64, np.uint8, int])
def test_any_integer_is_a_number_of_clusters(kind):
    model = nn.Linear(8, 8)
    loss = EnmeshmentLoss(model, kind(2))
    assert loss() == EnmeshmentLoss(model, 2)()
    assert type(loss.partitions[""].num_clusters) is int
    with pytest.raises(ValueError, match="partitions: layer '': "):
        EnmeshmentLoss(model, kind(0))
    for other in (True, np.bool_(True), np.float64(2)):
        with pytest.raises(TypeError, match="partitions must be a number of clusters"):
            EnmeshmentLoss(model, other)


def test_an_integer_beyond_all_floats_is_not_allowed():
    assert 10**400 not in Number(0)
    assert -(10**400) not in Number(0, 1)
    with pytest.raises(ValueError, match="tol must be a number between 0 and 1"):
        spectral_cocluster(torch.randn(8, 8), 2, tol=10**400)


def test_a_value_is_told_in_one_line():
    values = (10**5000, torch.rand(40, 40), "two\n" * 100, [1] * 5000)
    for value, told in zip(
        values, ("got an integer of 16610 bits", r"got tensor\(\[\[", "got 'two", r"got \[1, 1"), strict=True
    ):
        with pytest.raises(ValueError, match=f"max_clusters must be an integer in .*{told}") as caught:
            modfast.eigengap(torch.rand(6, 5), max_clusters=value)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


def test_labels_may_be_a_list_of_tensors():
    labels = torch.tensor([0, 1, 1])
    found = class_accuracy(nn.Identity(), (torch.eye(3), list(labels)))
    assert found[:2].tolist() == [1.0, 0.5]


def test_names_of_layers_are_listed_once_for_all_choices(monkeypatch):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(40)))
    layers, asked, names = find_layers(model), [], Layer.names.fget

    def counted(layer):
        asked.append(layer)
        return names(layer)

    monkeypatch.setattr(Layer, "names", property(counted))
    assert choose_layers(layers, [str(i) for i in range(40)], "layers") == layers
    assert len(asked) == 40


WITH_PROGRESS = [
    name
    for name in modfast.__all__
    if inspect.isfunction(getattr(modfast, name))
    and "progress" in inspect.signature(getattr(modfast, name)).parameters
]


@pytest.mark.parametrize("name", WITH_PROGRESS)
def test_progress_is_checked_before_anything_is_computed(name):
    function = getattr(modfast, name)
    required = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    with pytest.raises(TypeError, match="progress must be None or a function, got int"):
        function(**dict.fromkeys(required), progress=3)


def test_the_public_functions_with_progress_are_found():
    assert {"eigengap", "find_circuits", "faithfulness_curve", "shuffle_test"} <= set(WITH_PROGRESS)


def test_more_shuffles_than_memory_holds_are_refused_or_cost_nothing_before_they_are_made():
    with pytest.raises(ValueError, match=r"shuffles must be an integer in \[0, 2147483646\], got 10+$"):
        modfast.eigengap(torch.rand(6, 5), shuffles=10**30)

    class EnoughError(Exception):
        pass

    def stop(done, total):
        assert (done, total) == (1, 2**31 - 2)
        raise EnoughError

    with pytest.raises(EnoughError):
        modfast.eigengap(torch.rand(6, 5), shuffles=2**31 - 2, progress=stop)
