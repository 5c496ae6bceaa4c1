"""Ready metrics for circuits over units: functions of a model's output and of the batch, higher is better.

Each returns one number per example, ``(n,)``. A metric of your own may do so too, or return a scalar, which
then counts as the mean over the batch's examples. The model's output is logits: a tensor, or what has
``.logits`` (transformers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .arguments import Integer, check
from .batches import inputs_of, targets_of
from .devices import widest_float
from .layers.running import logits_of

Metric: TypeAlias = Callable[[Any, Any], Tensor]
"""A function of a model's output and of the batch: a scalar, or one number per example."""


def next_token_log_likelihood(output: Any, batch: Any) -> Tensor:
    """The mean log probability of each next token, for each text.

    Args:
        output: logits ``(n, length, vocabulary)``.
        batch: token ids ``(n, length)``: a tensor, the first of a pair, or ``input_ids`` of a mapping. Where
            its ``attention_mask`` is 0, a token is not counted.

    Returns:
        ``(n,)``, in nats, with the gradient of the logits; float64 for float64 logits, else float32.

    Raises:
        ValueError: the shapes do not fit, or a text has no token after the first.
        TypeError: there are no token ids.

    Example:
        >>> next_token_log_likelihood(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])).exp()
        tensor([0.2500])
    """
    logits, ids, mask = _text(output, batch)
    if ids.shape[1] < 2:
        raise ValueError(f"batch must hold texts of at least two tokens, got shape {tuple(ids.shape)}")
    counted = mask[:, 1:] & mask[:, :-1]
    if not bool(counted.any(1).all()):
        raise ValueError("batch: each text must have two tokens that its attention_mask does not hide")
    log_likelihood = _log_softmax(logits[:, :-1]).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return torch.where(counted, log_likelihood, 0.0).sum(1) / counted.sum(1)


def logit_difference(a: int | Callable[[Any], Tensor], b: int | Callable[[Any], Tensor]) -> Metric:
    """Return the metric "logit of a less logit of b": of a class, or of the token after the last position.

    Args:
        a: the class or token that is right; or a function of the batch that returns it for each example,
            integers ``(n,)``.
        b: the one that is wrong, likewise.

    Returns:
        A function of the output, logits ``(n, classes)`` or ``(n, length, vocabulary)``, and of the batch,
        whose ``attention_mask``, if it has one, says which position is a text's last.

    Raises:
        TypeError: a or b is neither an integer nor callable.
        ValueError: when the metric is called: an index is out of range, or a shape does not fit.

    Example:
        >>> logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]), None)
        tensor([2.])
    """
    for name, which in (("a", a), ("b", b)):
        if not callable(which):
            check(name, which, Integer(0))

    def metric(output: Any, batch: Any) -> Tensor:
        logits = _last(logits_of(output), batch)
        ends = [_picked(name, which, logits, batch) for name, which in (("a", a), ("b", b))]
        return ends[0] - ends[1]

    return metric


def class_log_likelihood(output: Any, batch: Any) -> Tensor:
    """The log probability of each example's class.

    Args:
        output: logits ``(n, classes)``.
        batch: a pair ``(inputs, targets)``, or a mapping with ``labels``: integers ``(n,)``.

    Returns:
        ``(n,)``, in nats, with the gradient of the logits; float64 for float64 logits, else float32.

    Raises:
        ValueError: a shape does not fit, or a class is out of range.
        TypeError: there are no targets, or they are no integers.

    Example:
        >>> class_log_likelihood(torch.zeros(2, 4), (torch.rand(2, 3), torch.tensor([1, 3]))).exp()
        tensor([0.2500, 0.2500])
    """
    logits = _of_classes(output)
    return _log_softmax(logits).gather(1, _targets(logits, batch)[:, None]).squeeze(1)


def class_log_odds(output: Any, batch: Any) -> Tensor:
    """The log odds of each example's class: its logit less that of all others together.

    Choose it in place of :func:`class_log_likelihood` to score units of a model that is sure of its answers:
    the log of a probability near 1 has next to no gradient, the log odds have.

    Args:
        output: logits ``(n, classes)``, of at least two classes.
        batch: as for :func:`class_log_likelihood`.

    Returns:
        ``(n,)``, ``log(p / (1 - p))``, with the gradient of the logits; float64 for float64 logits, else
        float32.

    Raises:
        ValueError, TypeError: as :func:`class_log_likelihood`; or there is one class alone.

    Example:
        >>> class_log_odds(torch.tensor([[2.0, 2.0, 2.0]]), (torch.rand(1, 3), torch.tensor([1]))).exp()
        tensor([0.5000])
    """
    logits = _of_classes(output)
    if logits.shape[1] < 2:
        raise ValueError(f"model must return logits of at least two classes, got shape {tuple(logits.shape)}")
    targets = _targets(logits, batch)[:, None]
    if logits.dtype != torch.float64:
        logits = logits.float()
    others = logits.scatter(1, targets, -torch.inf).logsumexp(1)
    return logits.gather(1, targets).squeeze(1) - others


def accuracy(output: Any, batch: Any) -> Tensor:
    """Whether each example's answer is right: 1 or 0. It has no gradient: score units by another metric.

    Args:
        output: logits ``(n, classes)``; or ``(n, length, vocabulary)``: then the answer is the text's last
            token, given those before it.
        batch: as for :func:`class_log_likelihood`, or for :func:`next_token_log_likelihood`.

    Returns:
        float64, ``(n,)``; NaN for an example with a logit that is NaN.

    Raises:
        ValueError, TypeError: as these two.

    Example:
        >>> accuracy(torch.eye(3), (torch.rand(3, 2), torch.tensor([0, 1, 1])))
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    if logits_of(output).dim() == 3:
        logits, ids, mask = _text(output, batch)
        last = _last_place(mask)
        if int(last.min()) < 1:
            raise ValueError("batch must hold texts of at least two tokens")
        rows = torch.arange(len(ids), device=ids.device)
        return _right(logits[rows, last - 1], ids[rows, last])
    logits = _of_classes(output)
    return _right(logits, _targets(logits, batch))


def _right(logits: Tensor, answers: Tensor) -> Tensor:
    """1 where the largest logit is the answer's, else 0; NaN where a logit is, which is no answer."""
    right = (logits.argmax(1) == answers).to(widest_float(logits.device))
    return torch.where(logits.isnan().any(1), torch.nan, right)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _of_classes(output: Any) -> Tensor:
    logits = logits_of(output)
    if logits.dim() != 2:
        raise ValueError(f"model must return logits (n, classes), got shape {tuple(logits.shape)}")
    return logits


def _targets(logits: Tensor, batch: Any) -> Tensor:
    targets = targets_of(batch)
    if not isinstance(targets, Tensor):
        raise TypeError(
            "batch must be a pair (inputs, targets) or a mapping with 'labels', whose targets are a tensor, "
            f"got {type(batch).__name__}"
        )
    return _indices("batch: targets", targets, logits)


def _indices(name: str, indices: Tensor, logits: Tensor) -> Tensor:
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {indices.dtype}")
    if indices.shape != logits.shape[:1]:
        raise ValueError(f"{name} must have shape {tuple(logits.shape[:1])}, got {tuple(indices.shape)}")
    indices = indices.to(logits.device, torch.int64)
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= logits.shape[1]):
        raise ValueError(f"{name} must lie in [0, {logits.shape[1] - 1}], got {indices.unique().tolist()}")
    return indices


def _text(output: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, the token ids, and which of them are no padding."""
    logits, inputs = logits_of(output), inputs_of(batch)
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        raise TypeError(f"batch must hold token ids, or have input_ids, got {type(batch).__name__}")
    if logits.dim() != 3 or ids.dim() != 2 or logits.shape[:2] != ids.shape:
        raise ValueError(
            f"model must return logits (n, length, vocabulary) for ids (n, length), got "
            f"{tuple(logits.shape)} for {tuple(ids.shape)}"
        )
    return logits, ids.to(logits.device, torch.int64), _mask(batch, ids).to(logits.device)


def _mask(batch: Any, like: Tensor) -> Tensor:
    inputs = inputs_of(batch)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if mask.shape != like.shape[:2]:
        raise ValueError(
            f"batch: attention_mask must have shape {tuple(like.shape[:2])}, got {tuple(mask.shape)}"
        )
    shown: Tensor = mask.bool()
    return shown


def _last_place(mask: Tensor) -> Tensor:
    """The last position of each text that is no padding, wherever the padding is."""
    if not bool(mask.any(1).all()):
        raise ValueError("batch: attention_mask hides a whole text")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def _last(logits: Tensor, batch: Any) -> Tensor:
    if logits.dim() == 2:
        return logits
    if logits.dim() != 3:
        raise ValueError(
            f"model must return logits (n, classes) or (n, length, vocabulary), got {tuple(logits.shape)}"
        )
    places = _last_place(_mask(batch, logits).to(logits.device))
    return logits[torch.arange(len(logits), device=logits.device), places]


def _picked(name: str, which: Any, logits: Tensor, batch: Any) -> Tensor:
    if callable(which):
        indices = which(batch)
        if not isinstance(indices, Tensor):
            raise TypeError(f"{name} must return a tensor of integers, got {type(indices).__name__}")
        return logits.gather(1, _indices(name, indices, logits)[:, None]).squeeze(1)
    if which >= logits.shape[1]:
        raise ValueError(f"{name} must lie in [0, {logits.shape[1] - 1}], got {which}")
    return logits[:, which]
