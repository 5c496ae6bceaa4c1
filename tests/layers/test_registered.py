"""What a module registers in its first forward pass is gone after a call, and it can register it again."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import Partition

INPUTS, LABELS = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4


class Registering(nn.Module):
    """Makes something in its first forward pass, and remembers in an attribute that it did."""

    def __init__(self, kind):
        super().__init__()
        self.f, self.o = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("scale", torch.ones(8))
        self.kind, self.made = kind, False

    def forward(self, x):
        if not self.made:
            mean = x.detach().mean(0)
            if self.kind == "parameter":
                self.shift = nn.Parameter(mean)
            elif self.kind == "module":
                self.inner = nn.Identity()
            elif self.kind == "replaced buffer":
                del self.scale
                self.register_buffer("scale", mean, persistent=False)
            else:
                self.register_buffer("shift", mean, persistent=self.kind == "buffer")
            self.made = True
        return self.o(torch.relu(self.f(x * self.scale - getattr(self, "shift", 0.0))))


KINDS = ["buffer", "buffer that is not saved", "replaced buffer", "parameter", "module"]
CALLS = {
    "class_accuracy": lambda model: modfast.class_accuracy(model, [(INPUTS, LABELS)] * 2),
    "cluster_accuracy": lambda model: modfast.cluster_accuracy(
        model, (INPUTS, LABELS), {"f": Partition.blocks((8, 8), 2)}, "only"
    ),
    "network_graph": lambda model: modfast.network_graph(model, ["f", "o"], example_inputs=INPUTS),
    "gradient_affinity": lambda model: modfast.gradient_affinity(
        model, "f", [(INPUTS, LABELS)], cross_entropy
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_gone_and_comes_again(kind, call):
    model = Registering(kind)
    held = dict(model.named_buffers()) | dict(model.named_parameters())
    saved, children = list(model.state_dict()), list(model.children())
    if (kind, call) == ("replaced buffer", "network_graph"):
        with pytest.raises(modfast.CannotFollowError, match=r"torch.export fails: Non-persistent buffer"):
            CALLS[call](model)
    else:
        CALLS[call](model)
    now = dict(model.named_buffers()) | dict(model.named_parameters())
    assert list(now) == list(held)
    assert all(now[name] is tensor for name, tensor in held.items())
    assert list(model.state_dict()) == saved
    assert list(model.children()) == children
    assert not model.made
    model(INPUTS + 1)
    assert model.made
    if kind != "module":
        made = model.scale if kind == "replaced buffer" else model.shift
        assert torch.equal(made, (INPUTS + 1).mean(0))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lazy", [nn.LazyBatchNorm1d, lambda: nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_norm_that_was_not_called_is_refused(lazy, call):
    model = nn.ModuleDict({"f": nn.Linear(8, 8), "norm": lazy(), "o": nn.Linear(8, 4)})
    model.forward = lambda x: model["o"](model["norm"](model["f"](x)))
    with pytest.raises(ValueError, match=r"model: 'norm\.\w+' has no shape yet: call the model once"):
        CALLS[call](model)
