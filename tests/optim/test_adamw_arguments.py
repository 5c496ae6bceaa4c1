"""What the optimiser refuses, and how it says so."""

import pytest
import torch
from loss_models import mlp
from torch import nn

import modfast
from modfast import EnmeshmentLoss
from modfast.optim import AdamW


def refused(error, message, *args, **options):
    with pytest.raises(error, match=message):
        AdamW(*(args or (mlp(6, 6, 6).parameters(),)), **options)


def test_it_is_found_in_the_package():
    assert modfast.optim.AdamW is AdamW


@pytest.mark.parametrize("name", ["amsgrad", "maximize", "differentiable"])
def test_options_that_a_step_does_not_have(name):
    refused(ValueError, f"{name} must be False, got True", **{name: True})
    parameter = nn.Parameter(torch.ones(2))
    refused(ValueError, f"{name} must be False in parameter group 0", [{"params": [parameter], name: True}])
    optimizer = AdamW([parameter], **{name: False})
    optimizer.param_groups[0][name] = True
    parameter.grad = torch.ones(2)
    with pytest.raises(ValueError, match=f"{name} must be False in parameter group 0"):
        optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))


def test_other_options():
    refused(ValueError, "foreach must be None or False, got True", foreach=True)
    refused(ValueError, "fused must be True, got False", fused=False)
    AdamW(mlp(6, 6).parameters(), foreach=False, fused=True, capturable=True)
    refused(ValueError, "Invalid learning rate", lr=-1.0)
    refused(ValueError, "Invalid beta parameter at index 1", betas=(0.9, 1.0))
    refused(ValueError, "Invalid epsilon", eps=-1.0)
    refused(ValueError, "Invalid weight_decay", weight_decay=-1.0)
    refused(ValueError, "empty parameter list", [])
    refused(TypeError, "stochastic_rounding must be True or False, got int", stochastic_rounding=1)


def test_parameters_of_other_types():
    for dtype in (torch.complex64, torch.int64):
        message = f"parameter 0 of group 0 must be float32.*{dtype}"
        refused(TypeError, message, [torch.ones(2, dtype=dtype)])
    weight = nn.Parameter(torch.ones(2))
    packed = nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    optimizer = AdamW([packed, weight])  # frozen, as in a quantised model
    weight.grad = torch.ones(2)
    optimizer.step()
    assert packed not in optimizer.state
    with pytest.raises(TypeError, match="parameter 0 of group 1 must be float32"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients():
    embedding, linear = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4)
    optimizer = AdamW([*linear.parameters(), *embedding.parameters()])
    linear(embedding(torch.tensor([1, 2]))).sum().backward()
    before = [parameter.detach().clone() for parameter in linear.parameters()]
    with pytest.raises(ValueError, match="gradient of parameter 2 of group 0 must be dense"):
        optimizer.step()
    assert all(map(torch.equal, before, linear.parameters()))


def test_parameters_that_share_memory():
    numbers = torch.ones(6)
    one, other = nn.Parameter(numbers[:4]), nn.Parameter(numbers[2:])
    one.grad, other.grad = torch.ones(4), torch.ones(4)
    with pytest.raises(RuntimeError, match="memory"):
        AdamW([one, other]).step()
    assert torch.equal(numbers, torch.ones(6))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True, "1", None])
def test_weights_of_the_loss(weight):
    model = mlp(6, 6)
    message = "enmeshment_weight must be a finite number of at least 0"
    options = {"enmeshment": EnmeshmentLoss(model, 2), "enmeshment_weight": weight}
    refused(ValueError, message, model.parameters(), **options)
    optimizer = AdamW(model.parameters(), enmeshment=options["enmeshment"])
    with pytest.raises(ValueError, match=message):
        optimizer.enmeshment_weight = weight
    assert optimizer.enmeshment_weight == 0.0


def test_losses():
    model = mlp(6, 6, 6)
    refused(TypeError, "enmeshment must be a modfast.EnmeshmentLoss or None, got S", enmeshment=model)
    refused(ValueError, "enmeshment_weight needs enmeshment", enmeshment_weight=0.7)
    with pytest.raises(TypeError, match=r"enmeshment must be a modfast\.EnmeshmentLoss or None, got S"):
        AdamW(model.parameters()).enmeshment = model
    loss = EnmeshmentLoss(model, 2)
    refused(ValueError, r"no parameter group has the weight.*'2'", model[0].parameters(), enmeshment=loss)
    model[2].requires_grad_(False)
    optimizer = AdamW(model[0].parameters(), enmeshment=loss)
    model[2].requires_grad_(True)
    with pytest.raises(ValueError, match=r"no parameter group has the weight.*'2'"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"no parameter group has the weight.*'2'"):
        optimizer.add_param_group({"params": [model[2].bias]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [model[2].weight]})
    nn.utils.parametrizations.weight_norm(model[0])
    refused(ValueError, r"no parameter group has the weight.*'0'", model[2].parameters(), enmeshment=loss)
