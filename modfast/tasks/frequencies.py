"""Which waves neurons and logits of modular addition are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast.arrays import require_plain
from modfast.devices import widest_float


def neuron_frequencies(activations: Tensor) -> Tensor:
    """The share of each neuron's variance over all pairs (a, b) that each frequency explains.

    Frequency k explains what is a sum of products of 1, ``cos(2 pi k a / p)`` and ``sin(2 pi k a / p)`` with
    1, ``cos(2 pi k b / p)`` and ``sin(2 pi k b / p)``, but for the constant: eight waves. In a network that
    generalises, one frequency explains most of a neuron.

    Args:
        activations: floating point, ``(p, p, neurons)``, with odd p: the value of each neuron for each
            (a, b), as :meth:`ModularAddition.activations` returns it.

    Returns:
        float64 ``(neurons, (p - 1) / 2)``, on the activations' device: the share of frequency k in column
        ``k - 1``. Shares of a neuron sum to at most 1: what is left are waves of different frequencies in a
        and b. NaN for a dead neuron, which is the same for all pairs.

    Raises:
        TypeError: ``activations`` is no tensor of floating-point numbers.
        ValueError: they have another shape, p is even or below 3, or one is not finite.

    Source: "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217), section 4.3.

    Example:
        >>> import math
        >>> a = torch.arange(7)[:, None] * 2 * math.pi / 7
        >>> b = torch.arange(7)[None, :] * 2 * math.pi / 7
        >>> neurons = torch.stack([torch.cos(2 * a + 2 * b), torch.cos(a) + torch.sin(3 * b)], dim=2)
        >>> neuron_frequencies(neurons).round(decimals=4)
        tensor([[0.0000, 1.0000, 0.0000],
                [0.5000, 0.0000, 0.5000]], dtype=torch.float64)
    """
    values, p = _checked("activations", activations)
    power = torch.fft.fft2(values, dim=(0, 1)).abs().square()
    power[0, 0] = 0
    shares = []
    for k in range(1, (p - 1) // 2 + 1):
        waves = torch.tensor([0, k, p - k], device=values.device)
        shares.append(power[waves[:, None], waves].sum((0, 1)))
    is_dead = (values == values[:1, :1]).all(1).all(0)
    explained: Tensor = torch.stack(shares, dim=1) / power.sum((0, 1))[:, None]
    return explained.masked_fill(is_dead[:, None], torch.nan)


def logit_frequencies(logits: Tensor) -> Tensor:
    """The share of the logits' variance that ``cos(2 pi k (a + b - c) / p)`` explains, for each frequency k.

    The key frequencies of a network are those with a share far above zero.

    Args:
        logits: floating point, ``(p, p, p)``, with odd p: the logit of c for each (a, b), as
            :meth:`ModularAddition.logits` returns it. What is the same for all c is left out, as it changes
            no probability.

    Returns:
        float64 ``((p - 1) / 2,)``, on the logits' device: the share of frequency k at ``k - 1``; all NaN if
        the logits are the same for all c.

    Raises:
        TypeError: ``logits`` is no tensor of floating-point numbers.
        ValueError: they have another shape, p is even or below 3, or one is not finite.

    Source: arXiv 2301.05217, section 4.1.

    Example:
        >>> import math
        >>> angle = torch.arange(7) * 2 * math.pi / 7
        >>> sums = angle[:, None, None] + angle[:, None] - angle
        >>> logit_frequencies(3 * torch.cos(2 * sums) + torch.cos(3 * sums)).round(decimals=4)
        tensor([0.0000, 0.9000, 0.1000], dtype=torch.float64)
    """
    values, p = _checked("logits", logits)
    if values.shape[2] != p:
        raise ValueError(f"logits must have shape (p, p, p), got {tuple(logits.shape)}")
    if bool((values == values[..., :1]).all()):
        return torch.full(((p - 1) // 2,), torch.nan, dtype=values.dtype, device=values.device)
    values = values - values.mean(2, keepdim=True)
    places = torch.arange(p, device=values.device)
    # The mean over all (a, b, c) with the same a + b - c projects on what depends on that sum alone.
    differences = (places[:, None, None] + places[:, None] - places) % p
    means = torch.zeros(p, dtype=values.dtype, device=values.device)
    means = means.index_add(0, differences.flatten(), values.flatten()) / p**2
    power: Tensor = torch.fft.fft(means).real.square()[1 : (p - 1) // 2 + 1]
    # Parseval: k and -k have half of a cosine's variance each, p * p times for all (a, b).
    return 2 * p * power / values.square().sum()


def _checked(name: str, values: object) -> tuple[Tensor, int]:
    """The values in the widest type of their device, and p."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor of floating-point numbers, got {got}")
    require_plain(name, values)
    if values.dim() != 3 or values.shape[0] != values.shape[1]:
        raise ValueError(f"{name} must have shape (p, p, n), got {tuple(values.shape)}")
    p = values.shape[0]
    if p < 3 or p % 2 == 0:
        raise ValueError(f"{name} must have shape (p, p, n) with an odd p of at least 3, got p = {p}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return values.detach().to(widest_float(values.device)), p
