"""AdamW in one pass over the weights, with the enmeshment loss's gradient and top-k sparsity inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modfast.arguments import Number
from modfast.energy.loss import EnmeshmentLoss

from .call import Step
from .checks import check_loaded, check_options, check_parameter
from .keep import Keep, KeepChoices, check_keep
from .plan import Plan
from .state import is_rehearsal, loaded_state, rehearsed_states

_WEIGHT = Number(0, included=True)

# A repr has at most ten lines.
_MOST_GROUPS = 5


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, with the gradient of an enmeshment loss and weight sparsity in its one pass.

    Each weight, its gradient and its moments are read and written once, by one call for all parameters of a
    group. In that pass the gradient of ``enmeshment_weight * enmeshment()`` is added, the energies of the
    new weight are summed for the next step, and, with ``keep``, all but the largest magnitudes of each
    matrix become 0. There is no backward pass of the loss and no other pass over the weights.

    When to use which: this optimiser in training loops of your own. ``torch.optim.AdamW`` with
    ``enmeshment.accumulate_grad_(0.7)`` before each step, if gradients are clipped together with that of the
    loss, or changed by other means between the two; any other optimiser likewise. Both give the same weights
    up to rounding. The gradients in ``.grad`` never hold that of the loss here, but for computed weights.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups with options of their own, as in
            ``torch.optim``. Float32, float64, float16 or bfloat16, of any shape, layout and device;
            ``DTensor`` (FSDP2, tensor parallelism) as well. Frozen parameters of other types are skipped.
        lr: the learning rate, a number or a tensor of one element.
        betas: the decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: as a share of the learning rate.
        enmeshment: the loss. Its weights must be in ``params``, unless they are frozen: these count in the
            value and get nothing. A computed weight (parametrised, LoRA) passes its gradient on by autograd.
        enmeshment_weight: the factor of the loss, a finite number of at least 0; an attribute that may be
            changed between steps. With ``reduction="none"`` the gradient is that of the sum. Unless it is
            0, a weight of the loss without a gradient takes a step with that of the loss alone; other
            parameters without one are skipped.
        keep: the share of each matrix that stays non-zero after a step, in (0, 1]: of n elements
            ``ceil(keep * n)``, in exact decimal arithmetic, those of the largest magnitudes; of equal ones
            the first in memory, and NaN before all. Or a function that returns it for a step's number (1 for
            a parameter's first), which on a GPU waits for the device. An attribute that may be changed.
            Moments of weights that became 0 live on, so that these may come back.
        keep_layers: which matrices: names, globs or functions of layers of the loss; modules, for the linear
            layers in them (a model: all of its), or themselves if they are a layer, such as a convolution;
            parameters. By default the layers of the loss. Without a loss every parameter of two dimensions:
            tensors do not know what they are used for, so give the model if it has embeddings. Parameters
            that come with names raise where a name is an embedding's. Frozen ones are left alone. An
            attribute that may be changed.
        stochastic_rounding: round bfloat16 weights up or down at random, with the probabilities that keep
            their mean, not to the nearest. The same run has the same bits.
        amsgrad, maximize, differentiable: must be False.
        foreach: must not be True.
        fused: must not be False.
        capturable: accepted. No step waits for a GPU, except for ``keep`` as a function and for a learning
            rate on another device than the weights, so that CUDA graphs can capture steps, after one step
            outside. A graph repeats ``enmeshment_weight``, ``keep`` and a learning rate that is no tensor on
            the GPU as they were, and does not notice weights that others changed between replays: read
            ``enmeshment_value`` then. After ``load_state_dict`` or new partitions capture anew.

    Raises:
        TypeError: ``enmeshment`` is no ``EnmeshmentLoss``, a parameter is complex or of integers, a choice of
            layers is of another kind, or a matrix to keep sparse is spread over processes, whose largest
            magnitudes no process knows.
        ValueError: a number is out of range; a trained weight of the loss or of ``keep_layers`` is in no
            group; a matrix to keep sparse is computed, or may be a stack or a kernel; a name is an
            embedding's; options that a step does not have; see :meth:`step` and :meth:`load_state_dict` too.

    State, ``state_dict()`` and parameter groups are those of ``torch.optim.AdamW``, and can be loaded by
    either: ``step`` (float32, on the parameter's device), ``exp_avg`` and ``exp_avg_sq`` (float64 for
    float64 parameters, else float32: half types too). Learning-rate schedulers, hooks, ``GradScaler`` and
    ``torch.distributed.checkpoint`` work as with any optimiser; the step by which the latter makes an empty
    state (the first one, all gradients of trained parameters 0, the learning rates of all groups set to 0,
    which the constructor's is not) changes no weight: it neither adds the loss nor masks.

    A gradient of float64 for a weight of another type, and the reverse, is cast before its step. A pickled
    optimiser keeps a loss without a model: ``optimizer.enmeshment.attach(model)``. ``torch.compile`` runs a
    step as it is.

    Between steps the energies hold as long as a weight's memory and version (``Tensor._version``) do. One
    that others changed (in place, by ``load_state_dict``, ``.data = ...``, ``.to``, by another optimiser,
    fused or not), and new partitions, cost one pass. In-place changes of ``weight.data``, or of the weight's
    storage, are not counted by PyTorch and not noticed: change the weight itself, within
    ``torch.no_grad()``.

    Source: AdamW is arXiv 1711.05101, enmeshment arXiv 2409.15747; sparsity by the largest magnitudes after
    each step is arXiv 2511.13653.

    Example:
        >>> from torch import nn
        >>> from modfast import EnmeshmentLoss
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> loss = EnmeshmentLoss(model, 4, layers=["0"])
        >>> optimizer = AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=0.7, keep=0.5)
        >>> nn.functional.cross_entropy(model(torch.randn(2, 8)), torch.tensor([0, 3])).backward()
        >>> optimizer.step()
        >>> torch.allclose(optimizer.enmeshment_value, loss())
        True
        >>> int(model[0].weight.count_nonzero())
        32
    """

    # GradScaler hands its scale and what it found to optimisers with this mark.
    _step_supports_amp_scaling = True
    # Unlike PyTorch's fused optimisers: see modfast/optim/terms.py.
    _counts_its_changes = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        enmeshment: EnmeshmentLoss | None = None,
        enmeshment_weight: float = 0.0,
        keep: Keep | None = None,
        keep_layers: KeepChoices | None = None,
        stochastic_rounding: bool = False,
        amsgrad: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_options(
            {
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            }
        )
        if not isinstance(stochastic_rounding, bool):
            raise TypeError(
                f"stochastic_rounding must be True or False, got {type(stochastic_rounding).__name__}"
            )
        self.enmeshment = enmeshment
        self.enmeshment_weight = enmeshment_weight
        self.keep = keep
        if keep is None and keep_layers is not None:
            raise ValueError("keep_layers needs keep, the share of weights that stay in these layers")
        self.stochastic_rounding = stochastic_rounding
        self._plan: Plan | None = None
        self.keep_layers = keep_layers
        self._loaded: dict[str, Any] | None = None
        self._recorded: list[Any] = []  # memory of CUDA graphs, which may outlive a plan
        super().__init__(
            params, lr, betas, eps, weight_decay, False, capturable=capturable, foreach=None, fused=True
        )
        self._is_constructed = True
        self._planned()

    def __repr__(self) -> str:
        # PyTorch's own has a dozen lines for each group.
        tensors = [parameter for group in self.param_groups for parameter in group["params"]]
        lines = [
            f"AdamW({len(tensors):,} tensors of {sum(map(Tensor.numel, tensors)):,} numbers, "
            f"{len(self.param_groups)} groups)"
        ]
        for group in self.param_groups[:_MOST_GROUPS]:
            options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            written = ", ".join(f"{name}={value}" for name, value in options.items())
            lines.append(f"  {len(group['params']):,} tensors: {written}")
        if len(self.param_groups) > _MOST_GROUPS:
            lines.append(f"  ... and {len(self.param_groups) - _MOST_GROUPS} more groups")
        if self.enmeshment is not None:
            lines.append(
                f"  enmeshment of {len(self.enmeshment.partitions)} layers, times {self.enmeshment_weight:g}"
            )
        if self.keep is not None:
            lines.append(f"  keep={self.keep if isinstance(self.keep, Real) else 'a function of the step'}")
        return "\n".join(lines)

    @property
    def enmeshment(self) -> EnmeshmentLoss | None:
        """The loss; it may be changed between steps.

        Raises:
            TypeError: it is set to something else than a loss or None.
        """
        return self._enmeshment

    @enmeshment.setter
    def enmeshment(self, loss: EnmeshmentLoss | None) -> None:
        if loss is not None and not isinstance(loss, EnmeshmentLoss):
            raise TypeError(f"enmeshment must be a modfast.EnmeshmentLoss or None, got {type(loss).__name__}")
        self._enmeshment = loss

    @property
    def enmeshment_weight(self) -> float:
        """The factor of the loss; it may be changed between steps.

        Raises:
            ValueError: it is set to no finite number of at least 0, or there is no loss.
        """
        return self._enmeshment_weight

    @enmeshment_weight.setter
    def enmeshment_weight(self, weight: float) -> None:
        if weight not in _WEIGHT:
            raise ValueError(f"enmeshment_weight must be {_WEIGHT}, got {weight!r}")
        if weight and self.enmeshment is None:
            raise ValueError(f"enmeshment_weight needs enmeshment, the loss that it weights, got {weight!r}")
        self._enmeshment_weight = float(weight)

    @property
    def keep(self) -> Keep | None:
        """Which share of each matrix stays non-zero; it may be changed between steps.

        Raises:
            ValueError, TypeError: it is set to no number in (0, 1], no function and not None.
        """
        return self._keep

    @keep.setter
    def keep(self, keep: Keep | None) -> None:
        check_keep(keep)
        self._keep = keep

    @property
    def keep_layers(self) -> KeepChoices | None:
        """Which matrices keep only their largest weights; it may be changed, and holds from the next step."""
        return self._keep_layers

    @keep_layers.setter
    def keep_layers(self, choices: KeepChoices | None) -> None:
        self._keep_layers = list(choices) if isinstance(choices, Iterator) else choices
        self._plan = None

    @property
    def enmeshment_value(self) -> Tensor | None:
        """The loss of the weights as they are now, detached, as ``enmeshment()`` gives it.

        It costs no pass over weights that only steps have changed; those that others changed, frozen and
        computed ones cost one. None if there is no loss.
        """
        loss = self.enmeshment
        if loss is None:
            return None
        with torch.no_grad():
            plan = self._plan
            if plan is None or not plan.has_layers_of(loss):
                plan = self._plan = Plan(self.param_groups, loss, self._keep is not None, self._keep_layers)
            losses, stored = plan.losses(loss)
            return loss._reduce(losses, stored)

    def _planned(self) -> Plan:
        """The plan of the next step.

        Raises:
            ValueError, TypeError: the parameters do not fit the loss, or what is to be kept sparse.
        """
        plan, is_kept = self._plan, self._keep is not None
        if plan is None or not plan.is_for(self.param_groups, self.enmeshment, is_kept):
            plan = Plan(self.param_groups, self.enmeshment, is_kept, self._keep_layers)
            self._plan = plan
        if not plan.is_checked:
            plan.check()
        return plan

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError, TypeError: an option or a parameter does not fit; the groups stay as they were.
        """
        super().add_param_group(param_group)
        try:
            number = len(self.param_groups) - 1
            group = self.param_groups[number]
            check_options(group, f" in parameter group {number}")
            for place, parameter in enumerate(group["params"]):
                check_parameter(parameter, f"parameter {place} of group {number}")
            if "_is_constructed" in self.__dict__:
                self._planned()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch.optim.Optimizer does; imports no compiler
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: computes the model's loss anew, with gradients, and returns it.

        Returns:
            What the closure returns; None without one.

        Raises:
            ValueError: a gradient is sparse, or not spread over processes as its parameter is; a weight to
                keep sparse has rows that do not follow one another in memory; a weight of the loss is
                trained, and no parameter group has it.
            RuntimeError: parameters share memory, or the loss was pickled and not attached to a model since;
                or a CUDA graph is captured, and a parameter has made no step yet, or ``keep`` is a function.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if torch.is_inference_mode_enabled():
            # What is made in inference mode could not be used outside it.
            with torch.inference_mode(False), torch.no_grad():
                self._step()
        else:
            self._step()
        return result

    def _step(self) -> None:
        plan = self._planned()
        if not self.state and is_rehearsal(self.param_groups, self.defaults["lr"]):
            self.state.update(rehearsed_states(self.param_groups))
            return
        loss, slope = self.enmeshment, 0.0
        if loss is not None:
            slope = self._enmeshment_weight
            if loss.reduction == "mean":
                slope /= len(loss._layers)
        step = Step(
            slope,
            self._keep,
            self.stochastic_rounding,
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
        )
        if plan.layers is not None and slope != 0.0:
            plan.layers.accumulate_computed(slope, step.grad_scale)
        plan.look_at_states(self.state)
        for terms in plan.calls:
            group = self.param_groups[terms.number]
            check_options(group, f" in parameter group {terms.number}")
            step.update(terms, group, self.state)
        if step.exchanged:
            step.exchange()
        plan.remember_states(self.state)
        self._recorded += step.recorded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this or of ``torch.optim.AdamW``, fused or not, into memory of its own.

        Moments stay float32 (float64 for float64 parameters), whatever the parameters' type.

        Args:
            state_dict: from ``state_dict()`` of either.

        Raises:
            ValueError: it has ``amsgrad``, ``maximize`` or ``differentiable`` set, tensors of another
                optimiser, or a moment of another shape; nothing has changed then.
        """
        given: dict[str, Any] = {}

        def look(_: Any, loaded: dict[str, Any]) -> None:
            check_loaded(loaded, self.param_groups)
            given.update(loaded)

        # The last of the hooks: it sees what those of others made of the state.
        handle = self.register_load_state_dict_pre_hook(look)
        self._loaded = given
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loaded = None

    def __getstate__(self) -> dict[str, Any]:
        names = ("_enmeshment", "_enmeshment_weight", "_keep", "_keep_layers", "stochastic_rounding")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        self._recorded = self.__dict__.get("_recorded", [])
        self._is_constructed = True
        loaded = self.__dict__.get("_loaded")
        for number, group in enumerate(self.param_groups):
            # Those of an optimiser that was not fused.
            group["fused"], group["foreach"] = True, None
            if loaded is None:
                continue
            keys = loaded["param_groups"][number]["params"]
            for key, parameter in zip(keys, group["params"], strict=True):
                # PyTorch has cast the moments to the parameter's type, from which float32 does not come back.
                if values := loaded["state"].get(key):
                    self.state[parameter] = loaded_state(parameter, values)
