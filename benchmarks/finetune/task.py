"""The task of the model: which passage follows? Its loss, and whether each answer is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

Batch = Mapping[str, Tensor]


def batch_of(pairs: Tensor) -> dict[str, Tensor]:
    """Return the model's inputs: first all first passages, then all second ones.

    Args:
        pairs: tokens, ``(n, 2, length)``.
    """
    return {"input_ids": pairs.transpose(0, 1).flatten(0, 1).contiguous()}


def cosines(output: Any) -> Tensor:
    """Return how similar each first passage is to each second one, ``(n, n)``.

    A passage is the mean over its tokens (none is padding) of what the last block writes.

    Args:
        output: of the model, for a batch of :func:`batch_of`.
    """
    states: Tensor = output.last_hidden_state
    first, second = normalize(states.mean(1), dim=1).chunk(2)
    return first @ second.T


def info_nce(output: Any, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding each first passage's partner among the batch's second ones.

    Args:
        output: as for :func:`cosines`.
        temperature: cosines are divided by it.
    """
    logits = cosines(output) / temperature
    return cross_entropy(logits, torch.arange(len(logits)))


def partner_first(output: Any, batch: Batch) -> Tensor:
    """Return for each passage 1 if its partner is the most similar of the other side's, else 0.

    Args:
        output: as for :func:`cosines`.
        batch: not used; metrics get it.
    """
    found = cosines(output)
    own = torch.arange(len(found))
    return torch.cat([(found.argmax(side) == own) for side in (1, 0)]).to(found.dtype)


@torch.no_grad()
def held_out(model: nn.Module, batches: Sequence[Batch], temperature: float) -> dict[str, Any]:
    """Return loss and the share of right answers, means over batches, and each batch's loss.

    Args:
        model: in evaluation mode.
        batches: of equal size.
        temperature: as for :func:`info_nce`.
    """
    losses, rights = [], []
    for batch in batches:
        output = model(**batch)
        losses.append(float(info_nce(output, temperature)))
        rights.append(float(partner_first(output, batch).mean()))
    return {
        "loss": math.fsum(losses) / len(losses),
        "accuracy": math.fsum(rights) / len(rights),
        "losses": losses,
    }
