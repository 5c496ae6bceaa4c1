"""Follows a model's computation on an example, and notes which units of its weights are the same.

Every value of the computation carries *marks*: for each of its numbers the row or column of a weight from
which its unit comes. Rules (:mod:`modfast.network.rules`) say what an operator does with marks. Where two
marks meet, in a sum, a product, or because a layer reads what another one writes, their units are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from .batch_norms import BATCH_NORMS, BatchNorm
from .marks import (
    NONE,
    SPACES,
    Marks,
    Routed,
    Sources,
    Units,
    Value,
    Weight,
    as_stored,
    is_all,
    thin,
    unknown,
    varies,
)
from .spread import Spread


class CannotFollowError(ValueError):
    """A model's computation cannot be followed; the message names module and operator."""


class Matrix(NamedTuple):
    """A weight by its parameter and, if that is a stack of matrices, its place there."""

    parameter: str
    place: int | None = None


@dataclass
class Use:
    """How a weight was used: the marks of its outputs and of its inputs.

    Attributes:
        kind: "linear", "convolution" or "embedding".
        out, into: the marks of the weight's outputs, and of its inputs.
        out_dim, in_dim: the dimensions of the parameter that these are.
        groups: the number of groups of a convolution.
        read: the marks that were read, before they were joined.
        counts: whether it is a table of positions: what is looked up does not depend on the input.
        routed: whether the input chooses this matrix among others.
        norms: for each time that it was used, the batch norms that multiply its outputs before anything else
            reads them.
        within: whether it reads what such a matrix has written.
        contracted: the dimensions of the parameter along which it reads: of a weight that is used again
            transposed, both.
    """

    kind: str
    out: Tensor
    into: Tensor
    out_dim: int
    in_dim: int
    groups: int = 1
    read: frozenset[int] = frozenset()
    counts: bool = False
    routed: bool = False
    norms: list[tuple[BatchNorm, ...]] = field(default_factory=list)
    within: bool = False
    contracted: set[int] = field(default_factory=set)


# Of an attention: its factors, and what comes out of it. "curved": what a nonlinearity has taken; "picked":
# among which the greatest were chosen.
PARTS = ("query", "key", "value", "attended", "curved", "picked")

# Whether a number is so: positions that are counted from them do not depend on what the input is.
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "ones_like", "zeros_like", "new_ones", "new_zeros"}

_RECURRENT = ("lstm", "gru", "rnn", "quantized_lstm", "quantized_gru", "_thnn")


@dataclass(frozen=True)
class Call:
    """An operator as it is called.

    Attributes:
        node: the operation of the graph.
        name: the operator's, without ``aten::``.
        given: what is known of its positional arguments; lists keep their form.
        named: the same of those by keyword.
        arguments, options: the present values of both.
        result: what it returned.
    """

    node: fx.Node
    name: str
    given: list[Any]
    named: dict[str, Any]
    arguments: list[Any]
    options: dict[str, Any]
    result: Any

    def option(self, name: str, default: Any = None) -> Any:
        """The present value of the argument with this name, however it was passed."""
        target: Any = self.node.target
        for place, argument in enumerate(target._schema.arguments):
            if argument.name == name and place < len(self.arguments):
                return self.arguments[place]
        return self.options.get(name, default)

    def known(self, name: str) -> Any:
        """What is known of the argument with this name, however it was passed."""
        return replace(self, arguments=self.given, options=self.named).option(name)

    def fail(self, why: str) -> CannotFollowError:
        """Return the error that names the place and the operator."""
        return CannotFollowError(f"{place_of(self.node)}: {self.node.target}: {why}")


Rule: TypeAlias = "Callable[[Follower, Call], Any]"


@dataclass(frozen=True)
class Entry:
    """A rule, and whether it treats each number by itself, so that experts' numbers stay apart."""

    rule: Rule
    by_itself: bool


@dataclass(frozen=True)
class Inputs:
    """What the placeholders of a program are.

    Attributes:
        parameters: for each placeholder that is a parameter, the parameter's name.
        given: the placeholders of what the caller gives.
        sizes: the shape of each parameter.
        stacks: the parameters that are stacks of matrices.
        names: for each placeholder that is a parameter or buffer, its name in the model.
    """

    parameters: dict[str, str]
    given: frozenset[str]
    sizes: dict[str, tuple[int, ...]]
    stacks: frozenset[str]
    names: dict[str, str]


@dataclass
class Found:
    """What a run found out."""

    units: Units = field(default_factory=Units)
    uses: dict[Matrix, Use] = field(default_factory=dict)  # in the order of their first use
    parts: dict[str, set[int]] = field(default_factory=lambda: {part: set() for part in PARTS})


class Follower(fx.Interpreter):
    """Runs an exported program on its example, and carries marks beside the numbers.

    Args:
        program: what ``torch.export`` made of the model.
        inputs: what its placeholders are.
        rules: what each operator does with marks, by name.
        sources: what earlier runs found out about tensors that no weight has made.
    """

    def __init__(
        self, program: fx.GraphModule, inputs: Inputs, rules: Mapping[str, Entry], sources: Sources
    ) -> None:
        super().__init__(program)
        self.inputs, self.rules, self.sources = inputs, rules, sources
        self.found = Found()
        self.units, self.uses = self.found.units, self.found.uses
        self.values: dict[fx.Node, Any] = {}
        self.fed: set[fx.Node] = set()  # what depends on what the caller gives
        self.held: set[fx.Node] = set()  # the same, but for what depends only on comparisons of it
        self.weighed: set[fx.Node] = set()  # what depends on a parameter that may be a matrix
        self.scores: set[int] = set()  # marks of products of queries with keys
        self.spread = Spread()
        self.used: list[Matrix] = []  # what the present operator multiplies by
        # What one weight has written, and nothing else has read: the weight, and which of its uses it was.
        self._sole: dict[fx.Node, tuple[Matrix, int]] = {}
        self._tables: dict[str, Marks] = {}  # parameters that are used as numbers

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation, and note what is known of its result."""
        result = super().run_node(n)
        given = n.op == "placeholder" and str(n.target) in self.inputs.given
        if given or any(each in self.fed for each in n.all_input_nodes):
            self.fed.add(n)
        if given or (
            any(each in self.held for each in n.all_input_nodes) and name_of(n.target) not in _COMPARISONS
        ):
            self.held.add(n)
        matrix = str(n.target) in self.inputs.parameters and isinstance(result, Tensor) and result.dim() > 1
        if (n.op == "placeholder" and matrix) or any(each in self.weighed for each in n.all_input_nodes):
            self.weighed.add(n)
        if n.op == "placeholder":
            self.values[n] = self._placeholder(n, result)
        elif n.op == "call_function":
            self.used = []
            self.values[n] = self._complete(n.name, n, self._follow(n, result), result)
            self._note_sole(n)
            entry = self.rules.get(name_of(n.target))
            if entry is not None and entry.by_itself and isinstance(result, Tensor):
                self.spread.pass_on(n, name_of(n.target), result.shape)
        elif n.op not in ("output", "get_attr"):
            raise CannotFollowError(f"{place_of(n)}: an operation of kind {n.op!r} cannot be followed")
        for used in self.user_to_last_uses.get(n, ()):
            self.values.pop(used, None)
        return result

    def _note_sole(self, node: fx.Node) -> None:
        """Note whether a value is what one weight has written, and the batch norms that multiply it."""
        if isinstance(self.values[node], Weight):
            return
        sources = [(each, self.values.get(each)) for each in node.all_input_nodes]
        for matrix in dict.fromkeys(self.used):
            norms = self.uses[matrix].norms
            self._sole[node] = matrix, len(norms)  # of several, as of experts, none has a batch norm
            norms.append(())
        if self.used:
            return
        marked = [each for each, value in sources if isinstance(value, (Marks, list)) and each in self.fed]
        if len(marked) == 1 and len(marked[0].users) == 1 and marked[0] in self._sole:
            self._sole[node] = self._sole[marked[0]]
            places = BATCH_NORMS.get(str(node.target).removeprefix("aten."))
            if places is not None:
                self._note_norm(node, self.values[marked[0]], places)

    def _note_norm(self, node: fx.Node, value: Any, places: tuple[int, int | None, int]) -> None:
        matrix, time = self._sole[node]
        use, space = self.uses[matrix], value.spaces[0]
        channels = space.movedim(1, 0).flatten(1) if space.dim() > 1 else space[:, None]
        if channels.shape[0] != len(use.out) or not bool((channels == use.out[:, None]).all()):
            return  # it multiplies other numbers than the rows: several places of a flattened channel
        names: list[str | None] = []
        for place in places[:2]:
            argument = None if place is None else node.args[place]
            names.append(
                None if argument is None else self.inputs.names.get(str(getattr(argument, "target", "")))
            )
            if argument is not None and names[-1] is None:
                raise CannotFollowError(
                    f"{place_of(node)}: {node.target}: its weight or variance is computed, so that it is not "
                    "known what it multiplies by"
                )
        eps: Any = node.args[places[2]]
        use.norms[time] += (BatchNorm(names[0], names[1], float(eps)),)

    def _placeholder(self, node: fx.Node, tensor: Any) -> Value:
        name = self.inputs.parameters.get(str(node.target))
        # What the caller gives may be numbers as well if they are integers.
        given = str(node.target) in self.inputs.given
        if not isinstance(tensor, Tensor) or not (given or _has_units(tensor)):
            return None
        if name is not None and tensor.dim() >= 2:
            return as_stored(name, tensor.shape)
        return self.sources.make(node.name, tensor.shape, self.units)

    def _complete(self, key: str, node: fx.Node, value: Any, result: Any) -> Any:
        """Make what no rule knows a source of its own, and check what a rule knows."""
        if isinstance(result, (list, tuple)):
            values = value if isinstance(value, list) else [None] * len(result)
            pairs = zip(values, result, strict=True)
            return [self._complete(f"{key}.{i}", node, one, part) for i, (one, part) in enumerate(pairs)]
        if not isinstance(result, Tensor):
            return None
        if value is None:
            return self.sources.make(key, result.shape, self.units) if _has_units(result) else None
        for each in value.experts if isinstance(value, Routed) else (value,):
            if each.shape != result.shape:
                raise CannotFollowError(
                    f"{place_of(node)}: {node.target}: the rule gives marks of shape {tuple(each.shape)} "
                    f"for a result of shape {tuple(result.shape)}"
                )
        return self._placed(key, node, value) if isinstance(value, Marks) else value

    def _placed(self, key: str, node: fx.Node, marks: Marks) -> Marks:
        """Make what a weight has written a source in the space that it left free: that of its places."""
        free = [index for index, space in enumerate(marks.spaces) if is_all(space, NONE)]
        if not free or not is_all(marks.origin, NONE) or not marks.marked:
            return marks
        dims = range(len(marks.shape))
        along = {dim for dim in dims if any(varies(space, dim) for space in marks.spaces)}
        shape = [1 if dim in along else size for dim, size in enumerate(marks.shape)]
        source = self.sources.make(key, shape, self.units)
        if not all(is_all(space, NONE) for space in source.spaces[len(free) :]):
            raise CannotFollowError(f"{place_of(node)}: {node.target}: the result has units of three kinds")
        spaces = list(marks.spaces)
        for index, space in zip(free, source.spaces, strict=False):
            spaces[index] = space.expand(marks.shape)
        return Marks(tuple(spaces), source.origin.expand(marks.shape))

    def _follow(self, node: fx.Node, result: Any) -> Any:
        """Return what is known of the result of an operator."""
        given = [self.value(each) for each in node.args]
        named = {key: self.value(each) for key, each in node.kwargs.items()}
        if node.target is operator.getitem:
            place = self._number(node.args[1])
            return given[0][place] if isinstance(given[0], list) else None
        values = list(_leaves([given, list(named.values())]))
        if not values:
            return None
        name = name_of(node.target)
        entry = self.rules.get(name)
        if entry is None:
            self._refuse(node, values)
            return None
        arguments = [self._number(each) for each in node.args]
        options = {key: self._number(each) for key, each in node.kwargs.items()}
        call = Call(node, name, given, named, arguments, options, result)
        routed = [value for value in values if isinstance(value, Routed)]
        if not routed or not entry.by_itself:
            return entry.rule(self, call)
        each = [
            entry.rule(self, Call(node, name, _of_expert(given, place), named, arguments, options, result))
            for place in range(len(routed[0].experts))
        ]
        if isinstance(result, (list, tuple)):
            return [Routed(tuple(parts)) for parts in zip(*each, strict=True)]
        return Routed(tuple(each))

    def _refuse(self, node: fx.Node, values: list[Any]) -> None:
        """Raise for an operator without a rule; of a source alone note that it went there."""
        parameters = [repr(value.name) for value in values if isinstance(value, Weight)]
        if name_of(node.target).startswith(_RECURRENT):
            why = "recurrent layers cannot be read as units"
        elif parameters:
            why = f"it computes something from the parameter {parameters[0]}"
        else:
            why = "what weights have written goes in"
        error = CannotFollowError(f"{place_of(node)}: there is no rule for the operator {node.target}: {why}")
        for value in values:
            if not isinstance(value, Marks) or value.marked:
                raise error
            for source in self.sources.of(value.origin):
                source.lost = error

    def merge(self, routed: Routed) -> Marks:
        """Join what comes from different experts: their numbers are added up, or lie side by side."""
        first = routed.experts[0]
        for other in routed.experts[1:]:
            for one, another in zip(first.spaces, other.spaces, strict=True):
                self.units.join(one, another)
        return first

    def value(self, argument: Any) -> Any:
        """What is known of an argument of an operator; lists keep their form."""
        if isinstance(argument, fx.Node):
            return self.values.get(argument)
        if isinstance(argument, (list, tuple)):
            return [self.value(each) for each in argument]
        return None

    def _number(self, argument: Any) -> Any:
        """The present value of an argument: a tensor, a number, or a list of them."""
        return fx.node.map_arg(argument, lambda node: self.env[node])

    def marks(self, value: Value, like: Any) -> Marks:
        """The marks of a value of this tensor's shape; a parameter is a table of numbers here, no matrix."""
        if isinstance(value, Routed):
            return self.merge(value)
        if isinstance(value, Marks):
            return value
        if not isinstance(value, Weight):
            return unknown(like.shape if isinstance(like, Tensor) else ())
        sizes = self.inputs.sizes[value.name]
        if value.name not in self._tables:
            self._tables[value.name] = self.sources.make(f"parameter {value.name}", sizes, self.units)
        flat = value.flat(sizes)
        return self._tables[value.name].each(lambda layer: layer.reshape(-1)[flat])

    def meets(self, value: Marks) -> None:
        """Note that the numbers of sources without units meet others."""
        for source in self.sources.of(value.origin):
            source.meetings += 1

    def note(self, part: str, value: Any) -> None:
        """Note that the marks of a value are part of something that decides the role of a weight."""
        if isinstance(value, Routed):
            for each in value.experts:
                self.note(part, each)
        elif isinstance(value, Marks):
            for space in value.spaces:
                space = thin(space)
                self.found.parts[part].update(space[space >= 0].unique().tolist())


def follow(
    program: fx.GraphModule, values: Sequence[Any], inputs: Inputs, rules: Mapping[str, Entry]
) -> Found:
    """Follow a program on its example, again if it turns out that an input or a table has units.

    Args:
        program: what ``torch.export`` made of the model.
        values: one for each placeholder.
        inputs: what the placeholders are.
        rules: what each operator does with marks, by name.

    Raises:
        CannotFollowError: the message names module and operator.
    """
    seeds: dict[str, list[frozenset[int]]] | None = {}
    while seeds is not None:
        sources = Sources(seeds)
        follower = Follower(program, inputs, rules, sources)
        try:
            follower.run(*values, enable_io_processing=False)
        except CannotFollowError as error:
            raise CannotFollowError(str(error).split("\n\nWhile executing")[0]) from None
        seeds = sources.found()
        for key, several in (seeds or {}).items():
            if len(several) > SPACES:
                raise CannotFollowError(
                    f"model: layers read {key!r}, which none of them has written, along {len(several)} "
                    f"dimensions: units along at most {SPACES} can be followed"
                )
    _refuse_two_kinds_of_use(follower, sources)
    return follower.found


def _refuse_two_kinds_of_use(follower: Follower, sources: Sources) -> None:
    """Raise for a parameter that is a matrix and a table of numbers: nothing joins the units of the two."""
    matrices = {matrix.parameter for matrix in follower.uses}
    tables = {source.key: source for source in sources.all if source.meetings}
    for name in sorted(matrices):
        if f"parameter {name}" in tables:
            raise CannotFollowError(
                f"model: it multiplies by the parameter {name!r} as a matrix, and adds or multiplies its "
                "numbers one by one elsewhere: it cannot be told that these are of the same units"
            )


def name_of(target: Any) -> str:
    """Return the name of an operator, with its library's if that is not PyTorch's own."""
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    library, name = target._schema.name.split("::")
    return name if library == "aten" else f"{library}::{name}"


def _has_units(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor may have units: not those of places, and what is true."""
    return tensor.is_floating_point() or tensor.is_complex()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None:
        yield value


def _of_expert(value: Any, place: int) -> Any:
    if isinstance(value, list):
        return [_of_expert(each, place) for each in value]
    return value.experts[place] if isinstance(value, Routed) else value


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
