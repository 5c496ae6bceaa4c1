"""How much the loss of a network depends on each weight of a layer, as a similarity to cluster by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from modfast.layers.layer import find_layer
from modfast.layers.replaced import replaced_weights, require_own_parameters
from modfast.layers.running import call_model, copied, logits_of, preserved, split_batch


def gradient_affinity(
    model: nn.Module,
    layer: str,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
) -> Tensor:
    """Return how much a loss over batches depends on each weight of a layer: ``|sum of dL/dW|``.

    Give it to ``spectral_cocluster(..., affinity="given")`` in place of ``|W|`` to cluster rows and columns
    by the weights that matter to a loss on your data, rather than by the large ones.

    The model runs in its present mode, training or evaluation, and is left as it was: no ``.grad``, no
    ``requires_grad`` and no buffer (running statistics, for example) changes. The weight may be frozen, and
    it may be computed: it is what the layer's forward pass multiplies by. Nothing is moved to another device.

    Args:
        model: is called with the inputs of a batch.
        layer: the name of the layer (``"fc2"``) or of its weight (``"fc2.weight"``).
        batches: pairs ``(inputs, targets)``, on the model's device: a ``DataLoader`` or a generator, for
            example. Inputs are a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. A mapping with the key ``"labels"`` is a batch as well, with these as its targets.
        loss: is called as ``loss(outputs, targets)`` and returns a scalar, as
            ``torch.nn.functional.cross_entropy`` does. ``outputs`` is what the model returns; only PyTorch's
            own losses get its ``.logits``, where it is an object that has them (transformers).

    Returns:
        ``(out, in, *kernel)``, also where the weight is stored transposed; float64 for a float64 weight, else
        float32; on the weight's device, detached.

    Raises:
        ValueError: no such layer, or one whose weight cannot be read; no batches; the loss is no scalar, does
            not depend on the layer, or its gradient is NaN or infinite.
        TypeError: ``model`` is no ``nn.Module``; an element of ``batches`` is of another kind; the weight is
            spread over processes (``DTensor``), or FSDP keeps the model's weights.

    Source: arXiv 2409.15747 and 2502.02470, whose similarities are this one and ``|W|``.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0, 2.0]]), 1.0), (torch.tensor([[0.0, -5.0]]), 1.0)]
        >>> gradient_affinity(model, "", batches, lambda outputs, targets: (targets * outputs).sum())
        tensor([[1., 3.]])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    require_own_parameters(model)
    chosen = find_layer(model, layer, "layer")
    with torch.inference_mode(False):
        stored = chosen.whole()
        # This tensor replaces the weight, so that a frozen one has a gradient too, and no .grad is touched.
        weight = chosen.oriented(stored.detach()).requires_grad_()
        total = torch.zeros_like(
            weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=False
        )
    count = 0
    for batch in batches:
        inputs, targets = split_batch(batch, "batches")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            preserved(model),
            replaced_weights(model, {chosen: weight}),
        ):
            outputs = call_model(model, inputs)
            value = loss(logits_of(outputs) if _is_loss_of_pytorch(loss) else outputs, copied(targets))
            if not isinstance(value, Tensor) or value.dim() != 0:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"loss must return a scalar tensor, got {got}")
            grad = torch.autograd.grad(value, weight, allow_unused=True)[0] if value.requires_grad else None
        if grad is None:
            raise ValueError(f"loss does not depend on the weight of layer {layer!r}")
        total += grad
        count += 1
    if count == 0:
        raise ValueError("batches holds no batch")
    if not total.isfinite().all():
        raise ValueError(f"the gradient of the loss in layer {layer!r} must be finite, got NaN or infinity")
    return total.abs()


def _is_loss_of_pytorch(loss: object) -> bool:
    """Whether a loss is one of PyTorch's own, which take tensors only."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return isinstance(loss, nn.modules.loss._Loss) or getattr(loss, "__module__", "") == "torch.nn.functional"
