"""Every operator called with arguments that do not fit, on numbers, on the meta device and on fake tensors.

What is malformed raises an error that Python programs can expect, never crashes, and is refused by the fake
kernels wherever shapes and types alone tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import modfast  # noqa: F401  (registers the operators)

ERRORS = (RuntimeError, TypeError, ValueError, IndexError)
DOUBLE, LONG = torch.float64, torch.int64

# What only the numbers, or how they lie in memory, tell: changes of arguments, and messages.
NOT_SEEN_BY_SHAPE = ("number", "strided", "transposed", "expanded")
TOLD_BY_NUMBERS = (
    "starts must begin with 0",
    "starts must not fall",
    "indices must be",
    "must hold numbers in",
)

# Numbers that indices may not be, by their type.
WRONG_NUMBERS = {LONG: (-1, -2, 2**40, -(2**62)), torch.int32: (-2, 2**30, -(2**30))}

NO_SOURCES = torch.empty(0, 0, dtype=torch.int32)


def valid_arguments() -> dict[str, tuple[Any, ...]]:
    """One call of each operator that is right."""
    weight, rows, cols = torch.rand(4, 5), torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, 2, 0, -1])
    right, left = torch.rand(5, 8), torch.rand(4, 8)
    sparse = (torch.tensor([0, 2, 3, 4, 6]), torch.tensor([0, 1, 2, 3, 0, 4]), torch.rand(6))
    graph = (torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1, 0, 3, 2]), torch.rand(4))
    energies, slopes = torch.rand(1, 2, dtype=DOUBLE), torch.rand(1, dtype=DOUBLE)
    labels, two = ([rows], [cols], [3]), torch.tensor([0, 0, 1, 1])
    # A convolution, a batch norm and a pooling of two by two places; then a linear layer.
    tail = (
        torch.rand(6, 8, dtype=DOUBLE),
        torch.ones(8, dtype=DOUBLE),
        [torch.rand(4, 3, dtype=DOUBLE), torch.rand(2, 8, dtype=DOUBLE)],
        [torch.rand(4, dtype=DOUBLE), torch.rand(2, dtype=DOUBLE)],
        [1, 0],
        [0.0, 0.0],
        [torch.arange(4, dtype=torch.int32) + torch.arange(3, dtype=torch.int32)[:, None], NO_SOURCES],
        [1, 1],
        [0, 0],
        [8, 9],
        [0.0, 0.0],
        [torch.rand(2, 4, dtype=DOUBLE), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)],
        [torch.zeros(16, 8, dtype=DOUBLE), torch.zeros(2, 8, dtype=DOUBLE)],
        [torch.zeros(8, 8, dtype=DOUBLE), torch.zeros(2, 8, dtype=DOUBLE)],
        1,
        1,
    )
    terms = [torch.rand(size, dtype=DOUBLE) for size in (4, 5)]
    vectors = [torch.rand(size, 2, dtype=DOUBLE) for size in (4, 5)]
    sums = (torch.rand(2, dtype=DOUBLE), torch.rand(2, dtype=DOUBLE) + 1, torch.tensor([2, 2]))
    wide = torch.rand(6, 36) + 0.1
    degrees = wide.sum(1, dtype=DOUBLE), wide.sum(0, dtype=DOUBLE)
    return {
        "block_inner": (weight, None, rows, cols, 3),
        "block_scale": (weight, torch.rand(4, 4, dtype=DOUBLE), rows, cols),
        "enmeshment": ([weight, weight], [rows, rows], [cols, cols], [3, 3]),
        "enmeshment_grad": ([weight], energies, slopes, *labels),
        "add_enmeshment_grad_": ([weight], [torch.zeros(4, 5)], energies, slopes, *labels),
        "accumulate_enmeshment_grad_": ([weight], [torch.zeros(4, 5)], *labels, 0.7),
        "accumulate_packed_enmeshment_grad_": (
            [weight],
            [torch.zeros(4, 5)],
            torch.cat([torch.tensor([3]), rows, cols]).to(torch.int32),
            0.7,
            True,
        ),
        "adamw_": (
            [weight.clone(), torch.rand(3)],
            [torch.rand(4, 5), torch.rand(3)],
            [torch.zeros(4, 5), torch.zeros(3)],
            [torch.zeros(4, 5), torch.zeros(3)],
            [torch.zeros(()), torch.zeros(())],
            torch.tensor([0, 1, 2, 1, 0, 1, 2, 0, 1], dtype=torch.int32),
            [0, -1],
            energies.clone(),
            torch.zeros(1, 2, dtype=DOUBLE),
            0.7,
            [7, -1],
            torch.zeros(2, 2, dtype=LONG),
            1e-3,
            torch.tensor(1e-3),
            0.9,
            0.99,
            1e-8,
            0.1,
            torch.tensor(8.0),
            torch.tensor(0.0),
            False,
        ),
        "labelled_energies": ([weight], torch.zeros(9, dtype=torch.int32), [0]),
        "similarity_sums": (weight, 0, 1.0),
        "similarity_product": (weight, 0, 1.0, right, left, None),
        "similarity_singular_vectors": (
            *(wide, 0, 1.0, *degrees, torch.rand(36, 8)),
            *(3, 1e-3, 20, 24, 0),
        ),
        "sparse_similarity_sums": (*sparse, 5, 0, 1.0, None, None, True),
        "sparse_similarity_product": (*sparse, 5, 0, 1.0, right, left, None),
        "sparse_transpose": (*sparse, 5),
        "graph_product_": (torch.zeros(4, 8), *graph, 1.0, left, torch.rand(4)),
        "basis_inner": ([left, left.clone()], torch.rand(4, 8), torch.rand(4)),
        "basis_rotate_": ([left, left.clone()], torch.rand(16, 8, dtype=DOUBLE)),
        "k_means": (torch.rand(6, 3), torch.rand(6) + 0.1, 2, 2, 0, 10, 1e-4),
        "move_side": (two, *sums, torch.rand(4, 2, dtype=DOUBLE), terms[0], None, 1e-6, 5),
        "move_sides": (wide, 0, 1.0, *degrees, torch.arange(42) % 3, 3, False, 1e-6, 5),
        "numbered_as_met": (rows, 3),
        "move_graph": (*graph, 1.0, two, 2, 1e-6, 5),
        "graph_cut": (*graph, 1.0, two, 2),
        "edge_gradient": (weight, *terms, *vectors),
        "tail_forward_": tail,
        "walk_row_": (*tail, 0, 0, 0, 3, 10.0, None),
    }


def other_tensors(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """The same, but for one thing."""
    yield "absent", None
    yield "0-D", tensor.new_zeros(())
    yield "another dimension", tensor.unsqueeze(-1)
    yield "one dimension", tensor.reshape(-1)
    if tensor.dim() > 0:
        yield "empty", tensor[:0]
        yield "shorter", tensor[:-1]
        yield "longer", torch.cat([tensor, tensor])
        yield "narrower", tensor[..., :-1]
    for dtype in (torch.int32, LONG, torch.float16, torch.float32, DOUBLE, torch.bool, torch.complex64):
        yield str(dtype), tensor.to(dtype)
    yield "sparse", tensor.to_sparse()
    if tensor.dim() > 0:
        yield "strided", tensor.repeat_interleave(2, -1)[..., ::2]
        yield "transposed", tensor.T if tensor.dim() == 2 else tensor
        yield "expanded", tensor[:1].expand(tensor.shape)
    for number in WRONG_NUMBERS.get(tensor.dtype, (torch.nan, torch.inf, -1.0)):
        changed = tensor.clone()
        changed.view(-1)[-1] = number
        yield f"number {number}", changed


def others(argument: Any) -> Iterator[tuple[str, Any]]:
    """What may be given in an argument's place."""
    if isinstance(argument, Tensor):
        yield from other_tensors(argument)
    elif isinstance(argument, list):
        yield "empty list", []
        yield "longer list", argument + argument[:1]
        for name, other in others(argument[0]):
            if other is not None:
                yield f"first {name}", [other, *argument[1:]]
    elif isinstance(argument, int):
        # Nothing so large that the result itself would fill the memory.
        for number in (-1, 0, 1, 100, -(2**62)):
            yield f"number {number}", number
    elif isinstance(argument, float):
        for value in (0.0, -1.0, torch.nan, torch.inf):
            yield f"number {value}", value
    else:
        for name, shape in (("1-D", (4,)), ("2-D", (4, 8)), ("3-D", (4, 8, 1))):
            yield name, torch.rand(shape)


def calls(name: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    arguments = valid_arguments()[name]
    for place, argument in enumerate(arguments):
        for what, other in others(argument):
            yield f"{what} in place {place}", (*arguments[:place], other, *arguments[place + 1 :])
    if name.endswith("similarity_product"):
        for what, last in (("nothing", (None, None, None)), ("weights alone", (None, None, torch.rand(4)))):
            yield what, (*arguments[:-3], *last)


def everywhere(argument: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Each tensor in it changed."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(everywhere(each, change) for each in argument)
    return change(argument) if isinstance(argument, Tensor) else argument


def error_of(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return None


def copied(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.layout == torch.strided else tensor


@pytest.mark.parametrize("name", list(valid_arguments()))
def test_what_does_not_fit_is_refused(name: str) -> None:
    operator = getattr(torch.ops.modfast, name)
    assert error_of(lambda: operator(*everywhere(valid_arguments()[name], copied))) is None
    for what, arguments in [("right", valid_arguments()[name]), *calls(name)]:
        real = error_of(lambda arguments=arguments: operator(*everywhere(arguments, copied)))
        on_meta = everywhere(arguments, lambda tensor: tensor.to("meta"))
        mode = FakeTensorMode()
        faked = everywhere(arguments, mode.from_tensor)

        def fake(faked: Any = faked, mode: FakeTensorMode = mode) -> None:
            with mode:
                operator(*faked)

        found = {"meta": error_of(lambda on_meta=on_meta: operator(*on_meta)), "fake": error_of(fake)}
        for where, error in found.items():
            if real is None:
                assert error is None, f"{what}, {where}: {error}"
            elif not any(word in what for word in NOT_SEEN_BY_SHAPE) and not any(
                words in real for words in TOLD_BY_NUMBERS
            ):
                assert error is not None, f"{what}, {where}: not refused, but on numbers {real}"


def test_every_operator_is_here() -> None:
    registered = {
        each.split("::")[1].split(".")[0]
        for each in torch._C._dispatch_get_all_op_names()
        if each.startswith("modfast::")
    }
    assert set(valid_arguments()) == registered


def test_messages_name_the_argument() -> None:
    weight = torch.rand(4, 5, device="meta")
    ops = torch.ops.modfast
    for call, message in [
        (lambda: ops.similarity_product(weight, 0, 1.0, None, None, None), "right or left must be given"),
        (
            lambda: ops.similarity_sums(weight[0], 0, 1.0),
            r"weight must have shape \('any', 'any'\), got \(5,\)",
        ),
        (lambda: ops.enmeshment([], [], [], []), "weights must hold at least one tensor|no tensor arguments"),
        (lambda: ops.similarity_sums(weight.int(), 0, 1.0), "weight must be torch.float32 or"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
