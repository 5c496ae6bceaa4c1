"""A file does not say along which dimension spectral_norm was taken: its vectors show it or it is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from modfast.weights import read_weights

OLD, NEW = nn.utils.spectral_norm, parametrizations.spectral_norm


def read(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return read_weights(str(tmp_path / "model.pt"))["0"]


def trained(layer, images, steps):
    """A model after some steps of training, and the weight that it then multiplies by."""
    model = nn.Sequential(layer).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    model.eval()(images)
    return model, model[0].weight.detach()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("function", [OLD, NEW])
@pytest.mark.parametrize("size", [8, 64])
def test_a_square_matrix_is_divided_by_what_the_forward_pass_divides_it_by(
    size, function, dim, steps, seed, tmp_path
):
    torch.manual_seed(seed)
    model, weight = trained(function(nn.Linear(size, size), dim=dim), torch.randn(16, size), steps)
    torch.testing.assert_close(read(model, tmp_path), weight)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("function", [OLD, NEW])
def test_any_dimension_of_a_convolution_may_be_the_rows(function, dim, tmp_path):
    torch.manual_seed(0)
    model, weight = trained(function(nn.Conv1d(5, 5, 5, bias=False), dim=dim), torch.randn(4, 5, 9), 10)
    torch.testing.assert_close(read(model, tmp_path), weight)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "layer", [lambda: nn.Conv2d(8, 8, 3), lambda: nn.Conv1d(4, 4, 1), lambda: nn.Linear(8, 8)]
)
def test_vectors_that_fit_no_dimension_are_refused(layer, seed, tmp_path):
    torch.manual_seed(seed)
    model = nn.Sequential(OLD(layer()))  # the hook begins with random vectors
    with pytest.raises(ValueError, match=r"the weight of layer '0' .* dimension that the file does not show"):
        read(model, tmp_path)


def test_vectors_that_fit_several_dimensions_are_refused(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    layer.weight.data = torch.ones(8, 8) + 1e-2 * torch.rand(8, 8)
    model = nn.Sequential(NEW(layer))
    with torch.no_grad():  # a step of training after the last step of the power iteration
        model[0].parametrizations.weight.original += 1e-2 * torch.rand(8, 8)
    with pytest.raises(ValueError, match="does not show"):
        read(model, tmp_path)


def test_a_weight_that_is_the_same_along_both_dimensions_is_read(tmp_path):
    layer = nn.Linear(4, 4)
    layer.weight.data = torch.diag(torch.arange(1.0, 5.0))
    model = nn.Sequential(OLD(layer)).eval()
    model(torch.ones(1, 4))
    torch.testing.assert_close(read(model, tmp_path), model[0].weight.detach())


@pytest.mark.parametrize("function", [OLD, NEW])
@pytest.mark.parametrize("dim", [0, 1])
def test_lengths_suffice_where_the_sides_differ(function, dim, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(function(nn.Linear(6, 4), dim=dim)).eval()
    model(torch.ones(1, 6))
    torch.testing.assert_close(read(model, tmp_path), model[0].weight.detach())


def test_vectors_of_another_dtype_are_refused(tmp_path):
    state = {
        "0.weight_orig": torch.randn(4, 6),
        "0.weight_u": torch.randn(4).double(),
        "0.weight_v": torch.randn(6),
    }
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not fit spectral_norm's vectors"):
        read_weights(str(tmp_path / "model.pt"))["0"]
