"""Train two copies of a model: by the optimiser with the loss in it, and by PyTorch's beside the loss."""

import copy

import torch

from modfast import EnmeshmentLoss
from modfast.optim import AdamW

# After 100 steps: of the largest weight of the model.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Pair:
    """``ours`` and ``theirs``: a model, its loss, and its optimiser, each.

    ``groups`` makes the optimiser's parameters from a model; ``scale`` is the weight of the loss.
    """

    def __init__(self, model, clusters=2, scale=2.0, groups=None, layers=None, reduction="mean", **options):
        self.scale = scale
        self.models = model, copy.deepcopy(model)
        self.losses = [
            None if clusters is None else EnmeshmentLoss(m, clusters, layers=layers, reduction=reduction)
            for m in self.models
        ]
        groups = groups or (lambda m: m.parameters())
        ours = {} if clusters is None else {"enmeshment": self.losses[0], "enmeshment_weight": scale}
        self.ours = AdamW(groups(self.models[0]), **options, **ours)
        self.theirs = torch.optim.AdamW(groups(self.models[1]), **options)

    def step(self, objective):
        """One step each: ``objective(model)`` is the loss beside that of the optimiser."""
        for model, optimizer in zip(self.models, (self.ours, self.theirs), strict=True):
            optimizer.zero_grad()
            objective(model).backward()
        if self.losses[1] is not None and self.scale:
            self.losses[1].accumulate_grad_(self.scale)
        self.ours.step()
        self.theirs.step()

    def assert_alike(self, tolerance=None):
        """All parameters are alike, and the kept value is the loss."""
        with torch.no_grad():
            # Not of each parameter: of biases, which begin at 0, that is less than rounding leaves.
            size = max(float(p.abs().max()) for p in self.models[1].parameters() if p.numel())
            for (name, one), other in zip(
                self.models[0].named_parameters(), self.models[1].parameters(), strict=True
            ):
                limit = TOLERANCE[one.dtype] if tolerance is None else tolerance
                difference = (one.double() - other.double()).abs().flatten()
                assert (difference <= limit * size).all(), (name, float(difference.max()))
        if self.losses[0] is not None:
            assert_value(self.ours)

    def assert_as_exact(self, exact):
        """Our parameters are those of a pair in float64, or no farther from them than PyTorch's.

        Where a gradient is nearly nothing, Adam's division by its size makes rounding large. Two runs in
        float32 then differ, and the one in float64 decides.
        """
        models = (*self.models, exact.models[1])
        ours, theirs, right = (
            torch.cat([each.detach().flatten() for each in model.parameters()]) for model in models
        )
        off, allowed = (float((each.double() - right).abs().max()) for each in (ours, theirs))
        assert off <= max(allowed, TOLERANCE[ours.dtype] * float(right.abs().max()))
        assert_value(self.ours)


def assert_value(optimizer):
    """The kept value is the loss of the weights as they are."""
    with torch.no_grad():
        expected = optimizer.enmeshment()
    value = optimizer.enmeshment_value
    assert value.dtype == expected.dtype
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-6 if value.dtype == torch.float32 else 1e-13, atol=0)
