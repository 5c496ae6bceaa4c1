"""The enmeshment loss of a model: one line to add to any training loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from modfast.display import html_table, listed
from modfast.layers.layer import Choices, Layer
from modfast.layers.partitioned import PartitionsByName, partitioned_layers
from modfast.partition import Partition, pack_partitions, unpack_partitions

from .functional import clusterability
from .gradients import grad_of, scale_of
from .kept import KeptLayers, is_transformed
from .layer_losses import LayerLosses
from .loss_layers import chosen_layers, placed_partition
from .operators import (
    TAKES_PACKED,
    accumulate_packed_enmeshment_grad_,
    reduced_enmeshment,
)

_REDUCTIONS = ("mean", "sum", "none")


class EnmeshmentLoss(nn.Module):
    """The share of squared weight that crosses cluster borders, over the chosen layers of a model.

    Args:
        module: the model. Its weights are looked up at each call, so it may be moved, sharded or
            changed afterwards. It does not become a child of the loss. Wrap it first (``torch.compile``, DDP,
            FSDP, peft): the loss does not notice if a layer is replaced by another one later.
        partitions: the number of clusters (contiguous blocks for each layer, :meth:`Partition.blocks`), or
            a mapping from layer name (``"fc2"``) or parameter name (``"fc2.weight"``) to
            :class:`Partition`. A partition fits the weight as ``(out, in)``, however it is stored.
        layers: the layers to train for modularity, given as one or any iterable of: names of layers or
            parameters, or globs of them (``"*.mlp.c_fc"``); modules of the model, for all layers in them;
            functions of a layer's name and its weight's shape that return whether to take it. By default the
            mapping's layers, or, with a number of clusters, every linear layer (``nn.Linear`` and
            ``transformers``' ``Conv1D``) whose weight is not also an embedding's. A model that is itself a
            layer, such as a bare ``nn.Linear``, has the layer name ``""``.
        exclude: layers to leave out of these, chosen in the same ways.
        reduction: ``"mean"`` over layers, which keeps the loss in [0, 1] for any number of layers; ``"sum"``,
            where a layer's gradient does not depend on how many there are; ``"none"`` for one value each,
            to weight the layers yourself.

    Raises:
        ValueError: an unknown layer, a shape that does not fit, no layer selected, a layer without a
            partition, one weight selected twice, a weight that cannot be read (packed or quantised, for
            example), or an unknown reduction.
        TypeError: ``module`` is no ``nn.Module``, or ``partitions`` neither a number nor a mapping.

    The weight of a layer is what its forward pass multiplies by. Where it is computed, the gradient flows
    into what it is computed from: through parametrizations, the hooks of ``torch.nn.utils.weight_norm``,
    ``spectral_norm`` and ``prune``, and the LoRA adapters of peft. A subclass of ``nn.Linear`` or of a
    convolution with a forward pass of its own is trusted to multiply by its ``weight`` as it is: one that
    scales or standardises it first is read wrongly. It cannot be read if it has other parameters or buffers
    than weight and bias, such as a mask: write it as a parametrization. A parameter of three dimensions that
    is no convolution's is a stack of matrices, each a layer: ``"experts.up_proj[3]"`` is one,
    ``"experts.up_proj"`` means all.

    Names do not depend on what the model is wrapped in: the parts that wrappers add (``module.``,
    ``_orig_mod.``, ``base_model.model.`` and so on) are left out, and accepted if you give them. Convolutions
    (transposed ones too) and any parameter of two dimensions, such as ``in_proj_weight`` of
    ``nn.MultiheadAttention``, can be chosen by name. The loss and the gradient of ``DTensor`` parameters are
    those of the whole weight on every process (partitions are of the whole weight; all processes call
    together).

    ``state_dict()`` holds the partitions, and ``load_state_dict`` restores them. A pickled loss holds its
    partitions, but no weights and no model: :meth:`attach` gives it a model.

    Source: arXiv 2409.15747, where 0.7 times this is added to the cross-entropy.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> loss = EnmeshmentLoss(model, 4, layers=["0"])
        >>> cross_entropy = nn.functional.cross_entropy(model(torch.randn(2, 8)), torch.tensor([0, 3]))
        >>> (cross_entropy + 0.7 * loss()).backward()
        >>> sorted(loss.clusterability())
        ['0']
    """

    def __init__(
        self,
        module: nn.Module,
        partitions: int | Mapping[str, Partition],
        layers: Choices | None = None,
        reduction: str = "mean",
        *,
        exclude: Choices | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        if isinstance(partitions, bool) or not isinstance(partitions, (Integral, Mapping)):
            raise TypeError(
                f"partitions must be a number of clusters or a mapping of names to Partition, "
                f"got {type(partitions).__name__}"
            )
        self.reduction = reduction
        self._set_layers(chosen_layers(module, partitions, layers, exclude))

    def _set_layers(self, chosen: Sequence[tuple[Layer, Partition]]) -> None:
        layers = [layer for layer, _ in chosen]
        self._names = [layer.name for layer in layers]
        self._partitions = [placed_partition(layer, partition) for layer, partition in chosen]
        # No modules of this loss: its parameters would be the model's weights.
        self._attached: LayerLosses | None = LayerLosses(layers, self._partitions)
        self._kept: KeptLayers | None = None

    def attach(self, module: nn.Module) -> EnmeshmentLoss:
        """Attach the loss to the layers of the same names in another model, and return the loss.

        Args:
            module: the model, wrapped or not. A pickled loss needs this before it can be used.

        Raises:
            ValueError: a layer is missing, or has another shape.

        Example:
            >>> import pickle
            >>> model = nn.Linear(8, 8)
            >>> loss = pickle.loads(pickle.dumps(EnmeshmentLoss(model, 2))).attach(model)
            >>> list(loss.partitions)
            ['']
        """
        chosen = {layer.name: (layer, own) for layer, own in partitioned_layers(module, self.partitions)}
        self._set_layers([chosen[name] for name in self._names])
        return self

    @property
    def _losses(self) -> LayerLosses:
        if self._attached is None:
            raise RuntimeError(
                "this loss was pickled, which keeps no model: give it one by loss.attach(model)"
            )
        return self._attached

    @property
    def _layers(self) -> Sequence[Layer]:
        return self._losses.layers

    @property
    def partitions(self) -> dict[str, Partition]:
        """Each chosen layer's partition, by canonical name.

        Any other name of a layer can be looked up too, and that of a stack if all its matrices have the same
        partition.
        """
        return PartitionsByName(zip(self._names, self._partitions, strict=True))

    def get_extra_state(self) -> Tensor:
        """The partitions, for ``state_dict()``: int64, 1-D, its length fixed by the layers."""
        return pack_partitions(self.partitions)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore partitions of the same layers, for ``load_state_dict``.

        Raises:
            ValueError: they are of other layers or shapes, or ``state`` is no packed partitions.
        """
        restored, own = unpack_partitions(state), self.partitions
        if set(restored) != set(own):
            raise ValueError(
                f"state: the partitions are of the layers {sorted(restored)}, the loss has {sorted(own)}"
            )
        for name, partition in restored.items():
            if partition.shape != own[name].shape:
                raise ValueError(
                    f"state: the partition of layer {name!r} has shape {partition.shape}, "
                    f"not {own[name].shape}"
                )
        self._partitions = [restored[name].to(own[name].device) for name in self._names]
        if self._attached is not None:
            self._attached = LayerLosses(self._layers, self._partitions)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_attached": None, "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_kept": None, **state})  # releases before this one kept nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> EnmeshmentLoss:
        # Unlike a pickled one, a copy belongs to the model that is copied with it.
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({**self.__dict__, "_kept": None}, memo))
        return copied

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Each chosen layer's weight as ``(out, in, *kernel)``, detached, by name."""
        return {layer.name: layer.weight().detach() for layer in self._layers}

    def _reduce(self, losses: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The reduced losses, in float64 if any weight is float64, else in float32."""
        any_double = any(weight.dtype == torch.float64 for weight in weights)
        dtype = torch.float64 if any_double else torch.float32
        if self.reduction == "none":
            return losses.to(dtype)
        return losses.mean(dtype=dtype) if self.reduction == "mean" else losses.sum(dtype=dtype)

    def forward(self) -> Tensor:
        """The loss: a scalar, or with ``reduction="none"`` one value for each layer. Differentiable."""
        stored = None
        if self.reduction != "none" and not torch.compiler.is_compiling():
            kept = self._kept
            known = kept is not None and kept.is_of(self._layers, self._partitions)
            weights: Sequence[Tensor] | None = kept.weights() if kept is not None and known else None
            if weights is None:
                # Looked up once for each call: some weights change a buffer whenever they are computed.
                stored = [layer.stored() for layer in self._layers]
                kept = self._keep(stored)
                weights = stored
            if kept is not None:
                mean = self.reduction == "mean"
                reduced = reduced_enmeshment(
                    weights, kept.row_labels, kept.col_labels, kept.counts, mean, kept.dtype
                )
                if reduced is not None:
                    return reduced
        if stored is None:
            stored = [layer.stored() for layer in self._layers]
        return self._reduce(self._losses.losses(stored, range(len(stored))), stored)

    def accumulate_grad_(self, scale: float, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Add ``scale * dE/dW`` into each weight's ``.grad``, without autograd, and return the loss.

        One fused pass over all layers, in place of ``(scale * loss()).backward()``, with the same result
        up to rounding. A missing ``.grad`` is created with the weight's ``grad_dtype``; weights that do not
        require a gradient count in the loss and get none. If a weight is computed, autograd passes its
        gradient on to the parameters that it is computed from. With ``reduction="none"`` the gradient is that
        of the sum.

        Call it once per optimiser step, not once per micro-batch: right before ``optimizer.step()``, after
        gradients were unscaled and clipped. (Clipping afterwards would clip this gradient as well.) Gradients
        that are still scaled by a ``GradScaler`` need ``scaler``.

        Args:
            scale: the factor of the loss, lambda in the paper.
            scaler: the ``GradScaler`` by which the gradients are scaled now; this gradient is scaled as well,
                which waits for the device once. None after ``scaler.unscale_(optimizer)``.

        Returns:
            The loss itself (not times ``scale``), as :meth:`forward` gives it, detached.

        Raises:
            TypeError: ``scale`` is no real number, or ``scaler`` no ``GradScaler``.
            ValueError: ``scaler`` has unscaled the gradients already.
            RuntimeError: gradients share memory.

        Example:
            >>> model = nn.Linear(8, 8)
            >>> loss = EnmeshmentLoss(model, 2)
            >>> value = loss.accumulate_grad_(0.7)
            >>> model.weight.grad.shape
            torch.Size([8, 8])
        """
        value: object = scale
        if not isinstance(value, (float, int, Real, Tensor)):  # usual types first: Real is slow to check
            raise TypeError(f"scale must be a real number, got {type(value).__name__}")
        factor = float(value)
        if scaler is not None:
            factor *= scale_of(scaler)
        if self.reduction == "mean":
            factor /= len(self._layers)
        if torch.compiler.is_compiling():
            with torch.inference_mode(False):
                return self._accumulate_all(factor)
        value_of_loss = self._accumulate_kept(factor)
        if value_of_loss is not None:
            return value_of_loss
        # A gradient made in inference mode cannot be changed outside it, and that of a computed weight cannot
        # be made there at all.
        with torch.inference_mode(False):
            return self._accumulate_all(factor)

    def _keep(self, stored: Sequence[Tensor]) -> KeptLayers | None:
        """Keep what the next calls can use again, given the tensors that hold all weights."""
        if not TAKES_PACKED or torch.compiler.is_compiling() or is_transformed():
            return None
        self._kept = KeptLayers.of(self._layers, self._partitions, stored)
        return self._kept

    def _accumulate_kept(self, factor: float) -> Tensor | None:
        """The pass over plain weights with what the calls before have kept; None if it does not serve now.

        It does what :meth:`_accumulate_all` does. For small weights most of the time of that is Python.
        """
        kept = self._kept
        if kept is None or self.reduction == "none" or torch.is_inference_mode_enabled():
            return None
        if not kept.is_of(self._layers, self._partitions):
            return None
        weights = kept.weights()
        if weights is None:
            return None
        recording = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # as no_grad does, whose object takes as long as the operator
        try:
            grads = [grad_of(weight) for weight in weights]
            mean = self.reduction == "mean"
            loss: Tensor = accumulate_packed_enmeshment_grad_(weights, grads, kept.labels, factor, mean)
            torch.autograd.graph.increment_version(grads)
            return loss
        finally:
            torch._C._set_grad_enabled(recording)

    def _accumulate_all(self, factor: float) -> Tensor:
        """One pass over all layers, and one by autograd over those whose weights are computed."""
        with torch.enable_grad():  # without it a computed weight would look frozen
            stored = [layer.stored() for layer in self._layers]
        self._keep(stored)
        losses = self._losses.accumulate(stored, factor)
        with torch.no_grad():
            return self._reduce(losses, stored)

    @torch.no_grad()
    def clusterability(self) -> dict[str, float]:
        """Each chosen layer's clusterability ``1 - E``, by name."""
        return {
            layer.name: float(clusterability(layer.weight(), partition))
            for layer, partition in zip(self._layers, self._partitions, strict=True)
        }

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"layers=[{listed(self._names)}], reduction={self.reduction!r}"

    def _repr_html_(self) -> str:
        rows = [
            [name or "(the model)", " x ".join(map(str, own.shape)), own.num_clusters]
            for name, own in self.partitions.items()
        ]
        title = f"EnmeshmentLoss: {self.reduction} of {len(rows)} layers"
        return html_table(title, ("layer", "out x in", "clusters"), rows)
