"""The curve of faithfulness that :func:`modfast.faithfulness_curve` measures, and its areas."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from modfast.display import html_table
from modfast.files import read_json, write_json
from modfast.network.ablation import ABLATIONS

_FORMAT = "modfast faithfulness curve 1"
_CURVES = ("sufficiency", "necessity")


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve:
    """A metric over numbers of units: with the best units alone, and without them.

    Two curves are equal if all attributes are.

    Attributes:
        sizes: int64, ``(s,)``, ascending: numbers of units.
        sufficiency: float64, ``(s,)``: the metric with so many of the best units; of the units that were
            asked for, all others are ablated.
        necessity: float64, ``(s,)``: the metric if so many of the best units are ablated.
        random_sufficiency: float64, ``(n_random, s)``: the same for random rankings.
        random_necessity: float64, ``(n_random, s)``.
        metric_before: the metric of the whole model.
        metric_none: the metric if all units that were asked for are ablated.
        num_asked: the number of units that were asked for.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``.
        num_examples: the number of examples.
        num_passes: how often these examples went through the model.
        seed: of the random rankings.

    Source of :attr:`faithfulness`, :attr:`cpr` and :attr:`cmd`: "MIB: A Mechanistic Interpretability
    Benchmark" (arXiv 2504.13151) and its public code. There the circuits are of edges or nodes, sizes are
    rounded down, and the areas begin at the share 0.001. Here sizes are rounded up, the share on the axis is
    that of the whole number of units, and the areas begin at 0, where faithfulness is 0 by definition. The
    triangle that this adds has at most 0.0005 times the faithfulness at the first share.
    """

    sizes: Tensor
    sufficiency: Tensor
    necessity: Tensor
    random_sufficiency: Tensor
    random_necessity: Tensor
    metric_before: float
    metric_none: float
    num_asked: int
    ablation: str
    num_examples: int
    num_passes: int
    seed: int

    def __post_init__(self) -> None:
        dims = {"sizes": 1, **dict.fromkeys(_CURVES, 1), **{f"random_{each}": 2 for each in _CURVES}}
        for name, dim in dims.items():
            tensor, dtype = getattr(self, name), torch.int64 if name == "sizes" else torch.float64
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name} must be a tensor of {dtype}, got {got}")
            if tensor.dim() != dim or tensor.shape[-1] != self.sizes.shape[0]:
                shape, size = "(s,)" if dim == 1 else "(n_random, s)", self.sizes.numel()
                raise ValueError(
                    f"{name} must have shape {shape} for {size} sizes, got {tuple(tensor.shape)}"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity in it")
            # Copies, so that the caller may change the given tensors.
            object.__setattr__(self, name, tensor.detach().to("cpu", copy=True))
        if len(self.random_sufficiency) != len(self.random_necessity):
            raise ValueError(
                "random_sufficiency and random_necessity must be of as many rankings, got "
                f"{len(self.random_sufficiency)} and {len(self.random_necessity)}"
            )
        convert: dict[str, Callable[[Any], Any]] = {
            "metric_before": float,
            "metric_none": float,
            "num_asked": operator.index,
            "num_examples": operator.index,
            "num_passes": operator.index,
            "seed": operator.index,
        }
        for name, to_number in convert.items():
            object.__setattr__(self, name, to_number(getattr(self, name)))
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.ablation not in ABLATIONS:
            raise ValueError(f"ablation must be one of {ABLATIONS}, got {self.ablation!r}")
        ordered = bool((self.sizes.diff() > 0).all()) and self.sizes.numel() > 0
        if not ordered or int(self.sizes[0]) < 0 or int(self.sizes[-1]) > self.num_asked:
            raise ValueError(f"sizes must ascend within [0, {self.num_asked}], got {self.sizes.tolist()}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FaithfulnessCurve):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.metric_before, self.metric_none, self.num_asked, self.ablation, self.seed))

    def __repr__(self) -> str:
        lines = [
            f"FaithfulnessCurve({len(self.sizes)} sizes of {self.num_asked} units, {self.ablation} ablation)",
            f"  metric: {self.metric_before:.4g} before, {self.metric_none:.4g} with all units ablated",
        ]
        if math.isnan(self.cpr):
            lines.append("  faithfulness: none, since ablating all units does not change the metric")
            return "\n".join(lines)
        for name, value, others in (
            ("CPR", self.cpr, self.random_cpr),
            ("CMD", self.cmd, self.random_cmd),
        ):
            beside = f"; random rankings: {_range(others)}" if len(others) else ""
            lines.append(f"  {name}: {value:.3f}{beside}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        random = [
            each.mean(0).tolist() if len(each) else [None] * len(self.sizes)
            for each in (self.random_sufficiency, self.random_necessity)
        ]
        columns = [
            self.sizes.tolist(),
            self.sufficiency.tolist(),
            random[0],
            self.necessity.tolist(),
            random[1],
        ]
        return html_table(
            " ".join(repr(self).split()),
            ("units", "with these alone", "random, mean", "without these", "random, mean"),
            zip(*columns, strict=True),
        )

    @property
    def shares(self) -> Tensor:
        """float64, ``(s,)``: the sizes as shares of the units that were asked for."""
        return self.sizes.double() / self.num_asked

    @property
    def faithfulness(self) -> Tensor:
        """float64, ``(s,)``: the share of the effect of all units that the best ones have alone.

        ``(sufficiency - metric_none) / (metric_before - metric_none)``: 0 for no unit, 1 for all; it may be
        below and above. NaN if ablating all units does not change the metric: there is no effect to share.
        """
        return self._faithfulness(self.sufficiency)

    @property
    def random_faithfulness(self) -> Tensor:
        """float64, ``(n_random, s)``: the same for random rankings."""
        return self._faithfulness(self.random_sufficiency)

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: the area under faithfulness, over the share of units from 0 to 1.

        The higher, the better: it rewards units that raise the metric. By trapezoids between the sizes; to
        these are added 0 units, with faithfulness 0, and all units, with 1. NaN as :attr:`faithfulness`.
        """
        return float(self._area(self.faithfulness[None]))

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: the area between faithfulness and 1, over the share of units.

        The lower, the better: it rewards circuits that do as the model does, and a circuit that does better
        than the model is as far off as one that does worse. Trapezoids of ``|1 - faithfulness|``, as for
        :attr:`cpr`.
        """
        return float(self._area(self.faithfulness[None], distance=True))

    @property
    def random_cpr(self) -> Tensor:
        """float64, ``(n_random,)``: :attr:`cpr` of the random rankings."""
        return self._area(self.random_faithfulness)

    @property
    def random_cmd(self) -> Tensor:
        """float64, ``(n_random,)``: :attr:`cmd` of the random rankings."""
        return self._area(self.random_faithfulness, distance=True)

    def _faithfulness(self, metric: Tensor) -> Tensor:
        effect = self.metric_before - self.metric_none
        return (metric - self.metric_none) / (effect if effect != 0 else math.nan)

    def _area(self, faithfulness: Tensor, distance: bool = False) -> Tensor:
        """The area under each row, or that between it and 1."""
        ends = faithfulness.new_tensor([0.0, 1.0]).expand(len(faithfulness), 2)
        # A size of 0, or of all, has these values anyhow: a second point in its place adds no area.
        heights = torch.cat([ends[:, :1], faithfulness, ends[:, 1:]], dim=1)
        if distance:
            heights = (1 - heights).abs()
        shares = torch.cat([self.shares.new_zeros(1), self.shares, self.shares.new_ones(1)])
        return torch.trapezoid(heights, shares, dim=1)

    def as_dict(self) -> dict[str, Any]:
        """All attributes as numbers, texts and lists, such as JSON holds."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a JSON file, whole or not at all; it is replaced if it exists.

        Example:
            >>> import tempfile
            >>> metric, none = torch.tensor([0.0, 1.0]).double(), torch.zeros(0, 2).double()
            >>> curve = FaithfulnessCurve(
            ...     torch.tensor([1, 2]), metric, 1 - metric, none, none, 1.0, 0.0, 2, "zero", 10, 4, 0
            ... )
            >>> curve.save(os.path.join(tempfile.mkdtemp(), "curve.json"))
            >>> curve.cpr, curve.cmd
            (0.25, 0.75)
        """
        write_json(path, {"format": _FORMAT, **self.as_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FaithfulnessCurve:
        """Load what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is damaged, or holds no curve.
        """
        held = read_json(path)
        if not isinstance(held, Mapping) or held.get("format") != _FORMAT:
            raise ValueError(f"path: {os.fspath(path)!r} holds no faithfulness curve")
        try:
            return cls(**{each.name: _tensor(each.name, held[each.name], held) for each in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: {os.fspath(path)!r} is damaged ({error})") from error


def _tensor(name: str, value: Any, held: Mapping[str, Any]) -> Any:
    if not isinstance(value, list):
        return value
    dtype = torch.int64 if name == "sizes" else torch.float64
    shape = (-1, len(held["sizes"])) if name.startswith("random") else (-1,)
    return torch.tensor(value, dtype=dtype, device="cpu").reshape(shape)


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3f} to {float(values.max()):.3f}"
