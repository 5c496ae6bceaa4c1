"""The tail of a model: the linear layers and convolutions that it ends in, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from modfast.layers.autograd_graph import Unhidden
from modfast.layers.layer import Choices, find_layer, find_layers, match_layers
from modfast.layers.plain_copy import plain_copy
from modfast.layers.running import logits_of

from .autograd_record import Convolution, Step, recorded_steps
from .stages import Stage

# Small enough to bound the memory and to stop soon.
_BATCH_SIZE = 200
_SAMPLE_SIZE = 16
# Allowed rounding errors: relative to the largest value, and absolute, for sums that cancel.
_TOLERANCE = 1e-9
_TIE = 1e-12
_OTHERWISE = 'method="reference" handles any model'
_NOTHING = "nothing that PyTorch records for gradients"


@dataclass(frozen=True)
class TailLayer:
    """A layer and what happens to its sums, channel by channel.

    A linear layer has a channel of one place, a neuron, for each row of its weight.

    Attributes:
        name: the layer's name.
        parameter: its weight's name in the model's ``state_dict``.
        weight: float64 ``(out, in)``, of a convolution ``(out, in / groups, *kernel)``, on the CPU, a copy.
        bias: float64 ``(out,)`` on the CPU, a copy; or None.
        activation: the last stage: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"gelu"``, ``"gelu_tanh"``
            (its tanh approximation), ``"silu"``, ``"tanh"`` or ``"sigmoid"``; ``"identity"`` after the last
            layer.
        slope: the slope of ``"leaky_relu"`` below zero; otherwise 0.
        pruned: whether the layer is to be pruned, or only lies between pruned layers and the logits.
        convolution: where it reads, if it is a convolution.
        stages: what lies between its sums and the activation: batch norms, poolings, other activations.
    """

    name: str
    parameter: str
    weight: Tensor
    bias: Tensor | None
    activation: str
    slope: float
    pruned: bool
    convolution: Convolution | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is a linear layer with at most an activation after it."""
        return self.convolution is None and not self.stages

    @property
    def places(self) -> int:
        """How many sums a channel has."""
        return 1 if self.convolution is None else self.convolution.sources.shape[1]

    @property
    def held_places(self) -> int:
        """How many numbers a channel has after the stages."""
        places = self.places
        for stage in self.stages:
            places = stage.places(places)
        return places

    def run(self, values: Tensor) -> Tensor:
        """Return the next layer's input, ``(n, out)``, given this layer's input, ``(n, in)``.

        What channels have places for is flattened, channel by channel.
        """
        sums = self._sums(values)
        if self.bias is not None:
            sums = sums + self.bias[:, None]
        for stage in (*self.stages, Stage(self.activation, self.slope)):
            sums = stage.run(sums)
        return sums.flatten(1)

    def _sums(self, values: Tensor) -> Tensor:
        """Return ``(n, out, places)``."""
        if self.convolution is None:
            return (values @ self.weight.T)[:, :, None]
        groups, sources, in_places = self.convolution
        # A place of zeros after the last, which -1 reads.
        inputs = nn.functional.pad(values.view(len(values), groups, -1, in_places), (0, 1))
        kernels = self.weight.flatten(2).unflatten(0, (groups, -1))  # (groups, out, in, taps)
        taps = (kernels[:, :, :, tap] @ inputs[..., places.long()] for tap, places in enumerate(sources))
        return sum(taps, torch.zeros((), dtype=torch.float64, device="cpu")).flatten(1, 2)


@dataclass(frozen=True)
class Tail:
    """Fixed features, and the layers that compute logits from them.

    Attributes:
        features: float64 ``(n, in)`` on the CPU: the first layer's input, for each input of the model; of
            channels with several places flattened.
        layers: from the first to the last.
        logits: float64 ``(n, classes)`` on the CPU: the output of the whole model.
        obstacle: a description of the operation that ends the tail, before its first layer; "" if none does.
        earlier: the names of the layers before the tail that could be named to belong to it.
    """

    features: Tensor
    layers: list[TailLayer]
    logits: Tensor
    obstacle: str
    earlier: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, str]:
        """The pruned layers, from the first to the last: name to the weight's name in the state_dict."""
        return {layer.name: layer.parameter for layer in self.layers if layer.pruned}


def read_tail(
    model: nn.Module,
    inputs: Tensor,
    layers: Choices | None = None,
    *,
    before_batch: Callable[[], None] = lambda: None,
) -> Tail:
    """Return the layers that a model ends in, and the input of the first of them.

    By default the tail extends from the logits backwards over linear layers, with or without biases, as long
    as between two of them there are only reshapes, inactive dropout and at most one of the activations of
    :class:`TailLayer`. For layers that are named it extends further: over convolutions (of any dimension,
    with any stride, dilation, groups and padding by zeros), and over batch norms with running statistics,
    several activations, and poolings. A mean's windows must all have the same size. The layers before the
    tail are fixed, and run once, in batches. A copy of the model computes everything in float64 on the CPU,
    in evaluation mode; the model itself is not changed.

    Runs check that the tail is complete: its layers alone must give the model's logits for all inputs and,
    for the first 16, also when half of the weights that are to be pruned are zero.

    Args:
        model: returns logits ``(n, classes)``; those of an input must not depend on the other inputs.
        inputs: ``(n, ...)``.
        layers: names or globs of the layers to prune, by default all linear layers that the model ends in.
            The tail begins with the first of them.
        before_batch: called before each batch; an exception from it ends the reading.

    Raises:
        ValueError: there is no input; the model does not end in a linear layer, or not in all of ``layers``;
            the layers alone give other logits; or one of their weights or inputs is not finite.
        TypeError: an argument, or the model's output, is of another type.

    Example:
        >>> from modfast.models import CNN
        >>> tail = read_tail(CNN((3, 8, 8)), torch.rand(5, 3, 8, 8))
        >>> [(layer.name, layer.activation) for layer in tail.layers]
        [('fc1', 'relu'), ('fc2', 'relu'), ('fc3', 'identity')]
        >>> tuple(tail.features.shape)
        (5, 256)
        >>> [layer.name for layer in read_tail(CNN((3, 8, 8)), torch.rand(5, 3, 8, 8), "*").layers]
        ['conv1', 'fc1', 'fc2', 'fc3']
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module, and not of torch.jit, got {type(model).__name__}")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor, got {type(inputs).__name__}")
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"inputs must hold at least one input, got shape {tuple(inputs.shape)}")
    # Gradients are recorded whatever mode the caller is in: the autograd graph shows the layers.
    with torch.inference_mode(False), torch.enable_grad():
        plain = plain_copy(model).cpu().to(torch.float64).eval()
        return _Reader(plain, before_batch).read(inputs.detach(), layers)


class _Reader:
    """Reads the tail of a copy of a model; it changes the copy's weights and settings."""

    def __init__(self, model: nn.Module, before_batch: Callable[[], None]) -> None:
        self.model, self.before_batch = model, before_batch
        # Reversed, so that of a weight with several names the first one counts.
        self.layers = {layer.identity: layer for layer in reversed(find_layers(model))}

    def read(self, inputs: Tensor, patterns: Choices | None) -> Tail:
        sample = inputs[:_SAMPLE_SIZE]
        self.record(list(self.model.parameters()))
        sample_logits = self.run(sample)
        all_steps, obstacle = recorded_steps(sample_logits, self.layers)
        steps, pruned, obstacle = self.choose(all_steps, obstacle, patterns)
        # From now on, nothing is recorded before the tail.
        self.record([step.layer.stored() for step in steps] + [step.bias for step in steps])
        layers = [_tail_layer(step, step.layer.identity in pruned) for step in steps]

        features, logits = (
            torch.empty(len(inputs), values[0].numel(), dtype=torch.float64, device="cpu")
            for values in (steps[0].values, sample_logits)
        )
        for start in range(0, len(inputs), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            features[rows], logits[rows] = self.check(layers, inputs[rows])
        if not _is_close(logits[: len(sample)], sample_logits.detach()):
            raise ValueError(
                "model must give an input the same logits at any time and beside any other inputs, "
                f"and does not; {_OTHERWISE}"
            )
        sample_features, _ = self.check(self.halve(layers), sample)
        if not _is_close(features[: len(sample)], sample_features):
            raise ValueError(
                f"model: what layer {layers[0].name!r} reads must not depend on the weights that are to be "
                f"pruned, and does; {_OTHERWISE}"
            )
        earlier = tuple(step.layer.name for step in all_steps[: len(all_steps) - len(steps)])
        return Tail(features, layers, logits, obstacle, earlier)

    def record(self, tensors: Sequence[Tensor | None]) -> None:
        """Let autograd record the operations on these parameters, and on no others."""
        chosen = {id(tensor) for tensor in tensors}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in chosen and parameter.is_floating_point())

    def run(self, batch: Tensor) -> Tensor:
        """Return the model's logits, ``(n, classes)``, with their autograd graph."""
        self.before_batch()
        dtype = torch.float64 if batch.is_floating_point() else batch.dtype
        # Run on copies, since a model may write to its input.
        try:
            with Unhidden():
                output = self.model(batch.cpu().to(dtype, copy=True))
        except RuntimeError:
            # Some operations raise where Unhidden() records them.
            output = self.model(batch.cpu().to(dtype, copy=True))
        logits = logits_of(output)
        if logits.dim() != 2 or len(logits) != len(batch) or logits.shape[1] == 0:
            raise ValueError(
                f"model must return logits (n, classes), got shape {tuple(logits.shape)} "
                f"for {len(batch)} inputs"
            )
        return logits

    def choose(
        self, steps: list[Step], obstacle: str, patterns: Choices | None
    ) -> tuple[list[Step], set[object], str]:
        """Return the steps from the first layer to be pruned, the identities of all that are pruned, and a
        description of what comes before these steps.
        """
        if patterns is None:
            plain: list[Step] = []
            for step in reversed(steps):
                if step.beyond:
                    obstacle = step.beyond
                    break
                plain.insert(0, step)
            if not plain:
                last = [step.layer.name for step in steps[-1:]]
                advice = f"; layers={last} names what can be walked along" if last else ""
                raise ValueError(
                    "model must end in a linear layer, whose outputs are the logits; it ends in "
                    f"{obstacle or _NOTHING}{advice}; {_OTHERWISE}"
                )
            return plain, {step.layer.identity for step in plain}, obstacle
        if not steps:
            raise ValueError(
                "model must end in a linear layer or a convolution, whose outputs are the logits; it ends in "
                f"{obstacle or _NOTHING}; {_OTHERWISE}"
            )
        places = {step.layer.identity: place for place, step in enumerate(steps)}
        chosen = match_layers(self.model, patterns)
        if not chosen:
            raise ValueError(f"layers: nothing selected by {patterns!r}")
        for layer in chosen:
            if layer.identity not in places:
                names = ", ".join(repr(step.layer.name) for step in steps)
                raise ValueError(
                    f"layers: {layer.name!r} is not among the linear layers and convolutions that the model "
                    f"ends in, {names}; before them comes {obstacle or _NOTHING}; {_OTHERWISE}"
                )
        identities = {layer.identity for layer in chosen}
        return steps[min(places[identity] for identity in identities) :], identities, obstacle

    def check(self, layers: Sequence[TailLayer], batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first layer's input and the logits; raise unless the layers compute these from that."""
        logits = self.run(batch)
        steps = recorded_steps(logits, self.layers)[0][-len(layers) :]
        if [step.layer.name for step in steps] != [layer.name for layer in layers]:
            raise ValueError(f"model must run the same layers for all inputs and weights; {_OTHERWISE}")
        activations = [*(step.values.flatten(1) for step in steps), logits.detach()]
        if not all(values.isfinite().all() for values in activations):
            raise ValueError(
                f"inputs: what layer {layers[0].name!r} reads, and all after it, must be finite, "
                "got NaN or infinity"
            )
        for layer, (values, expected) in zip(layers, pairwise(activations), strict=True):
            if not _is_close(layer.run(values), expected):
                raise ValueError(
                    f"model: something that PyTorch does not record for gradients happens at or after layer "
                    f"{layer.name!r}; {_OTHERWISE}"
                )
        return activations[0], activations[-1]

    def halve(self, layers: Sequence[TailLayer]) -> list[TailLayer]:
        """Set half of the weights that are to be pruned to zero, in the model too; return the new layers."""
        generator = torch.Generator("cpu").manual_seed(0)
        halved = []
        for layer in layers:
            if layer.pruned:
                drawn = torch.rand(layer.weight.shape, generator=generator, dtype=torch.float32, device="cpu")
                layer = replace(layer, weight=torch.where(drawn < 0.5, layer.weight, 0.0))
                find_layer(self.model, layer.name, "model").stored().data.copy_(layer.weight)
            halved.append(layer)
        return halved


def _tail_layer(step: Step, pruned: bool) -> TailLayer:
    name = step.layer.name
    weight = step.layer.stored().detach().clone(memory_format=torch.contiguous_format)
    bias = None if step.bias is None else step.bias.detach().clone()
    if not weight.isfinite().all() or (bias is not None and not bias.isfinite().all()):
        raise ValueError(f"model: the weights and biases of layer {name!r} must be finite")
    stages = step.stages
    for stage in stages:
        if stage.table is not None and not stage.table.isfinite().all():
            raise ValueError(f"model: the batch norm after layer {name!r} must be finite")
    last = stages[-1] if stages and stages[-1].is_activation else None
    return TailLayer(
        name,
        step.layer.parameter_name,
        weight,
        bias,
        "identity" if last is None else last.kind,
        0.0 if last is None else last.number,
        pruned,
        step.convolution,
        stages if last is None else stages[:-1],
    )


def _is_close(values: Tensor, expected: Tensor) -> bool:
    """Return whether values are equal up to rounding, including rounding to the dtype of ``expected``."""
    share = max(_TOLERANCE, 4 * torch.finfo(expected.dtype).eps)
    allowed = share * float(expected.abs().max()) + _TIE
    return values.shape == expected.shape and float((values - expected).abs().max()) <= allowed
