"""Follows a model's computation on an example, and notes which units of its weights are the same.

Every value of the computation carries *marks*: for each of its numbers the row or column of a weight from
which its unit comes. Rules (:mod:`modfast.network.rules`) say what an operator does with marks. Where two
marks meet, in a sum, a product, or because a layer reads what another one writes, their units are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

# No unit: of a number that no weight has made, or that mixes several units (a mean over all of them).
NONE, MIXED = -1, -2

# A number may lie in two spaces at once: a channel of an image, and a place of it. Each has its own marks.
SPACES = 2

Marks: TypeAlias = Tensor
"""``(SPACES, *shape of the value)``, int64: a mark for each number, ``NONE`` or ``MIXED``."""


class CannotFollowError(ValueError):
    """A model's computation cannot be followed; the message names module and operator."""


@dataclass(frozen=True)
class Weight:
    """A parameter as an operator sees it: with its dimensions in another order, perhaps.

    Attributes:
        name: of the parameter.
        order: the parameter's dimension that each dimension of the value is.
    """

    name: str
    order: tuple[int, ...]


Value: TypeAlias = Marks | Weight | None
"""What is known of a tensor: its marks; that it is a parameter; or that it has no units."""


class Units:
    """Marks of the rows and columns of weights, and which of them are the same unit."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[np.ndarray[Any, Any]] = []

    def new(self, number: int) -> Tensor:
        """Return marks that no other has, ``(number,)``."""
        marks = torch.arange(self.count, self.count + number, device="cpu")
        self.count += number
        return marks

    def join(self, one: Tensor, other: Tensor) -> None:
        """Note that marks at the same places, broadcast against each other, are the same unit."""
        one, other = torch.broadcast_tensors(one, other)
        both = (one >= 0) & (other >= 0) & (one != other)
        if not bool(both.any()):
            return
        pairs = torch.stack([one[both], other[both]])
        self._pairs.append(torch.unique(pairs, dim=1).numpy())

    def join_all(self, marks: Tensor) -> Tensor:
        """Note that all marks of each row, ``(n, m)``, are one unit; return a mark for each, ``(n,)``."""
        some = marks.amax(1)
        self.join(some[:, None], marks)
        return some

    def numbers(self) -> Tensor:
        """Return the unit of each mark; units are numbered in the order of their first mark."""
        pairs = np.concatenate(self._pairs, axis=1) if self._pairs else np.empty((2, 0), dtype=np.int64)
        # The first of each component stands for it, so that the sorted ones are in order.
        _, units = np.unique(components(self.count, pairs), return_inverse=True)
        return torch.from_numpy(units)


def components(count: int, pairs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each of ``count`` things the least one that pairs, ``(2, n)``, connect it with."""
    least = np.arange(count)
    while True:
        one, other = least[pairs[0]], least[pairs[1]]
        apart = one != other
        if not apart.any():
            return least
        one, other = one[apart], other[apart]
        np.minimum.at(least, np.maximum(one, other), np.minimum(one, other))
        while (least[least] != least).any():
            least = least[least]


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm in evaluation mode, which multiplies the rows of the weight before it.

    Attributes:
        weight: the name of the parameter that it multiplies by; None if it has none.
        variance: the name of the buffer with its running variance; None if it keeps none.
        eps: what is added to the variance.
    """

    weight: str | None
    variance: str | None
    eps: float

    def scale(self, model: nn.Module, like: Tensor) -> Tensor:
        """Return the magnitude of the factor of each row of ``like``, a matrix, as the model has it now."""

        def value(name: str) -> Tensor:
            module, _, attribute = name.rpartition(".")
            tensor: Tensor = getattr(model.get_submodule(module), attribute)
            return tensor.detach().to(like)

        scale = like.new_ones(len(like)) if self.weight is None else value(self.weight).abs()
        return scale if self.variance is None else scale / (value(self.variance) + self.eps).sqrt()


@dataclass
class Use:
    """How a weight was used: the marks of its outputs and of its inputs.

    Attributes:
        kind: "linear", "convolution" or "embedding".
        out, into: the marks of the weight's outputs, and of its inputs.
        out_dim, in_dim: the dimensions of the parameter that these are.
    """

    kind: str
    out: Tensor
    into: Tensor
    out_dim: int
    in_dim: int
    groups: int = 1
    read: frozenset[int] = frozenset()  # the marks that were read, before they were joined
    counts: bool = False  # an embedding whose rows are looked up in turn: those of positions
    # For each time that it was used, what multiplies its outputs before anything else reads them.
    norms: list[tuple[BatchNorm, ...]] = field(default_factory=list)


# Of an attention: its factors, and what comes out of it. "curved": what a nonlinearity has taken.
PARTS = ("query", "key", "value", "attended", "curved")

Rule: TypeAlias = "Callable[[Follower, fx.Node, list[Any], dict[str, Any], Any], Any]"


class Follower(fx.Interpreter):
    """Runs an exported program on its example, and carries marks beside the numbers.

    Args:
        program: what ``torch.export`` made of the model.
        names: for each placeholder of the graph the parameter that it is, if it is one.
        sizes: the shape of each parameter.
        rules: what each operator does with marks.
    """

    def __init__(
        self,
        program: fx.GraphModule,
        names: dict[str, str],
        sizes: dict[str, tuple[int, ...]],
        rules: dict[Any, Rule],
    ) -> None:
        super().__init__(program)
        self.names, self.sizes, self.rules = names, sizes, rules
        self.units = Units()
        self.values: dict[fx.Node, Any] = {}
        self.uses: dict[str, Use] = {}  # by parameter, in the order of their first use
        # For roles: marks by what they were part of, as "query" of an attention, or that a nonlinearity took.
        self.inputs: set[str] = set()  # the placeholders of what the caller gives
        self.held: dict[str, str] = {}  # the names of parameters and buffers, by their placeholders
        self.fed: set[fx.Node] = set()  # what depends on that
        # What one weight has written, and nothing else has read: the weight, and which of its uses it was.
        self.sole: dict[fx.Node, tuple[str, int]] = {}
        self.scores: set[int] = set()  # marks of products of queries with keys
        self.parts: dict[str, set[int]] = {part: set() for part in PARTS}

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation, and note what is known of its result."""
        result = super().run_node(n)
        given = n.op == "placeholder" and str(n.target) in self.inputs
        if given or any(each in self.fed for each in n.all_input_nodes):
            self.fed.add(n)
        if n.op == "placeholder":
            name = self.names.get(str(n.target))
            is_weight = name is not None and isinstance(result, Tensor) and result.dim() >= 2
            self.values[n] = Weight(name, tuple(range(result.dim()))) if is_weight and name else None
        elif n.op == "call_function":
            self.values[n] = self.follow(n, result)
            self._note_sole(n)
        elif n.op not in ("output", "get_attr"):
            raise CannotFollowError(f"{place_of(n)}: an operation of kind {n.op!r} cannot be followed")
        return result

    def follow(self, node: fx.Node, result: Any) -> Any:
        """Return what is known of the result of an operator."""
        if node.target is operator.getitem:
            values, place = self.value(node.args[0]), self.number(node.args[1])
            return values[place] if isinstance(values, (list, tuple)) else None
        given = [self.value(each) for each in node.args]
        named = {key: self.value(each) for key, each in node.kwargs.items()}
        if not any(holds_units(each) for each in (*given, *named.values())):
            return None
        rule = self.rules.get(node.target) or self.rules.get(getattr(node.target, "overloadpacket", None))
        if rule is None:
            raise CannotFollowError(f"{place_of(node)}: there is no rule for the operator {node.target}")
        return rule(self, node, given, named, result)

    def _note_sole(self, node: fx.Node) -> None:
        """Note whether a value is what one weight has written, and the batch norms that multiply it."""
        sources = [each for each in node.all_input_nodes if holds_units(self.values.get(each))]
        weights = [self.values[each].name for each in sources if isinstance(self.values[each], Weight)]
        others = [each for each in sources if not isinstance(self.values[each], Weight)]
        if isinstance(self.values[node], Weight):
            return
        if len(weights) == 1 and weights[0] in self.uses:
            norms = self.uses[weights[0]].norms
            self.sole[node] = weights[0], len(norms)
            norms.append(())
        elif len(others) == 1 and len(others[0].users) == 1 and others[0] in self.sole:
            self.sole[node] = self.sole[others[0]]
            if node.target in BATCH_NORMS:
                self._note_norm(node, others[0])

    def _note_norm(self, node: fx.Node, source: fx.Node) -> None:
        name, time = self.sole[node]
        use, marks = self.uses[name], self.values[source][0]
        channels = marks.movedim(1, 0).flatten(1) if marks.dim() > 1 else marks[:, None]
        if channels.shape[0] != len(use.out) or not bool((channels == use.out[:, None]).all()):
            return  # it multiplies other numbers than the rows: several places of a flattened channel
        arguments = {"weight": node.args[1], "variance": node.args[4] if len(node.args) > 6 else None}
        names: dict[str, str | None] = {}
        for kind, argument in arguments.items():
            names[kind] = (
                self.held.get(str(getattr(argument, "target", None))) if argument is not None else None
            )
            if argument is not None and names[kind] is None:
                raise self.fail(node, f"has a {kind} that is computed, so that its scale is not known")
        eps = float(node.args[BATCH_NORMS[node.target]])  # type: ignore[arg-type]
        use.norms[time] += (BatchNorm(names["weight"], names["variance"], eps),)

    def value(self, argument: Any) -> Any:
        """What is known of an argument of an operator; lists keep their form."""
        if isinstance(argument, fx.Node):
            return self.values.get(argument)
        if isinstance(argument, (list, tuple)):
            return [self.value(each) for each in argument]
        return None

    def number(self, argument: Any) -> Any:
        """The present value of an argument: a tensor, a number, or a list of them."""
        return fx.node.map_arg(argument, lambda node: self.env[node])

    def numbers(self, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """All arguments of an operator, as it was called."""
        return [self.number(each) for each in node.args], {
            key: self.number(each) for key, each in node.kwargs.items()
        }

    def marks(self, value: Value, like: Tensor) -> Marks:
        """The marks of a value, for a tensor of its shape; a parameter that is a summand has none."""
        if isinstance(value, Tensor):
            return value
        return torch.full((SPACES, *like.shape), NONE, device="cpu")

    def note(self, part: str, value: Any) -> None:
        """Note that the marks of a value are part of something that decides the role of a weight."""
        if isinstance(value, Tensor):
            self.parts[part].update(value[value >= 0].unique().tolist())

    def fail(self, node: fx.Node, why: str) -> CannotFollowError:
        """Return the error that names the place and the operator."""
        return CannotFollowError(f"{place_of(node)}: {node.target}: {why}")


BATCH_NORMS: dict[Any, int] = {
    torch.ops.aten.batch_norm.default: 7,
    torch.ops.aten._native_batch_norm_legit_no_training.default: 6,
    torch.ops.aten._native_batch_norm_legit.default: 7,
    torch.ops.aten._native_batch_norm_legit.no_stats: 5,
}
"""Batch norms, and the place of ``eps`` among their arguments."""


def holds_units(value: Any) -> bool:
    """Return whether anything is known of a value, or of one in a list."""
    if isinstance(value, (list, tuple)):
        return any(map(holds_units, value))
    return value is not None


def place_of(node: fx.Node) -> str:
    """Return where in the model an operator is: the name of its module."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the model"
    path, kind = stack[-1]
    path = path.removeprefix("model").removeprefix(".")  # what is exported calls the model
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    kind = kind.rsplit(".", 1)[-1]
    return f"module {path!r} ({kind})" if path else f"the model ({kind})"
