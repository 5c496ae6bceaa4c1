"""Every public function on a device without kernels gives what it gives on the CPU.

``test_other_devices.py`` runs this file in processes that have such a device, with and without float64.
"""

import copy

import numpy as np
import pytest
import torch
from stood_in import DEVICE, HAS_FLOAT64, WIDEST
from test_default_device import CALLS, Given, plain
from torch import Tensor, nn

import modfast
from modfast import Partition, devices

# They take arrays of NumPy, which are on no device.
OF_ARRAYS = {"estimators.SpectralCoclustering", "estimators.SpectralClustering"}
# As there, but for an array.
WITHOUT_ARRAYS = CALLS | {
    "spectral_cocluster": lambda g, _: [
        modfast.spectral_cocluster(g.weight, 3, return_info=True),
        modfast.spectral_cocluster(g.large, 4, return_info=True),
        modfast.spectral_cocluster(g.large.T, 4, tol=1e-8, affinity="square"),
        modfast.spectral_cocluster(g.kernels, 2),
        modfast.spectral_cocluster(g.sparse, 3),
    ]
}
# They make their own inputs on the CPU.
ON_CPU = {"modular_addition", "next_token", "train", "load_dataset", "build_model"}


def moved(value):
    if isinstance(value, Partition) or (isinstance(value, Tensor) and value.layout == torch.strided):
        return value.to(DEVICE)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(DEVICE)
    if isinstance(value, dict):
        return {name: moved(each) for name, each in value.items()}
    if isinstance(value, list):
        return [tuple(map(moved, each)) if isinstance(each, tuple) else each for each in value]
    return value


class OnTheDevice(Given):
    def __init__(self, given):
        for name, value in vars(given).items():
            setattr(self, name, moved(value))
        # A test makes float64 of them.
        self.unit_labels = given.unit_labels


def brought(value):
    """Whatever a function gives, on the CPU."""
    if isinstance(value, (Tensor, Partition)):
        return value.cpu() if isinstance(value, Tensor) else value.to("cpu")
    if isinstance(value, nn.Module):
        return {name: each.cpu() for name, each in value.named_parameters()}
    if isinstance(value, dict):
        return {name: brought(each) for name, each in value.items()}
    return [brought(each) for each in value] if isinstance(value, (list, tuple)) else value


def compare(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            compare(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for each, wanted in zip(found, expected, strict=True):
            compare(each, wanted)
    elif isinstance(expected, (np.ndarray, float)) and np.asarray(expected).dtype.kind == "f":
        assert np.shape(found) == np.shape(expected)
        # Results are float32. Without float64 so are sums; the measures of circuits and networks add up many.
        rtol, atol = (1e-6, 2e-7) if HAS_FLOAT64 else (2e-5, 2e-6)
        np.testing.assert_allclose(found, expected, rtol, atol)
    else:
        np.testing.assert_equal(found, expected)


@pytest.fixture(scope="module")
def given():
    return Given()


@pytest.fixture(scope="module")
def on_the_device(given):
    return OnTheDevice(given)


def test_the_device_has_the_floats_that_it_has():
    assert devices.widest_float(DEVICE) == WIDEST


@pytest.mark.parametrize("name", sorted(set(CALLS) - OF_ARRAYS - ON_CPU))
def test_results_are_those_of_the_cpu(given, on_the_device, name, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "device").mkdir()
    expected = plain(WITHOUT_ARRAYS[name](given, tmp_path / "cpu"))
    found = plain(brought(WITHOUT_ARRAYS[name](on_the_device, tmp_path / "device")))
    compare(found, expected)
